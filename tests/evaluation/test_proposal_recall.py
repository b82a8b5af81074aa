"""Average recall: ranking, matching, pooling, and its agreement with COCO's own evaluation."""

import contextlib
import io
import logging
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from detectron2.utils import comm
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fss_d2.evaluation import ProposalRecallEvaluator, format_table
from fss_d2.evaluation.proposals import mask_iou, mask_quality, ranked, ranks_of_finds

SIZE = (24, 32)


def make_image(image_id: int, proposals: torch.Tensor, segments: torch.Tensor) -> tuple[dict[str, Any], ...]:
    """An image at the size of its segments, and a model's output."""
    height, width = segments.shape[1:]
    image = torch.zeros((3, height, width), dtype=torch.uint8)
    inputs = {"image": image, "height": height, "width": width, "image_id": image_id}
    return inputs | {"target_segments": segments}, {"aux": {"proposals": proposals}}


def random_image(seed: int, objects: int, proposals: int = 120) -> tuple[dict[str, Any], ...]:
    """Boxes as objects, overlapping ones too; proposals are boxes near them, each of another confidence."""
    rng = np.random.default_rng(seed)
    corners = np.stack([rng.integers(0, 12, objects), rng.integers(0, 20, objects)], axis=1)
    segments = torch.zeros((objects, *SIZE), dtype=torch.bool)
    for segment, (top, left) in zip(segments, corners, strict=True):
        segment[top : top + 10, left : left + 10] = True
    masks = torch.zeros((proposals, *SIZE))
    for i, mask in enumerate(masks):
        top, left = np.maximum(corners[rng.integers(objects)] + rng.integers(-3, 4, 2), 0)
        mask[top : top + 10, left : left + 10] = (
            1 - 0.4 * (rng.permutation(proposals)[i] + i / 1e3) / proposals
        )
    return make_image(seed, masks, segments)


def score(*images: tuple[dict[str, Any], ...]) -> dict[str, float]:
    evaluator = ProposalRecallEvaluator("boxes")
    evaluator.reset()
    for image, output in images:
        evaluator.process([image], [output])
    return evaluator.evaluate()["proposal_recall"]


def test_quality_is_the_mean_probability_inside() -> None:
    proposals = torch.tensor([[[0.6, 0.8, 0.5]], [[0.5, 0.4, 0.1]], [[0.9, 0.0, 0.0]]])
    torch.testing.assert_close(mask_quality(proposals), torch.tensor([0.7, 0.0, 0.9]))


def test_repeated_proposals_come_last() -> None:
    """Quality 0.9, 0.8, 0.7, 0.6; the second has an IoU of 3/4 with the first, the third one of 1/2."""
    proposals = torch.zeros(4, 1, 6)
    proposals[0, 0, :4], proposals[1, 0, :3] = 0.9, 0.8
    proposals[2, 0, 2:5], proposals[3, 0, :2] = 0.7, 0.6
    assert ranked(proposals).tolist() == [0, 2, 3, 1]
    assert ranked(proposals[[3, 0]]).tolist() == [1, 0]


def test_iou_by_hand() -> None:
    masks = torch.tensor([[[1, 1, 0, 0]], [[0, 0, 0, 0]]]).bool()
    others = torch.tensor([[[1, 0, 0, 0]], [[1, 1, 1, 1]], [[0, 0, 0, 0]]]).bool()
    assert mask_iou(masks, others).tolist() == [[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]


def test_each_proposal_finds_one_object() -> None:
    """The first takes its best object, the third what is left; at 0.8 the third is not good enough."""
    iou = np.array([[0.90, 0.60], [0.30, 0.10], [0.95, 0.70]])
    assert ranks_of_finds(iou, np.array([0.5, 0.8, 0.92])).tolist() == [[0, 2], [0, 3], [2, 3]]
    assert ranks_of_finds(np.zeros((0, 2)), np.array([0.5])).tolist() == [
        [0, 0]
    ]  # 0 proposals: rank 0 is none


def test_recall_by_hand() -> None:
    """Objects of 4 pixels: one found at IoU 1, one at 3/4 (up to the threshold 0.75), one not."""
    segments = torch.zeros((3, 4, 4), dtype=torch.bool)
    segments[0, 0], segments[1, 1], segments[2, 3] = True, True, True
    proposals = torch.full((3, 4, 4), 0.1)
    proposals[0, 0] = 0.9
    proposals[1, 1, :3] = 0.8
    scores = score(make_image(0, proposals, segments))
    assert scores["AR@100"] == pytest.approx(100 * (1 + 6 / 10) / 3)
    assert scores["recall50@100"] == pytest.approx(100 * 2 / 3)


def test_budgets_count_the_best_proposals_first() -> None:
    """The object's own proposal is the least sure of sixty that share no pixel."""
    segments = torch.zeros((1, *SIZE), dtype=torch.bool)
    segments[0, :4] = True
    proposals = torch.zeros((60, *SIZE))
    for i, proposal in enumerate(proposals):
        proposal.view(-1)[320 + 7 * i : 327 + 7 * i] = 0.9
    proposals[7] = torch.where(segments[0], 0.6, 0.0)
    scores = score(make_image(0, proposals, segments))
    assert (scores["AR@10"], scores["AR@50"], scores["AR@100"]) == (0, 0, 100)


def test_it_agrees_with_coco() -> None:
    images = [random_image(seed, objects) for seed, objects in enumerate((1, 4, 7))]
    annotations: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    for image, output in images:
        proposals, of_image = output["aux"]["proposals"], {"image_id": image["image_id"], "category_id": 1}
        for segment in image["target_segments"]:
            area, number = int(segment.sum()), len(annotations) + 1
            one = {"segmentation": _encode(segment), "iscrowd": 0, "area": area, "id": number}
            annotations.append(of_image | one)
        for rank, mask in enumerate(proposals[ranked(proposals)]):
            detections.append(of_image | {"segmentation": _encode(mask > 0.5), "score": 1 / (1 + rank)})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": image["image_id"], "height": SIZE[0], "width": SIZE[1]} for image, _ in images],
            "annotations": annotations,
            "categories": [{"id": 1}],
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(detections), "segm")
        evaluation.params.useCats, evaluation.params.maxDets = 0, [10, 50, 100]
        evaluation.evaluate()
        evaluation.accumulate()
    recall = evaluation.eval["recall"][:, 0, 0, :]  # (thresholds, budgets)
    scores = score(*images)
    assert 5 < scores["AR@10"] < scores["AR@50"] < scores["AR@100"] < 95
    for i, budget in enumerate((10, 50, 100)):
        assert scores[f"AR@{budget}"] == pytest.approx(100 * recall[:, i].mean())
        assert scores[f"recall50@{budget}"] == pytest.approx(100 * recall[0, i])


def _encode(mask: torch.Tensor) -> dict[str, Any]:
    return coco_mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))


def test_an_image_counts_once_whoever_saw_it(monkeypatch: pytest.MonkeyPatch) -> None:
    images = [random_image(seed, 3) for seed in range(3)]
    expected = score(*images)
    assert score(*images, images[0]) == expected
    assert score(*images[:2]) != expected
    other = ProposalRecallEvaluator("boxes")
    for image, output in images[1:]:
        other.process([image], [output])
    theirs = list(other._images.values())
    monkeypatch.setattr(comm, "gather", lambda mine: [mine, theirs])
    assert score(*images[:2]) == expected


def test_names_survive_the_tables() -> None:
    scores = score(random_image(0, 3))
    assert all("-" not in name for name in scores)  # print_csv_format would drop them
    assert "AR@100" in format_table({"a/1shot": {"proposal_recall": scores}})


def test_no_object_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    image, output = random_image(0, 1)
    image["target_segments"] = image["target_segments"][:0]
    evaluator = ProposalRecallEvaluator("boxes")
    with caplog.at_level(logging.WARNING, logger="fss_d2"):
        evaluator.process([image], [output])
        assert evaluator.evaluate() == {}
    assert "No object of boxes" in caplog.text


def test_errors_name_what_is_missing() -> None:
    image, output = random_image(0, 1)
    with pytest.raises(ValueError, match=r"TEST\.EVALUATORS.*Prototype gives none"):
        ProposalRecallEvaluator("boxes", method="Prototype").process([image], [{"sem_seg": torch.zeros(2)}])
    del image["target_segments"]
    with pytest.raises(ValueError, match=r"image 0: no 'target_segments'.*proposal_recall"):
        ProposalRecallEvaluator("boxes").process([image], [output])
