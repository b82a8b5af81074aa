"""Matching of proposals to segments: costs by hand, reference numbers, what must not change them."""

import math

import pytest
import torch
from torch import Tensor

from fss_d2.modeling.proposals.criterion import HungarianMatcher, cross_entropy_cost, dice_cost
from tests.golden.mmformer import RecordedRand, blocky, load
from tests.modeling.proposals.segments import golden_segments, quadrants

HALF = math.log(3)  # the logit of 3/4


def logits_of(segments: Tensor) -> Tensor:
    """Sure logits, +-8, of masks (..., H, W)."""
    return 16 * segments.float() - 8


def test_cross_entropy_cost_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0], [HALF, -HALF]])
    targets = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.0]])
    half, right, wrong = math.log(2), math.log(4 / 3), math.log(4)  # -log of 1/2, 3/4, 1/4
    expected = [
        [half, half, half],
        [right, wrong, (right / 2 + wrong / 2 + right) / 2],
    ]
    torch.testing.assert_close(cross_entropy_cost(logits, targets), torch.tensor(expected))


def test_dice_cost_by_hand() -> None:
    logits = torch.tensor([[HALF, -HALF, -HALF]])  # probabilities 3/4, 1/4, 1/4
    targets = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    expected = [[1 - (1.5 + 1) / (1.25 + 1 + 1), 1 - (1 + 1) / (1.25 + 2 + 1), 1 - 1 / 2.25]]
    torch.testing.assert_close(dice_cost(logits, targets), torch.tensor(expected))


def test_costs_are_weighted(monkeypatch: pytest.MonkeyPatch) -> None:
    masks, segments = torch.randn(3, 8, 8), quadrants()
    parts = []
    for weights in ((1.0, 0.0), (0.0, 1.0), (2.0, 3.0)):
        monkeypatch.setattr(torch, "rand", RecordedRand("d"))
        matcher = HungarianMatcher(mask_weight=weights[0], dice_weight=weights[1], num_points=64)
        parts.append(matcher.mask_costs(masks, segments))
    torch.testing.assert_close(parts[2], 2 * parts[0] + 3 * parts[1])


def test_reference_costs_and_assignment(monkeypatch: pytest.MonkeyPatch) -> None:
    golden = load("d_matcher")
    masks, segments = blocky("d:pred_masks", 2, 12, 24, 28, 4, 3.0), golden_segments()
    matcher = HungarianMatcher(num_points=512)
    recorded = RecordedRand("d")
    monkeypatch.setattr(torch, "rand", recorded)
    for i in range(2):
        cost = matcher.mask_costs(masks[i], segments[i])
        torch.testing.assert_close(cost, golden[f"cost{i}"], atol=1e-5, rtol=0)
    assert recorded.shapes == [tuple(shape) for shape in golden["rand_shapes"].tolist()]

    monkeypatch.setattr(torch, "rand", RecordedRand("d"))
    for i, (proposals, chosen) in enumerate(matcher(masks, segments)):
        assert torch.equal(proposals, golden[f"src{i}"])
        assert torch.equal(chosen, golden[f"tgt{i}"])


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_finds_the_segments_of_images_of_different_sizes(dtype: torch.dtype) -> None:
    orders = [torch.tensor([2, 0, 3, 1]), torch.tensor([1, 3])]
    segments = [quadrants(16)[orders[0]].to(dtype), quadrants(24)[orders[1]].to(dtype)]
    masks = logits_of(quadrants(8)).expand(2, 4, 8, 8)
    for order, (proposals, chosen) in zip(
        orders, HungarianMatcher(num_points=256)(masks, segments), strict=True
    ):
        assert proposals.dtype == chosen.dtype == torch.int64
        assert torch.equal(order[chosen], proposals)  # proposal i is quadrant i
        assert torch.equal(proposals, order.sort().values)


def test_permuting_segments_permutes_the_assignment() -> None:
    masks, segments = torch.randn(1, 6, 8, 8), quadrants()
    order = torch.tensor([3, 1, 0, 2])
    matcher = HungarianMatcher(num_points=128)
    torch.manual_seed(1)
    ((proposals, chosen),) = matcher(masks, [segments])
    torch.manual_seed(1)
    ((permuted_proposals, permuted_chosen),) = matcher(masks, [segments[order]])
    assert torch.equal(proposals, permuted_proposals)
    assert torch.equal(order[permuted_chosen], chosen)


def test_no_segments_and_more_segments_than_proposals() -> None:
    masks = logits_of(quadrants(8))[None, :2].expand(2, 2, 8, 8)
    none, many = HungarianMatcher(num_points=64)(masks, [torch.zeros(0, 16, 16), quadrants()])
    assert [len(part) for part in none] == [0, 0]
    assert none[0].dtype == none[1].dtype == torch.int64
    assert [part.tolist() for part in many] == [[0, 1], [0, 1]]


def test_class_decides_between_equal_masks() -> None:
    masks = torch.zeros(1, 3, 8, 8)
    classes = torch.tensor([[[0.0, 0.0, 9.0], [0.0, 9.0, 0.0], [9.0, 0.0, 0.0]]])  # no object, 1, 0
    matcher = HungarianMatcher(class_weight=2.0, num_points=16)
    ((proposals, chosen),) = matcher(masks, [quadrants()[:2]], classes, [torch.tensor([0, 1])])
    assert dict(zip(proposals.tolist(), chosen.tolist(), strict=True)) == {2: 0, 1: 1}


def test_assignment_is_the_cheapest_also_under_autocast() -> None:
    masks = torch.randn(1, 5, 8, 8)
    matcher = HungarianMatcher(num_points=512)
    torch.manual_seed(1)
    plain = matcher.mask_costs(masks[0], quadrants())
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        ((proposals, chosen),) = matcher(masks, [quadrants()])
    best = plain[proposals, chosen].sum()
    assert plain.dtype == torch.float32
    for _ in range(20):  # no other assignment is cheaper
        assert best <= plain[torch.randperm(5)[:4], torch.arange(4)].sum()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_costs_that_are_not_finite(value: float) -> None:
    masks = torch.zeros(2, 3, 8, 8)
    masks[1, 0] = value
    with pytest.raises(FloatingPointError, match="image 1 of the batch"):
        HungarianMatcher(num_points=16)(masks, [quadrants(), quadrants()])


def test_errors() -> None:
    with pytest.raises(ValueError, match="all 0"):
        HungarianMatcher(mask_weight=0, dice_weight=0)
    with pytest.raises(ValueError, match="num_points is 0"):
        HungarianMatcher(num_points=0)
    with pytest.raises(ValueError, match="class_weight is 2"):
        HungarianMatcher(class_weight=2)(torch.zeros(1, 3, 8, 8), [quadrants()])
