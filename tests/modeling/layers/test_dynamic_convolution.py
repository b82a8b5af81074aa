"""Foreground vectors, kernels made from them, convolution per image."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fss_d2.modeling.layers import DynamicConvolution, DynamicQuery, foreground_vectors

KERNELS = ("vertical", "horizontal", "square")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(*args: object, **settings: object) -> DynamicConvolution:
    torch.manual_seed(0)
    return DynamicConvolution(*args, **settings)


def test_vectors_come_row_by_row_and_shot_by_shot() -> None:
    features = torch.arange(2 * 1 * 2 * 3.0).view(2, 1, 2, 3)
    weights = torch.zeros(2, 2, 3)
    weights[0, 1, 0] = weights[0, 0, 2] = weights[1, 0, 1] = 0.6
    weights[1, 1, 1] = 0.5  # not more than half
    assert foreground_vectors(features, weights).flatten().tolist() == [2, 3, 7]


def test_a_mask_that_stays_low_gives_its_best_position() -> None:
    features = torch.arange(8.0).view(2, 1, 2, 2)
    weights = torch.tensor([[[0.1, 0.0], [0.4, 0.2]], [[0.0, 0.9], [0.0, 0.0]]])
    before = weights.clone()
    assert foreground_vectors(features, weights).flatten().tolist() == [2, 5]
    assert torch.equal(weights, before)


def test_empty_masks() -> None:
    features, weights = noise(2, 3, 2, 2), torch.zeros(2, 2, 2)
    assert torch.equal(foreground_vectors(features, weights), torch.zeros(1, 3))
    weights[1, 0, 0] = 1  # the empty one of two shots adds nothing
    assert torch.equal(foreground_vectors(features, weights), features[1, :, 0, 0][None])


def test_parameters_of_the_paper() -> None:
    for generation in ("serial", "parallel", "serial_kernels"):
        model = DynamicConvolution(256, 5, generation=generation)
        assert sum(p.numel() for p in model.parameters()) == 1_181_184
    assert sum(p.numel() for p in DynamicQuery(256).parameters()) == 1_181_184 + 3 * 256 * 256


def test_pooling_averages_neighbours_and_repeats_the_few() -> None:
    model = make(1, 3)
    (pooled,) = model.pool([torch.tensor([1.0, 3, 5, 7, 9, 11])[:, None]])
    assert pooled.flatten().tolist() == [2, 6, 10]
    (pooled,) = model.pool([torch.tensor([[4.0]])])
    assert pooled.flatten().tolist() == [4, 4, 4]


def test_pooling_for_parallel_generation_keeps_both_lengths() -> None:
    vectors = [noise(40, 4), noise(7, 4, seed=1)]
    pooled = make(4, 3, generation="parallel").pool(vectors)
    assert pooled.shape == (2, 3 + 9, 4)
    for row, each in zip(pooled, vectors, strict=True):
        torch.testing.assert_close(row[:3], F.adaptive_avg_pool1d(each.T[None], 3)[0].T)
        torch.testing.assert_close(row[3:], F.adaptive_avg_pool1d(each.T[None], 9)[0].T)
    assert make(4, 3, ("vertical",), "parallel").pool(vectors).shape == (2, 3, 4)


@pytest.mark.parametrize("generation", ["serial", "parallel", "serial_kernels"])
def test_sources_of_the_square_kernel(generation: str) -> None:
    model = make(4, 3, generation=generation)
    vectors = noise(1, 20, 4)
    kernels = model.make_kernels(model.pool(vectors))
    assert [tuple(k.shape) for k in kernels.values()] == [(1, 4, 3, 1), (1, 4, 1, 3), (1, 4, 3, 3)]
    short = F.adaptive_avg_pool1d(vectors.transpose(1, 2), 3)
    torch.testing.assert_close(kernels["vertical"].flatten(2), model.generators["vertical"](short))
    torch.testing.assert_close(kernels["horizontal"].flatten(2), model.generators["horizontal"](short))
    source = {
        "serial": short,
        "parallel": vectors.transpose(1, 2),
        "serial_kernels": torch.cat(
            [kernels["vertical"].flatten(2), kernels["horizontal"].flatten(2)], dim=2
        ),
    }[generation]
    expected = model.generators["square"](F.adaptive_avg_pool1d(source, 9))
    torch.testing.assert_close(kernels["square"].flatten(2), expected)  # row-major


def test_each_image_and_channel_has_its_own_kernel() -> None:
    model = make(3, 5)
    query = noise(2, 3, 6, 7)
    foreground = [noise(30, 3), noise(4, 3, seed=1)]
    pooled = model.pool(foreground)
    kernels = model.make_kernels(pooled)
    maps = model(query, foreground)
    for name, result in zip(KERNELS, maps, strict=True):
        kernel = kernels[name]
        padding = (kernel.shape[2] // 2, kernel.shape[3] // 2)
        for b in range(2):
            for c in range(3):
                expected = F.conv2d(query[b, c][None, None], kernel[b, c][None, None], padding=padding)
                torch.testing.assert_close(result[b, c], expected[0, 0])
    for one, other in zip(maps, model(query, pooled), strict=True):
        assert torch.equal(one, other)


def test_a_kernel_of_one_in_the_middle_changes_nothing() -> None:
    model = make(2, 3, ("square",))
    last = model.generators["square"][2]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    query = noise(1, 2, 4, 4)
    (result,) = model(query, [noise(9, 2)])
    assert not result.any()
    delta = torch.zeros(1, 2, 3, 3)
    delta[..., 1, 1] = 1
    model.make_kernels = lambda pooled: {"square": delta}  # type: ignore[method-assign]
    torch.testing.assert_close(model(query, [noise(9, 2)])[0], query)


def test_encode_joins_the_shots() -> None:
    model = make(3, 3)
    features, weights = noise(2, 2, 3, 4, 4), noise(2, 2, 4, 4, seed=1)
    vectors = features.permute(0, 1, 3, 4, 2)  # (B, K, h, w, C)
    joined = [vectors[b][weights[b] > 0.5] for b in range(2)]
    torch.testing.assert_close(model.encode(features, weights), model.pool(joined))


def test_gradients_reach_support_query_and_generators() -> None:
    model = DynamicQuery(4, kernel_size=3)
    query, support = noise(1, 4, 5, 5).requires_grad_(), noise(1, 1, 4, 5, 5, seed=1).requires_grad_()
    result = model(query, model.encode(support, torch.ones(1, 1, 5, 5)))
    assert result.shape == query.shape and (result >= 0).all()
    result.sum().backward()
    assert query.grad.any() and support.grad.any()
    assert all(p.grad.any() for p in model.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kernel_size": 4}, "kernel_size 4 must be odd"),
        ({"kernels": ("vertical", "round")}, "list some of vertical"),
        ({"kernels": ("square", "square")}, "each once"),
        ({"kernels": ()}, "list some of"),
        ({"generation": "both"}, "'both': choose from serial"),
        ({"kernels": ("square",), "generation": "serial_kernels"}, "add 'vertical'"),
    ],
)
def test_errors(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DynamicConvolution(4, **settings)
