"""Scores against hand-computed numbers and against the published code bases."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fss_d2.evaluation.metrics import (
    class_iou,
    class_sums,
    count_areas,
    episode_iou,
    fb_iou,
    iou,
    match_table,
    mean_iou,
    region_wise_measures,
)

GOLDEN = Path(__file__).resolve().parents[1] / "golden"

# Three episodes of classes 4, 4, 7; class 9 is in the split and never drawn.
CLASS_IDS = np.array([4, 4, 7])
INTERSECTION = np.array([[10, 2], [6, 0], [5, 5]])
UNION = np.array([[12, 4], [10, 4], [7, 10]])
SPLIT = [4, 7, 9]


def test_count_areas_by_hand() -> None:
    pred = np.array([[1, 1, 0, 0], [1, 0, 0, 1]])
    target = np.array([[1, 0, 1, 0], [1, 0, 255, 255]])
    intersection, union = count_areas(pred, target)
    assert intersection.tolist() == [2, 2]  # (0,3), (1,1) and (0,0), (1,0)
    assert union.tolist() == [4, 4]  # two wrong pixels are in both unions
    assert intersection.dtype == union.dtype == np.int64


def test_ignored_pixels_count_nowhere() -> None:
    target = np.full((3, 4), 255, np.uint8)
    for pred in (np.zeros((3, 4), bool), np.ones((3, 4), bool)):
        intersection, union = count_areas(pred, target)
        assert intersection.tolist() == union.tolist() == [0, 0]
    assert np.isnan(episode_iou(np.zeros((1, 2)), np.zeros((1, 2)))).all()


def test_counts_of_parts_add_up_to_the_whole() -> None:
    rng = np.random.default_rng(0)
    pred, target = rng.integers(0, 2, (9, 11)), rng.choice([0, 1, 255], (9, 11))
    whole = np.stack(count_areas(pred, target))
    parts = [np.stack(count_areas(pred[rows], target[rows])) for rows in (slice(0, 4), slice(4, None))]
    assert (sum(parts) == whole).all()


@pytest.mark.parametrize(
    ("pred", "target", "message"),
    [
        (np.zeros((2, 2)), np.zeros((2, 3)), "differ in size"),
        (np.zeros((2, 2)), np.full((2, 2), 7), "other than 0, 1 and 255"),
        (np.full((2, 2), 2), np.ones((2, 2)), "other than 0, 1 and 255"),
    ],
)
def test_count_areas_refuses(pred: np.ndarray, target: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        count_areas(pred, target)


def test_counting_rules_by_hand() -> None:
    inter, union = np.array([3, 0]), np.array([6, 0])
    assert iou(inter, union, "hsnet").tolist() == [0.5, 0.0]
    assert iou(inter, union, "pfenet")[0] == 3 / (6 + 1e-10) < 0.5
    assert iou(inter, union, "pfenet")[1] == 0.0
    with pytest.raises(ValueError, match=r"TEST\.COUNTING is 'voc'"):
        iou(inter, union, "voc")


def test_class_and_mean_iou_by_hand() -> None:
    per_class = class_iou(CLASS_IDS, INTERSECTION, UNION, SPLIT)
    assert per_class.tolist() == [2 / 8, 5 / 10, 0.0]  # class 4 pools its two episodes
    assert mean_iou(CLASS_IDS, INTERSECTION, UNION, SPLIT) == (0.25 + 0.5) / 3
    assert mean_iou(CLASS_IDS, INTERSECTION, UNION, SPLIT, absent="skip") == (0.25 + 0.5) / 2
    skipped = class_iou(CLASS_IDS, INTERSECTION, UNION, SPLIT, absent="skip")
    assert np.isnan(skipped).tolist() == [False, False, True]
    with pytest.raises(ValueError, match=r"TEST\.ABSENT_CLASSES"):
        mean_iou(CLASS_IDS, INTERSECTION, UNION, SPLIT, absent="drop")


def test_fb_iou_by_hand_does_not_see_classes() -> None:
    assert fb_iou(INTERSECTION, UNION) == (21 / 29 + 7 / 18) / 2


def test_episode_iou_by_hand() -> None:
    assert episode_iou(INTERSECTION, UNION).tolist() == [0.5, 0.0, 0.5]


def test_a_class_from_another_split_is_an_error() -> None:
    with pytest.raises(ValueError, match="class 7, which is not among"):
        class_sums(CLASS_IDS, UNION, [4, 9])


@pytest.mark.parametrize("counting", ["hsnet", "pfenet"])
def test_order_of_the_episodes_does_not_matter(counting: str) -> None:
    shuffled = np.array([2, 0, 1])
    args = (CLASS_IDS[shuffled], INTERSECTION[shuffled], UNION[shuffled])
    assert mean_iou(*args, SPLIT, counting=counting) == mean_iou(
        CLASS_IDS, INTERSECTION, UNION, SPLIT, counting=counting
    )
    assert fb_iou(*args[1:], counting) == fb_iou(INTERSECTION, UNION, counting)


def test_hsnet_golden() -> None:
    golden = np.load(GOLDEN / "dcama_metric.npz")
    target = np.where(golden["ignore"] == 1, 255, golden["gt"])
    counts = [count_areas(p, t) for p, t in zip(golden["pred"], target, strict=True)]
    inter, union = (np.stack(c) for c in zip(*counts, strict=True))
    assert (inter == golden["area_inter_bg_fg"]).all()
    assert (union == golden["area_union_bg_fg"]).all()
    args = (golden["class_id"], inter, union, golden["fold_class_ids"])
    # The reference divides in float32.
    np.testing.assert_allclose(class_iou(*args), golden["per_class_fg_iou"], rtol=2e-7)
    np.testing.assert_allclose(100 * mean_iou(*args), golden["miou"], rtol=2e-7)
    np.testing.assert_allclose(100 * fb_iou(inter, union), golden["fb_iou"], rtol=2e-7)


def test_pfenet_golden_counts(recipe_tensor) -> None:
    golden = np.load(GOLDEN / "pfenet_data_metric.npz")
    pred, truth, ignore = (
        recipe_tensor(f"input:metric/{name}", (57, 83), "normal") for name in ("pred", "target", "ignore")
    )
    target = np.where(ignore > 1, 255, truth > 0.3)
    inter, union = count_areas(pred > 0, target)
    assert inter.tolist() == golden["metric_intersection"].tolist()
    assert union.tolist() == golden["metric_union"].tolist()
    true_areas = np.bincount(target[target != 255])
    assert true_areas.tolist() == golden["metric_target"].tolist()


def test_pfenet_golden_post_processing(recipe_tensor) -> None:
    """Logits to the square of the longer side, the label top-left in a square of 255."""
    golden = np.load(GOLDEN / "pfenet_data_metric.npz")
    label = golden["label"]
    side = max(label.shape)
    square = np.full((side, side), 255, np.uint8)
    square[: label.shape[0], : label.shape[1]] = label
    logits = torch.from_numpy(recipe_tensor("input:eval/logits", (1, 2, 73, 73), "normal"))
    scores = F.interpolate(logits, (side, side), mode="bilinear", align_corners=True)[0]
    pred = (scores[1] > scores[0]).numpy()
    assert (pred == golden["eval_pred"][0]).all()
    inter, union = count_areas(pred, square)
    assert inter.tolist() == golden["eval_intersection"].tolist()
    assert union.tolist() == golden["eval_union"].tolist()


def _line(text: str) -> np.ndarray:
    """A mask of one line: '#' foreground, '.' background, '?' ignored."""
    return np.array([[{"#": 1, ".": 0, "?": 255}[c] for c in text]], np.uint8)


@pytest.mark.parametrize(
    ("pred", "target", "rom", "rum"),
    [
        ("####", "####", 0, 0),  # one to one
        ("#.#.", "####", np.tanh(1 * 1 * 2 / (1 * 2)), 0),  # one true region in two parts
        ("#.#.#", "#####", np.tanh(2 * 1 * 3 / (1 * 3)), 0),  # in three parts: penalty 2
        ("####", "#..#", 0, np.tanh(1 * 2 * 1 / (2 * 1))),  # two true regions in one
        ("#.#..#", "###...", np.tanh(1 * 1 * 2 / (1 * 3)), 0),  # a false region dilutes
        ("#.###.", "###.#.", np.tanh(1 * 1 * 2 / (2 * 2)), np.tanh(1 * 2 * 1 / (2 * 2))),  # both at once
        ("##..", "..##", 0, 0),  # disjoint
        ("....", "####", 0, 0),
        ("####", "....", 0, 0),
    ],
)
def test_measures_by_hand(pred: str, target: str, rom: float, rum: float) -> None:
    assert region_wise_measures(_line(pred), _line(target)) == pytest.approx((rom, rum))


def test_swapping_prediction_and_truth_swaps_the_measures() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 12, 12)) > 0.6
    assert region_wise_measures(a, b) == region_wise_measures(b, a)[::-1]


def test_touching_corners_are_one_region() -> None:
    corner = np.eye(3, dtype=np.uint8)
    assert match_table(corner, corner).tolist() == [[True]]


def test_ignored_pixels_belong_to_no_region() -> None:
    assert match_table(_line("###"), _line("?#?")).tolist() == [[True]]
    assert match_table(_line("#.#"), _line("?##")).tolist() == [[True]]
    assert match_table(_line("###"), _line("???")).size == 0
