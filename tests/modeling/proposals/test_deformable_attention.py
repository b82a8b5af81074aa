"""Deformable attention: by hand, the two ways of sampling against each other, and the official numbers."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fss_d2.modeling.proposals.deformable_attention import (
    MultiScaleDeformableAttention,
    reference_points,
    sample_by_gather,
    sample_by_grid,
)
from tests.golden.mmformer import load, official_mmformer_state, random

SAMPLERS = (sample_by_grid, sample_by_gather)
SHAPES = [(3, 5), (7, 4), (1, 6)]  # odd sizes, and a single row
PREFIX = "sem_seg_head.pixel_decoder.transformer.encoder.layers.0.self_attn."


def draw(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Values, locations (many outside the maps) and weights of 4 heads, 3 levels, 2 points."""
    tokens = sum(h * w for h, w in SHAPES)
    value = torch.randn(2, tokens, 4, 6, dtype=dtype)
    locations = torch.rand(2, 11, 4, 3, 2, 2, dtype=dtype) * 1.6 - 0.3
    weights = torch.rand(2, 11, 4, 3, 2, dtype=dtype)
    return tuple(x.requires_grad_() for x in (value, locations, weights))


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference relative to the largest value."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.mark.parametrize("sample", SAMPLERS)
def test_samples_by_hand(sample: Callable[..., Tensor]) -> None:
    # One head of one channel; level 0 is [[1, 2], [3, 4]], level 1 is [[10, 20, 30]].
    value = torch.tensor([1.0, 2, 3, 4, 10, 20, 30]).view(1, 7, 1, 1)
    shapes = [(2, 2), (1, 3)]
    points = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.5, 0.5], [1.0, 0.5]])  # two on each level
    # Mean of four pixels; the centre of pixel (1, 0); that of the middle pixel; half outside on the right.
    samples = torch.tensor([2.5, 3.0, 20.0, 15.0])
    for point, expected in enumerate(samples):
        weights = torch.zeros(4)
        weights[point] = 2.0
        found = sample(value, points.view(1, 1, 1, 2, 2, 2), weights.view(1, 1, 1, 2, 2), shapes)
        assert found.item() == pytest.approx(2 * expected.item(), abs=1e-5)
    found = sample(value, points.view(1, 1, 1, 2, 2, 2), torch.full((1, 1, 1, 2, 2), 0.25), shapes)
    assert found.item() == pytest.approx(samples.mean().item(), abs=1e-5)


@pytest.mark.parametrize("sample", SAMPLERS)
def test_far_outside_is_zero(sample: Callable[..., Tensor]) -> None:
    value, _, weights = draw(torch.float32)
    locations = torch.full((2, 11, 4, 3, 2, 2), 7.0)
    locations[..., 0] = -1e12
    assert sample(value, locations, weights, SHAPES).abs().max() == 0


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_both_ways_agree(dtype: torch.dtype, tolerance: float) -> None:
    inputs = draw(dtype)
    outputs = [sample(*inputs, SHAPES) for sample in SAMPLERS]
    assert outputs[0].shape == (2, 11, 24)
    assert (outputs[0] - outputs[1]).abs().max() < tolerance
    upstream = torch.randn_like(outputs[0])
    grid, gather = (torch.autograd.grad(output, inputs, upstream) for output in outputs)
    for name, theirs, ours in zip(("value", "locations", "weights"), grid, gather, strict=True):
        assert theirs.abs().max() > 0, name
        assert relative_error(ours, theirs) < tolerance, name


def test_gather_gradients_are_numerically_right() -> None:
    shapes = [(2, 3), (1, 2)]
    value = torch.randn(2, 8, 2, 2, dtype=torch.float64, requires_grad=True)
    locations = (torch.rand(2, 3, 2, 2, 1, 2, dtype=torch.float64) * 1.4 - 0.2).requires_grad_()
    weights = torch.rand(2, 3, 2, 2, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *x: sample_by_gather(*x, shapes), (value, locations, weights))


def test_gather_gradient_of_one_input_alone() -> None:
    """Frozen values, or frozen locations and weights, get no gradient and do not stop the other's."""
    value, locations, weights = draw(torch.float64)
    everything = torch.autograd.grad(
        sample_by_gather(value, locations, weights, SHAPES).sum(), (value, weights)
    )
    alone = sample_by_gather(value, locations.detach(), weights.detach(), SHAPES).sum()
    assert torch.equal(torch.autograd.grad(alone, value)[0], everything[0])
    alone = sample_by_gather(value.detach(), locations, weights, SHAPES).sum()
    assert torch.equal(torch.autograd.grad(alone, weights)[0], everything[1])


def test_nan_location_is_seen_in_the_output() -> None:
    value, locations, weights = draw(torch.float32)
    locations = locations.detach().clone()
    locations[0, 0, 0, 0, 0, 0] = float("nan")
    found = sample_by_gather(value, locations, weights, SHAPES)
    assert found[0, 0, :6].isnan().all()
    assert not found[1].isnan().any()


def test_reference_points_are_pixel_centres() -> None:
    points = reference_points([(1, 2), (2, 1)], torch.device("cpu"))
    assert points.tolist() == [[0.25, 0.5], [0.75, 0.5], [0.5, 0.25], [0.5, 0.75]]


@pytest.mark.parametrize("sampling", ["grid", "gather"])
def test_official_numbers(sampling: str) -> None:
    golden = load("a_msdeformattn")
    attention = MultiScaleDeformableAttention(sampling=sampling)
    attention.load_state_dict(official_mmformer_state(1, 1, PREFIX), strict=True)
    shapes = [tuple(shape) for shape in golden["spatial_shapes"].tolist()]
    reference = reference_points(shapes, torch.device("cpu"))
    torch.testing.assert_close(reference, golden["ref_points"], rtol=0, atol=1e-7)

    query, value = (random(f"a:{name}", (2, 420, 256)).requires_grad_() for name in ("query", "value"))
    output = attention(query, reference, value, shapes)
    assert relative_error(output[:, ::2], golden["output"]) < 1e-5
    (output * random("a:gout", (2, 420, 256))).sum().backward()
    gradients = {
        "grad_query": query.grad[:, ::4],
        "grad_value": value.grad[:, ::4],
        "grad_sampling_offsets_weight": attention.sampling_offsets.weight.grad[::4],
        "grad_attention_weights_bias": attention.attention_weights.bias.grad,
        "grad_value_proj_bias": attention.value_proj.bias.grad,
    }
    for name, gradient in gradients.items():
        assert relative_error(gradient, golden[name]) < 1e-5, name


def test_first_points_form_a_ring() -> None:
    attention = MultiScaleDeformableAttention()
    expected = load("a_msdeformattn")["init_sampling_offsets_bias"]
    torch.testing.assert_close(attention.sampling_offsets.bias.detach(), expected, rtol=0, atol=1e-6)
    for zero in (attention.sampling_offsets.weight, *attention.attention_weights.parameters()):
        assert zero.abs().max() == 0


def test_auto_is_gather_on_the_cpu() -> None:
    gather, auto = (
        MultiScaleDeformableAttention(16, num_heads=4, num_points=2, sampling=s) for s in ("gather", "auto")
    )
    auto.load_state_dict(gather.state_dict())
    query = torch.randn(1, 49, 16)
    reference = reference_points(SHAPES, query.device)
    assert torch.equal(auto(query, reference, query, SHAPES), gather(query, reference, query, SHAPES))


@pytest.mark.parametrize("sampling", ["grid", "gather"])
def test_autocast_changes_nothing(sampling: str) -> None:
    attention = MultiScaleDeformableAttention(16, num_heads=4, num_points=2, sampling=sampling)
    query = torch.randn(2, 49, 16)
    reference = reference_points(SHAPES, query.device)
    expected = attention(query, reference, query, SHAPES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attention(query, reference, query, SHAPES)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 20}, "8 heads do not divide 20 channels"),
        ({"sampling": "cuda"}, "unknown sampling 'cuda': choose from auto, grid, gather"),
    ],
)
def test_wrong_arguments(arguments: dict[str, int | str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiScaleDeformableAttention(**arguments)
