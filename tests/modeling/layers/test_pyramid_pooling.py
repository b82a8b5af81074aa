"""Pyramid pooling."""

import pytest
import torch

from fss_d2.modeling.layers import PyramidPooling


def averaging(in_channels: int, bins: tuple[int, ...]) -> PyramidPooling:
    """Pyramid pooling whose projections sum the channels, in evaluation mode."""
    module = PyramidPooling(in_channels, bins, width=1).eval()
    for branch in module.branches:
        torch.nn.init.ones_(branch[1].weight)
    return module


def test_bins_by_hand() -> None:
    x = torch.tensor([[0.0, 2.0, 4.0], [6.0, 8.0, 10.0], [12.0, 14.0, 16.0]])[None, None]
    result = averaging(1, (1, 2, 3))(x)[0]
    factor = (1 + 1e-5) ** -0.5  # batch norm with its initial statistics
    torch.testing.assert_close(result[0], x[0, 0])
    torch.testing.assert_close(result[1], torch.full((3, 3), 8.0) * factor)
    # 2 x 2 cells of 2 x 2 overlapping pixels: 4, 6, 10, 12; with corners aligned the middle is their mean
    torch.testing.assert_close(
        result[2], torch.tensor([[4.0, 5, 6], [7, 8, 9], [10, 11, 12]]) * factor, rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(result[3], x[0, 0] * factor)


def test_channels_and_sizes() -> None:
    module = PyramidPooling(13, (1, 2, 3, 6)).eval()
    assert module.out_channels == 13 + 4 * 3
    assert module(torch.rand(2, 13, 5, 9)).shape == (2, 25, 5, 9)
    assert not any(name.endswith("1.bias") for name in module.state_dict())


def test_psp_parameters() -> None:
    assert sum(p.numel() for p in PyramidPooling(512).parameters()) == 4 * (512 * 128 + 256)


def test_negative_projections_give_nothing() -> None:
    module = averaging(1, (1,))
    x = torch.full((1, 1, 2, 2), -1.0)
    assert module(x)[0, 1].tolist() == [[0, 0], [0, 0]]


def test_one_image_trains_the_bin_of_one_cell_on_running_statistics() -> None:
    torch.manual_seed(0)
    module = PyramidPooling(4, (1, 2), width=3)
    norm = module.branches[0][2]
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(1, 2)
    before, x = norm.running_mean.clone(), torch.rand(1, 4, 6, 6)
    trained = module.train()(x)
    trained.sum().backward()
    assert norm.weight.grad.isfinite().all()
    assert torch.equal(norm.running_mean, before)
    with torch.no_grad():
        evaluated = module.eval()(x)
    torch.testing.assert_close(trained[:, 4:7], evaluated[:, 4:7])
    assert not torch.allclose(trained[:, 7:], evaluated[:, 7:])  # the larger bin has its own statistics


def test_two_images_train_on_their_own_statistics() -> None:
    module = averaging(1, (1,)).train()
    result = module(torch.tensor([1.0, 3.0]).view(2, 1, 1, 1).expand(2, 1, 4, 4))
    assert result[:, 1, 0, 0].tolist() == pytest.approx([0.0, 1.0], abs=1e-4)
    assert module.branches[0][2].running_mean.item() == pytest.approx(0.2)


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"bins \(0, 2\): give .* at least 1"):
        PyramidPooling(8, (0, 2))
    with pytest.raises(ValueError, match=r"bins \(\)"):
        PyramidPooling(8, ())
    with pytest.raises(ValueError, match=r"4 bins for 3 channels: give fewer"):
        PyramidPooling(3)
