"""Losses of proposals: reference numbers, numbers by hand, batches without segments, several processes."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from detectron2.utils import comm
from torch import Tensor

from fss_d2.modeling.proposals.criterion import ProposalCriterion
from fss_d2.modeling.proposals.mask_decoder import MaskPredictions
from tests.golden.mmformer import RecordedRand, blocky, load
from tests.modeling.proposals.segments import golden_segments, halves


def predictions(masks: Sequence[Tensor], classes: Sequence[Tensor] = ()) -> MaskPredictions:
    """Predictions that hold what the losses read."""
    return MaskPredictions(masks=masks, queries=torch.empty(0), levels=(), classes=classes)


def whole(count: int, size: int = 16) -> Tensor:
    """``count`` segments that each cover the image: (count, size, size)."""
    return torch.ones(count, size, size, dtype=torch.bool)


@pytest.mark.parametrize(("tag", "images"), [("one", 1), ("two", 2)])
def test_reference_losses(tag: str, images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = load("e_losses")
    masks = [blocky(f"e:{tag}:layer{i}", images, 12, 24, 28, 4, 3.0) for i in range(3)]
    masks[-1].requires_grad_()
    recorded = RecordedRand(f"e:{tag}")
    monkeypatch.setattr(torch, "rand", recorded)
    losses = ProposalCriterion(num_points=512)(predictions(masks), golden_segments()[:images])
    assert recorded.shapes == [tuple(shape) for shape in golden[f"{tag}_rand_shapes"].tolist()]
    assert len(losses) == 6
    for name, loss in losses.items():
        torch.testing.assert_close(loss.detach() / 5, golden[f"{tag}_{name}"], atol=1e-5, rtol=0)
    total = sum(losses.values())
    torch.testing.assert_close(total.detach(), golden[f"{tag}_total"], atol=1e-4, rtol=0)
    total.backward()
    gradient = masks[-1].grad[:, :, ::2, ::2]
    torch.testing.assert_close(gradient, golden[f"{tag}_grad_last"], atol=1e-6, rtol=1e-4)


def test_losses_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # All points in the middle of the image, where the masks have one value each.
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.full(size, 0.5))
    logits = torch.tensor([-9.0, math.log(3), -9.0, -9.0]).view(2, 2, 1, 1).expand(2, 2, 4, 4)
    criterion = ProposalCriterion(mask_weight=2.0, dice_weight=3.0, num_points=8)
    segments = [whole(1), torch.zeros(3, 16, 16)]  # 4 targets, 3 matched
    losses = criterion(predictions([logits]), segments)
    # image 0: probability 3/4 against 1; image 1, twice: sure of nothing against nothing
    nothing = math.log1p(math.exp(-9))
    p = 1 / (1 + math.exp(9))
    dice = 1 - (2 * 8 * 0.75 + 1) / (8 * 0.75 + 8 + 1) + 2 * (1 - 1 / (8 * p + 1))
    assert float(losses["loss_mask"]) == pytest.approx(2 * (math.log(4 / 3) + 2 * nothing) / 4, rel=1e-5)
    assert float(losses["loss_dice"]) == pytest.approx(3 * dice / 4, rel=1e-5)


def test_uncertain_points_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    # A mask unsure (logit 0) on its left half and sure of the rest.
    logits = torch.zeros(1, 1, 16, 16)
    logits[..., 8:] = 9.0
    options: dict[str, Any] = {"num_points": 512, "oversample_ratio": 4.0}
    unsure = ProposalCriterion(importance_ratio=1.0, **options)(predictions([logits]), [whole(1)])
    random = ProposalCriterion(importance_ratio=0.0, **options)(predictions([logits]), [whole(1)])
    assert float(unsure["loss_mask"]) / 5 == pytest.approx(math.log(2), abs=0.02)
    assert float(random["loss_mask"]) / 5 == pytest.approx(math.log(2) / 2, abs=0.06)


def test_permuting_segments_and_images_changes_nothing() -> None:
    masks = torch.randn(2, 5, 8, 8)
    segments = [halves(), (torch.rand(3, 24, 24) > 0.5)]
    criterion = ProposalCriterion(num_points=20_000)
    plain = criterion(predictions([masks]), segments)
    permuted = criterion(predictions([masks.flip(0)]), [segments[1].flip(0), segments[0].flip(0)])
    for name in plain:
        torch.testing.assert_close(plain[name], permuted[name], rtol=0.01, atol=0)


def test_only_matched_proposals_get_a_gradient() -> None:
    masks = torch.cat([8 * halves(8).float() - 4, torch.randn(3, 8, 8)])[None].requires_grad_()
    sum(ProposalCriterion(num_points=64)(predictions([masks]), [halves()]).values()).backward()
    assert (masks.grad.abs().amax(dim=(0, 2, 3)) > 0).tolist() == [True, True, False, False, False]


def test_names_of_losses() -> None:
    masks, classes = [torch.randn(1, 3, 8, 8)] * 3, [torch.randn(1, 3, 5)] * 3
    last = {"loss_mask", "loss_dice"}
    agnostic = ProposalCriterion(num_points=16)(predictions(masks), [halves()])
    assert set(agnostic) == {name + suffix for name in last for suffix in ("", "_0", "_1")}
    alone = ProposalCriterion(num_points=16, deep_supervision=False)(predictions(masks), [halves()])
    assert set(alone) == last
    criterion = ProposalCriterion(num_points=16, num_classes=4, class_weight=2.0)
    full = criterion(predictions(masks, classes), [halves()], [torch.tensor([0, 3])])
    assert set(full) == {name + suffix for name in (*last, "loss_class") for suffix in ("", "_0", "_1")}


@pytest.mark.parametrize("count", [0, 1])
def test_images_without_segments(count: int) -> None:
    masks = [torch.randn(2, 4, 8, 8, requires_grad=True) for _ in range(2)]
    empty = torch.zeros(0, 16, 16, dtype=torch.bool)
    losses = ProposalCriterion(num_points=32)(predictions(masks), [empty, halves()[:count]])
    sum(losses.values()).backward()
    for mask in masks:
        assert torch.equal(mask.grad[0], torch.zeros(4, 8, 8))
        assert bool(mask.grad[1].any()) == bool(count)
    assert all((loss.item() > 0) == bool(count) for loss in losses.values())


def test_class_loss_by_hand() -> None:
    # Proposal 0 is the left half, of class 1; proposal 1 is no object.
    masks = (16 * halves(8).float() - 8)[None]
    classes = torch.tensor([[[0.0, math.log(2), 0.0], [0.0, 0.0, math.log(6)]]])  # 1/2; 6/8
    criterion = ProposalCriterion(class_weight=2.0, no_object_weight=0.1, num_points=64, num_classes=2)
    losses = criterion(predictions([masks], [classes]), [halves()[:1]], [torch.tensor([1])])
    expected = 2 * (math.log(2) + 0.1 * math.log(8 / 6)) / 1.1
    assert float(losses["loss_class"]) == pytest.approx(expected)


def test_class_loss_without_segments_is_of_no_object() -> None:
    classes = torch.zeros(1, 2, 4, requires_grad=True)
    criterion = ProposalCriterion(class_weight=1.0, num_points=16, num_classes=3)
    prediction = predictions([torch.randn(1, 2, 8, 8)], [classes])
    losses = criterion(prediction, [torch.zeros(0, 16, 16)], [torch.zeros(0, dtype=torch.int64)])
    assert losses["loss_class"].item() == pytest.approx(math.log(4))
    losses["loss_class"].backward()
    assert (classes.grad[..., :3] > 0).all()
    assert (classes.grad[..., 3] < 0).all()


def test_number_of_segments_is_a_mean_over_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    masks, criterion = torch.randn(1, 3, 8, 8), ProposalCriterion(num_points=32)

    def losses() -> dict[str, Tensor]:
        torch.manual_seed(3)
        return criterion(predictions([masks]), [halves()])

    alone = losses()
    monkeypatch.setattr(comm, "get_world_size", lambda: 4)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda total: total.fill_(20))  # 5 each, 2 here
    for name, loss in losses().items():
        torch.testing.assert_close(loss, alone[name] * 2 / 5)


def test_half_precision_predictions_and_autocast() -> None:
    masks = torch.randn(1, 3, 8, 8).bfloat16()
    criterion = ProposalCriterion(num_points=64)
    torch.manual_seed(3)
    plain = criterion(predictions([masks.float()]), [halves()])
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = criterion(predictions([masks]), [halves()])
    for name, loss in mixed.items():
        assert loss.dtype == torch.float32
        assert torch.equal(loss, plain[name])


def test_holds_nothing_that_is_saved() -> None:
    assert not ProposalCriterion(num_classes=4, class_weight=1.0).state_dict()


def test_errors() -> None:
    masks, classes = [torch.zeros(1, 3, 8, 8)], [torch.zeros(1, 3, 3)]
    with pytest.raises(ValueError, match=r"oversample_ratio 0\.5"):
        ProposalCriterion(oversample_ratio=0.5)
    with pytest.raises(ValueError, match="2 sets of segments for 1 images"):
        ProposalCriterion()(predictions(masks), [halves(), halves()])
    criterion = ProposalCriterion(num_classes=2, class_weight=1.0, num_points=16)
    with pytest.raises(ValueError, match="labels or class predictions are missing"):
        criterion(predictions(masks), [halves()], [torch.tensor([0, 1])])
    with pytest.raises(ValueError, match="one label per segment"):
        criterion(predictions(masks, classes), [halves()], [torch.tensor([0])])
    with pytest.raises(ValueError, match="segment label 2 but num_classes is 2"):
        criterion(predictions(masks, classes), [halves()], [torch.tensor([0, 2])])
