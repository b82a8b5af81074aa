"""Soft pooling and prototypical channel attention."""

import math

import pytest
import torch

from fss_d2.modeling.layers import PrototypicalChannelAttention, soft_pool


def test_soft_pooling_by_hand() -> None:
    x = torch.tensor([[0.0, 1.0], [2.0, 0.0], [0.0, 0.0]]).T.reshape(1, 2, 1, 3)
    first = 2 * math.exp(2) / (math.exp(2) + 2)
    second = math.e / (math.e + 2)
    assert soft_pool(x)[0].tolist() == pytest.approx([first, second], abs=1e-6)


@pytest.mark.parametrize("value", [1e4, -1e4])
def test_soft_pooling_is_stable(value: float) -> None:
    x = torch.full((1, 1, 3, 3), value)
    x[0, 0, 1, 1] += 1
    x.requires_grad_()
    pooled = soft_pool(x)
    expected = value + math.e / (math.e + 8)
    assert pooled.item() == pytest.approx(expected, abs=2e-3)  # float32 at 10,000
    pooled.sum().backward()
    assert x.grad.isfinite().all()


def test_soft_pooling_lies_between_mean_and_maximum() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5, 4, 6)
    pooled = soft_pool(x)
    assert (pooled > x.mean(dim=(2, 3))).all() and (pooled < x.amax(dim=(2, 3))).all()
    same = torch.full((1, 2, 3, 3), 0.7)
    torch.testing.assert_close(soft_pool(same), torch.full((1, 2), 0.7))


def test_weights_leave_positions_out() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 2, 4)
    weights = torch.zeros(2, 2, 4)
    weights[..., :2] = 1
    torch.testing.assert_close(soft_pool(x, weights), soft_pool(x[..., :2]))
    nowhere = torch.zeros(2, 2, 4)
    torch.testing.assert_close(soft_pool(x, nowhere), soft_pool(x))
    half = torch.full((2, 2, 4), 0.5)
    torch.testing.assert_close(soft_pool(x, half), soft_pool(x))


def test_responses_are_two_layers_without_bias() -> None:
    module = PrototypicalChannelAttention(4, ratio=2)
    with torch.no_grad():
        module.squeeze.weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, -1, 0, 0]]).view(2, 4, 1, 1))
        module.expand.weight.copy_(torch.tensor([[1.0, 0], [0, 1], [1, 1], [-1, 0]]).view(4, 2, 1, 1))
    x = torch.tensor([3.0, 5.0, 0.0, 0.0]).view(1, 4, 1, 1)
    assert module.respond(x).flatten().tolist() == [3, 0, 3, -3]


def test_positions_masked_out_give_zero() -> None:
    torch.manual_seed(0)
    module = PrototypicalChannelAttention(32)
    mask = (torch.rand(2, 5, 5) > 0.5).float()
    response = module.respond(torch.rand(2, 32, 5, 5) * mask[:, None])
    assert (response[(mask == 0)[:, None].expand_as(response)] == 0).all()
    assert response.abs().sum() > 0


def test_only_masked_pooling_ignores_the_background() -> None:
    torch.manual_seed(0)
    features, mask = torch.rand(1, 32, 2, 2), torch.ones(1, 2, 2)
    larger = torch.nn.functional.pad(features, (0, 6, 0, 6)), torch.nn.functional.pad(mask, (0, 6, 0, 6))
    plain, masked = PrototypicalChannelAttention(32), PrototypicalChannelAttention(32, masked=True)
    masked.load_state_dict(plain.state_dict())
    torch.testing.assert_close(masked(*larger), masked(features, mask))
    torch.testing.assert_close(plain(features, mask), masked(features, mask))
    # 60 background positions of value 0 with weight e^0 join the 4 of the object
    response = plain.respond(features).flatten(2)
    expected = (response.exp() * response).sum(dim=2) / (response.exp().sum(dim=2) + 60)
    torch.testing.assert_close(plain(*larger), expected)


def test_published_parameters() -> None:
    assert sum(p.numel() for p in PrototypicalChannelAttention(256).parameters()) == 8_192


@pytest.mark.parametrize("ratio", [0, 17])
def test_errors(ratio: int) -> None:
    with pytest.raises(ValueError, match=f"ratio {ratio} leaves no channel.*give 1 to 16"):
        PrototypicalChannelAttention(16, ratio)
