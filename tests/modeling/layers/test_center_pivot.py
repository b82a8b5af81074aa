"""4D centre-pivot convolution and correlations, against written-out sums."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fss_d2.modeling.layers import (
    CenterPivotConv4d,
    center_pivot_stack,
    correlate,
    resize_query,
    unit_features,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def convolved_by_hand(conv: CenterPivotConv4d, x: Tensor) -> Tensor:
    """The 4D sum over all offsets of a kernel that is 0 off the two planes through its centre."""
    B, _, h, w, h2, w2 = x.shape
    out, _, k, _ = conv.query.weight.shape
    kernel = x.new_zeros(out, x.shape[1], k, k, k, k)
    middle = k // 2
    kernel[:, :, :, :, middle, middle] += conv.query.weight
    kernel[:, :, middle, middle] += conv.support.weight
    padded = nn.functional.pad(x, (middle,) * 8)
    step = conv.stride
    rows, columns = range(0, h2, step), range(0, w2, step)
    result = x.new_zeros(B, out, h, w, len(rows), len(columns))
    for i, j in itertools.product(range(h), range(w)):
        for (m, row), (n, column) in itertools.product(enumerate(rows), enumerate(columns)):
            window = padded[:, :, i : i + k, j : j + k, row : row + k, column : column + k]
            result[:, :, i, j, m, n] = torch.einsum("bcijkl,ocijkl->bo", window, kernel)
    return result + (conv.query.bias + conv.support.bias).view(1, -1, 1, 1, 1, 1)


SIZES = [(3, 1, (3, 4, 2, 3)), (3, 2, (3, 2, 5, 4)), (5, 4, (4, 3, 6, 5)), (1, 2, (2, 2, 3, 3))]


@pytest.mark.parametrize(("kernel", "stride", "size"), [*SIZES, (3, 2, (2, 3, 1, 1))])
@torch.no_grad()
def test_equal_to_the_written_out_4d_convolution(kernel: int, stride: int, size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    conv = CenterPivotConv4d(3, 4, kernel, stride).double()
    x = random(2, 3, *size).double()
    torch.testing.assert_close(conv(x), convolved_by_hand(conv, x))


@torch.no_grad()
def test_any_memory_order_gives_the_same() -> None:
    torch.manual_seed(0)
    conv, x = CenterPivotConv4d(3, 4, 3, 2), random(2, 3, 4, 5, 6, 7)
    order, back = (0, 2, 3, 1, 4, 5), (0, 3, 1, 2, 4, 5)
    query_first = x.permute(order).contiguous().permute(back)
    torch.testing.assert_close(conv(query_first), conv(x))


class Copies(TorchDispatchMode):
    """Numbers of elements that are copied."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if function.name().partition(".")[0] in ("aten::clone", "aten::copy_", "aten::_to_copy"):
            self.sizes.append(result.numel())
        return result


@torch.no_grad()
def test_only_the_kept_positions_of_a_correlation_are_copied() -> None:
    """Layer by layer into the result, and 2 x 2 of 8 x 8 positions of the support for the query's side."""
    conv = CenterPivotConv4d(3, 4, 5, 4)
    queries = [random(2, 6, 5, 5, seed=layer) for layer in range(3)]
    supports = [random(2, 6, 8, 8, seed=9 + layer) for layer in range(3)]
    with Copies() as copies:
        correlation = correlate(queries, supports)
    assert copies.sizes == [2 * 25 * 64] * 3
    with Copies() as copies:
        conv(correlation)
    assert copies.sizes == [2 * 3 * 25 * 4]


def test_gradients_reach_features_and_weights() -> None:
    torch.manual_seed(0)
    stack = center_pivot_stack(2, [4, 8], [5, 3], [4, 2])
    queries, supports = ([random(1, 3, 4, 4, seed=s + i).requires_grad_() for i in (0, 1)] for s in (0, 5))
    result = stack(correlate(queries, supports))
    assert result.shape == (1, 8, 4, 4, 1, 1)
    result.square().sum().backward()
    assert all(t.grad.abs().sum() > 0 for t in (*queries, *supports, *stack.parameters()))


def test_correlations_by_hand() -> None:
    """Two positions of the query, two of the support: cosines 1, 0.6, 0.8, -0.6, which becomes 0."""
    query = torch.tensor([[2.0, 0.0], [0.0, 5.0]]).view(1, 2, 1, 2)  # vectors (2, 0), (0, 5)
    support = torch.tensor([[3.0, 0.6], [0.0, 0.8]]).view(1, 2, 2, 1)  # vectors (3, 0), (0.6, 0.8)
    maps = correlate([unit_features(query), unit_features(-query)], [unit_features(support)] * 2)
    expected = torch.tensor([[[1.0, 0.6], [0.0, 0.8]], [[0.0, 0.0], [0.0, 0.0]]]).view(1, 2, 1, 2, 2, 1)
    torch.testing.assert_close(maps, expected, rtol=0, atol=3e-5)


def test_unit_features_add_epsilon_to_the_length() -> None:
    features = torch.tensor([3e-5, 4e-5]).view(1, 2, 1, 1)
    torch.testing.assert_close(unit_features(features).flatten(), torch.tensor([3.0, 4.0]) / 6)
    assert torch.equal(unit_features(torch.zeros(1, 2, 1, 1)), torch.zeros(1, 2, 1, 1))
    loud = unit_features(torch.full((1, 2048, 1, 1), 100.0, dtype=torch.float16))
    assert loud.dtype == torch.float32
    torch.testing.assert_close(loud.square().sum(), torch.tensor(1.0))


def test_the_query_is_resized_and_the_support_is_not() -> None:
    x = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2, 1, 1) + torch.tensor([0.0, 10.0]).view(1, 1, 1, 1, 1, 2)
    expected = torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 1, 3, 1, 1) + torch.tensor([0.0, 10.0])
    torch.testing.assert_close(resize_query(x, (1, 3)), expected)
