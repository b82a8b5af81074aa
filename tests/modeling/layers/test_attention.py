"""Mask aggregation and its position code."""

import math

import pytest
import torch
from torch.nn import functional as F

from fss_d2.modeling.layers import MaskAggregation, sine_position_code


def test_position_code_by_hand() -> None:
    code = sine_position_code(4, 6, torch.device("cpu"))
    assert code.shape == (4, 6)
    assert code[0].tolist() == [0, 1, 0, 1, 0, 1]
    for p, i in ((1, 0), (3, 1), (2, 2)):
        angle = p / 10000 ** (2 * i / 6)
        assert code[p, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
        assert code[p, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)
    assert sine_position_code(3, 5, torch.device("cpu")).shape == (3, 5)


def test_position_code_made_in_inference_mode_can_be_trained_with() -> None:
    with torch.inference_mode():
        sine_position_code(7, 10, torch.device("cpu"))
    layer = MaskAggregation([10], num_heads=2, dropout=0.0)
    layer.queries(torch.rand(1, 10, 1, 7)).sum().backward()


def test_aggregation_by_hand() -> None:
    layer = MaskAggregation([2], num_heads=1, position_encoding=False).eval()
    for linear in (layer.query["2"], layer.key["2"]):
        torch.nn.init.eye_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    query = layer.queries(torch.tensor([1.0, 0.0]).view(1, 2, 1, 1))
    keys = layer.keys(torch.tensor([[2.0, 0.0], [0.0, 3.0]]).T.reshape(1, 2, 1, 2))
    result = layer(query, keys, torch.tensor([[1.0, 0.25]]))
    object_weight = math.exp(2 / math.sqrt(2)) / (math.exp(2 / math.sqrt(2)) + 1)
    assert result.item() == pytest.approx(object_weight + 0.25 * (1 - object_weight), abs=1e-6)


def test_cosine_aggregation_by_hand() -> None:
    layer = MaskAggregation([2], projection="cosine", temperature=0.5, position_encoding=False).eval()
    query = layer.queries(torch.tensor([5.0, 0.0]).view(1, 2, 1, 1))
    keys = layer.keys(torch.tensor([[2.0, 0.0], [0.0, 3.0]]).T.reshape(1, 2, 1, 2))
    expected = math.exp(2) / (math.exp(2) + 1)
    for fused in (True, False):
        layer.fused = fused
        assert layer(query, keys, torch.tensor([[1.0, 0.0]])).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("projection", ["linear", "cosine"])
def test_fused_and_plain_agree(projection: str) -> None:
    torch.manual_seed(0)
    layer = MaskAggregation([32], projection=projection).eval()
    queries = layer.queries(torch.randn(2, 32, 5, 6) * 3)
    keys = layer.keys(torch.randn(6, 32, 4, 7) * 3).reshape(2, 84, 32)
    values = torch.rand(2, 84)
    fused = layer(queries, keys, values)
    layer.fused = False
    torch.testing.assert_close(layer(queries, keys, values), fused, atol=1e-6, rtol=1e-5)
    weights = layer.weights(queries, keys)
    assert weights.shape == (2, layer.num_heads, 30, 84)
    torch.testing.assert_close(weights.sum(dim=3), torch.ones(weights.shape[:3]))
    by_maps = torch.einsum("bhqs,bs->bhq", weights, values).mean(dim=1)
    torch.testing.assert_close(by_maps, fused, atol=1e-6, rtol=1e-5)


def test_fused_path_writes_no_attention_map(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = MaskAggregation([16], dropout=0.5).eval()
    monkeypatch.setattr(layer, "weights", None)
    layer(torch.rand(1, 3, 16), torch.rand(1, 4, 16), torch.rand(1, 4))
    layer.train()
    with pytest.raises(TypeError):  # on CPU, dropped attention weights are written out
        layer(torch.rand(1, 3, 16), torch.rand(1, 4, 16), torch.rand(1, 4))


def test_the_fused_kernel_is_really_taken() -> None:
    """torch falls back to writing the maps out, silently, for a value it does not like."""
    q, k, v = torch.rand(1, 64, 64), torch.rand(1, 96, 64), torch.rand(1, 96)
    layer = MaskAggregation([64]).eval()
    with torch.profiler.profile() as profile, torch.no_grad():
        layer(q, k, v)
    names = {event.key for event in profile.key_averages()}
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in names


def test_attention_dropout_keeps_the_mean_and_does_not_renormalise() -> None:
    torch.manual_seed(0)
    layer = MaskAggregation([8], num_heads=1, dropout=0.5).train()
    results = layer(torch.zeros(1, 4000, 8), torch.zeros(1, 2, 8), torch.ones(1, 2))
    assert {round(x, 3) for x in results.flatten().tolist()} == {0.0, 1.0, 2.0}
    assert results.mean().item() == pytest.approx(1.0, abs=0.05)


def test_projections_start_equal_one_pair_a_width() -> None:
    layer = MaskAggregation([16, 24, 16], num_heads=4)
    assert set(layer.query) == set(layer.key) == {"16", "24"}
    for width in layer.query:
        assert torch.equal(layer.query[width].weight, layer.key[width].weight)
        assert layer.query[width].weight is not layer.key[width].weight
    assert layer.keys(torch.rand(2, 24, 3, 3)).shape == (2, 9, 24)


def test_positions_count_from_zero_in_every_support() -> None:
    layer = MaskAggregation([8], num_heads=1).eval()
    one = torch.rand(1, 8, 3, 3)
    keys = layer.keys(one.repeat(2, 1, 1, 1))
    assert torch.equal(keys[0], keys[1])
    moved = F.linear(one.flatten(2).transpose(1, 2), layer.key["8"].weight, layer.key["8"].bias)
    assert not torch.allclose(keys[:1], moved)


def test_region_means_by_hand() -> None:
    keys = torch.tensor([[[3.0, 4.0], [0.0, 2.0], [6.0, 0.0]]])
    values = torch.tensor([[1.0, 1.0, 0.0]])
    linear = MaskAggregation([2], num_heads=1, projection="linear")
    assert linear.region_means(keys, values)[0].tolist() == [[1.5, 3.0], [6.0, 0.0]]
    cosine = MaskAggregation([2], projection="cosine")
    expected = torch.tensor([[1.5, 3.0], [6.0, 0.0]])
    expected = expected / expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(cosine.region_means(keys, values)[0], expected)


def test_region_means_of_an_empty_region_are_zero() -> None:
    means = MaskAggregation([2], projection="cosine").region_means(torch.rand(1, 3, 2), torch.zeros(1, 3))
    assert means[0, 0].tolist() == [0.0, 0.0]
