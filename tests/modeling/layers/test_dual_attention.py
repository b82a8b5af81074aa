"""Light and dense attention, against the equations written out."""

import pytest
import torch
from torch import Tensor

from fss_d2.modeling.layers import DenseAttention, LightAttention
from fss_d2.modeling.layers.dual_attention import average_attention, row_attention

SIZES = pytest.mark.parametrize("size", [(4, 4), (3, 5), (6, 2)])
SHOTS = pytest.mark.parametrize("shots", [1, 3])


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def light_written_out(module: LightAttention, features: Tensor, supports: Tensor) -> Tensor:
    """Eq. 2 and 3 with rows meeting the rows' map and columns the columns'."""
    query, values = module.query(features), module.value(features)
    rows, columns = [], []
    for support in supports.unbind(dim=1):
        keys = module.key(support)
        rows.append(torch.einsum("bciw,bcjw->bij", query, keys).softmax(dim=2))
        columns.append(torch.einsum("bchi,bchj->bij", query, keys).softmax(dim=2))
    across, down = torch.stack(rows).mean(dim=0), torch.stack(columns).mean(dim=0)
    by_row = torch.einsum("bij,bcjw->bciw", across, values)
    by_column = torch.einsum("bij,bchj->bchi", down, values)
    return module.alpha * by_row + module.beta * by_column + values


def dense_written_out(module: DenseAttention, features: Tensor, supports: Tensor) -> Tensor:
    """Eq. 5 with the mean of the (N, N) maps."""
    query, values = module.query(features).flatten(2), module.value(features)
    maps = [
        torch.einsum("bci,bcj->bij", query, module.key(support).flatten(2)).softmax(dim=2)
        for support in supports.unbind(dim=1)
    ]
    mixed = torch.einsum("bij,bcj->bci", torch.stack(maps).mean(dim=0), values.flatten(2))
    return module.theta * mixed.view_as(values) + values


def keys_of(module: LightAttention | DenseAttention, supports: Tensor) -> Tensor:
    return module.key(supports.flatten(0, 1)).unflatten(0, supports.shape[:2])


def inputs(size: tuple[int, int], shots: int, channels: int = 16) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(2, channels, *size), torch.randn(2, shots, channels, *size)


@SIZES
@SHOTS
def test_light_attention_is_the_einsum(size: tuple[int, int], shots: int) -> None:
    features, supports = inputs(size, shots)
    module = LightAttention(16)
    torch.nn.init.constant_(module.alpha, 0.7)
    torch.nn.init.constant_(module.beta, -1.3)
    close(module(features, keys_of(module, supports)), light_written_out(module, features, supports))


@SIZES
@SHOTS
def test_dense_attention_is_the_einsum_and_so_are_its_gradients(size: tuple[int, int], shots: int) -> None:
    features, supports = inputs(size, shots)
    module = DenseAttention(16)
    torch.nn.init.constant_(module.theta, 0.6)
    fused = module(features, keys_of(module, supports))
    written = dense_written_out(module, features, supports)
    close(fused, written)
    direction = torch.randn_like(fused)
    parameters = list(module.parameters())
    for a, b in zip(
        torch.autograd.grad((fused * direction).sum(), parameters),
        torch.autograd.grad((written * direction).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", [LightAttention, DenseAttention])
def test_units_start_as_their_values(kind: type) -> None:
    features, supports = inputs((3, 5), 2)
    module = kind(16)
    close(module(features, keys_of(module, supports)), module.value(features))


@pytest.mark.parametrize("kind", [LightAttention, DenseAttention])
def test_equal_supports_count_as_one_and_their_order_does_not(kind: type) -> None:
    features, supports = inputs((3, 5), 3)
    module = kind(16)
    for weight in (p for p in module.parameters() if p.dim() == 0):
        torch.nn.init.ones_(weight)
    keys = keys_of(module, supports)
    one = module(features, keys[:, :1])
    close(module(features, keys[:, :1].expand(-1, 4, -1, -1, -1)), one)
    close(module(features, keys.flip(1)), module(features, keys))
    assert not torch.allclose(module(features, keys), one, atol=1e-3)


def test_row_attention_by_hand() -> None:
    query = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])[None, 0:1]  # (1, 1, 2, 2): rows (1, 0) and (0, 2)
    key = torch.tensor([[[1.0, 1.0], [3.0, 0.0]]])[None, None, 0]  # rows (1, 1) and (3, 0)
    products = torch.tensor([[1.0, 3.0], [2.0, 0.0]])
    result = row_attention(query, key[:, None])
    close(result[0], products.softmax(dim=1))
    close(row_attention(query, key[:, None], scaled=True)[0], (products / 2**0.5).softmax(dim=1))


def test_the_mean_over_supports_is_taken_after_the_softmax() -> None:
    query = torch.ones(1, 1, 2, 1)
    keys = torch.tensor([[[[[100.0], [0.0]]], [[[0.0], [1000.0]]]]])  # two supports, each sure of another row
    close(row_attention(query, keys)[0], torch.full((2, 2), 0.5))


def test_sharp_products_stay_finite_under_half_precision() -> None:
    torch.manual_seed(0)
    module = LightAttention(16)
    features, supports = 300 * torch.rand(1, 16, 40, 40), 300 * torch.rand(1, 1, 16, 40, 40)
    with torch.autocast("cpu", dtype=torch.float16):
        result = module(features, keys_of(module, supports))
    assert result.isfinite().all()


def test_dense_attention_writes_no_map_out() -> None:
    """Only the kernel that keeps no (N, N) is allowed; keys less wide than the values would rule it out."""
    backend = torch.nn.attention.SDPBackend.FLASH_ATTENTION
    query, keys, values = torch.rand(2, 30, 4), torch.rand(2, 3, 30, 4), torch.rand(2, 30, 16)
    expected = torch.einsum("bic,bkjc->bkij", query, keys).softmax(dim=3).mean(dim=1) @ values
    with torch.nn.attention.sdpa_kernel(backend):
        close(average_attention(query, keys, values), expected)


def test_published_parameters() -> None:
    light, dense = LightAttention(512), DenseAttention(256)
    count = {name: p.numel() for name, p in light.named_parameters()}
    assert sum(count.values()) == 65_664 + 262_656 + 2
    assert sum(p.numel() for p in dense.parameters()) == 16_448 + 65_792 + 1
    assert light.query.bias is not None and dense.key.bias is not None


def test_few_channels_are_squeezed_to_one() -> None:
    assert LightAttention(5).query.out_channels == 1
