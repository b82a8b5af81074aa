"""The oracle: which proposal it takes, in which frame, and that it scores as the few-shot evaluator does."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fss_d2.evaluation import FewShotEvaluator, OracleEvaluator, read_rows


def make_pair(
    index: int, proposals: torch.Tensor, target: torch.Tensor, size: tuple[int, int] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """An episode whose network image has the size given (the target's), and a model's output."""
    height, width = target.shape
    episode = {
        "image": torch.zeros((3, *(size or target.shape)), dtype=torch.uint8),
        "height": height,
        "width": width,
        "target": target,
        "class_id": 1,
        "image_id": f"query{index}",
        "episode_index": index,
        "support": [],
        "support_ids": (),
    }
    return episode, {"aux": {"proposals": proposals}}


def make_evaluator(**options: Any) -> OracleEvaluator:
    return OracleEvaluator("unregistered", class_ids=[1], class_names=["ant", "bee"], bootstrap=0, **options)


def test_the_highest_soft_iou_wins_by_hand() -> None:
    """A proposal that spills beats one whose mask is exact, as that is less sure."""
    target = torch.tensor([[1, 1, 0, 255]], dtype=torch.uint8)
    sharp_but_spilling = torch.tensor([[0.95, 0.95, 0.55, 0.45]])  # 1.9 / (2 + 2.9 - 1.9) = 0.633
    exact_but_faint = torch.tensor([[0.60, 0.60, 0.00, 0.00]])  # 1.2 / (2 + 1.2 - 1.2) = 0.6
    evaluator = make_evaluator()
    evaluator.process(
        *([one] for one in make_pair(0, torch.stack([exact_but_faint, sharp_but_spilling]), target))
    )
    scores = evaluator.evaluate()
    assert set(scores) == {"oracle"}
    assert scores["oracle"]["mIoU"] == pytest.approx(100 * 2 / 3)  # the ignored pixel counts nowhere


def test_a_half_is_background() -> None:
    episode, output = make_pair(0, torch.full((1, 1, 2), 0.5), torch.ones((1, 2), dtype=torch.uint8))
    assert not make_evaluator().predict(episode, output).any()


def test_proposals_reach_the_frame_of_the_target() -> None:
    """From stride 4 to the network's image, its padding cut off, and to the target's size."""
    proposals = torch.rand(3, 6, 8)
    target = torch.zeros((30, 40), dtype=torch.uint8)
    target[5:25, 8:30] = 1
    episode, output = make_pair(0, proposals, target, size=(22, 32))
    episode["valid_size"] = (18, 32)
    at_image = F.interpolate(proposals[None], size=(22, 32), mode="bilinear", align_corners=False)
    framed = F.interpolate(at_image[:, :, :18], size=(30, 40), mode="bilinear", align_corners=True)[0]
    overlaps = (framed * target).sum(dim=(1, 2))
    best = (overlaps / (framed.sum(dim=(1, 2)) + target.sum() - overlaps)).argmax()
    np.testing.assert_array_equal(make_evaluator().predict(episode, output), framed[best].numpy() > 0.5)


def test_it_scores_as_the_few_shot_evaluator(tmp_path: Path) -> None:
    """One hard proposal an episode, against the same mask as scores: equal numbers and equal files."""
    options = {"class_ids": [1], "class_names": ["ant", "bee"], "bootstrap": 20}
    oracle = OracleEvaluator("unregistered", tmp_path / "oracle", **options)
    plain = FewShotEvaluator("unregistered", tmp_path / "plain", **options)
    for index in range(6):
        mask, target = (
            (torch.rand(5, 7 + index) > 0.4).float(),
            (torch.rand(5, 7 + index) > 0.5).to(torch.uint8),
        )
        episode, output = make_pair(index, mask[None], target)
        oracle.process([episode], [output])
        plain.process([episode], [{"sem_seg": torch.stack([1 - mask, mask])}])
    assert oracle.evaluate()["oracle"] == plain.evaluate()["few_shot_seg"]
    assert len(read_rows(tmp_path / "oracle" / "episodes.jsonl")) == 6
    summaries = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("oracle", "plain")]
    assert summaries[0] == summaries[1]


def test_it_is_at_least_as_good_as_any_choice_of_hard_masks() -> None:
    masks, target = (torch.rand(4, 6, 6) > 0.5).float(), (torch.rand(6, 6) > 0.5).to(torch.uint8)

    def score(chosen: torch.Tensor) -> float:
        evaluator = make_evaluator()
        evaluator.process(*([one] for one in make_pair(0, chosen, target)))
        return evaluator.evaluate()["oracle"]["mIoU"]

    assert score(masks) == max(score(mask[None]) for mask in masks)


def test_errors_name_the_evaluator_and_the_method() -> None:
    episode, output = make_pair(4, torch.full((1, 1, 2), float("nan")), torch.ones((1, 2), dtype=torch.uint8))
    evaluator = make_evaluator(settings={"method": "DCAMA"})
    with pytest.raises(ValueError, match="episode 4: the proposals hold NaN"):
        evaluator.process([episode], [output])
    with pytest.raises(ValueError, match=r"TEST\.EVALUATORS.*DCAMA gives none"):
        evaluator.process([episode], [{"sem_seg": torch.zeros(2, 1, 2)}])
    plain = FewShotEvaluator("unregistered", class_ids=[1], settings={"method": "PotentialObjectsSegmenter"})
    with pytest.raises(ValueError, match=r"TEST\.EVALUATORS: PotentialObjectsSegmenter gives no scores"):
        plain.process([episode], [output])
