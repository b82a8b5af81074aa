"""Segmentation scores of few-shot episodes, as pure functions of integer pixel counts.

Everything starts from the counts of one episode, ``intersection`` and ``union`` of (background, foreground);
all scores are fractions in [0, 1]. ``counting`` names how a published code base divides:

* ``"hsnet"`` (HSNet, DCAMA): intersection / max(union, 1);
* ``"pfenet"`` (PFENet and its descendants): intersection / (union + 1e-10).

``absent`` says what a class of the split is worth that no episode draws: ``"zero"`` (IoU 0, as both code
bases do) or ``"skip"`` (left out of the mean). ``docs/PROTOCOL.md`` has the formulas side by side.
"""

from collections.abc import Sequence

import numpy as np

__all__ = [
    "ABSENT_CLASSES",
    "COUNTINGS",
    "IGNORE_LABEL",
    "class_iou",
    "class_sums",
    "count_areas",
    "episode_iou",
    "fb_iou",
    "iou",
    "mean_iou",
]

COUNTINGS = ("hsnet", "pfenet")
ABSENT_CLASSES = ("zero", "skip")
IGNORE_LABEL = 255
_PFENET_EPSILON = 1e-10


def count_areas(pred: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count the pixels of one episode; pixels whose target is 255 are counted nowhere.

    Args:
        pred: (H, W) bool or {0, 1}, the predicted foreground.
        target: (H, W) in {0, 1, 255}, the truth.

    Returns:
        ``intersection`` and ``union``, each (2,) int64: background, foreground.

    Raises:
        ValueError: the shapes differ, or a value is none of those above.
    """
    if pred.shape != target.shape:
        raise ValueError(
            f"prediction {pred.shape} and target {target.shape} differ in size; resize the scores first"
        )
    valid = target != IGNORE_LABEL
    joint = 2 * target[valid].astype(np.int64) + pred[valid].astype(np.int64)
    areas = np.bincount(joint, minlength=4)
    if len(areas) > 4:
        raise ValueError("a prediction or target holds values other than 0, 1 and 255; binarise it first")
    true_bg, false_fg, false_bg, true_fg = (int(n) for n in areas)
    wrong = false_fg + false_bg
    return np.array([true_bg, true_fg], np.int64), np.array([true_bg + wrong, true_fg + wrong], np.int64)


def iou(intersection: np.ndarray, union: np.ndarray, counting: str = "hsnet") -> np.ndarray:
    """Divide counts of any one shape element by element, float64; 0 where the union is empty."""
    if counting == "hsnet":
        return intersection / np.maximum(union, 1)
    if counting == "pfenet":
        return intersection / (union + _PFENET_EPSILON)
    raise ValueError(f"TEST.COUNTING is {counting!r}; use one of {', '.join(COUNTINGS)}")


def class_sums(class_ids: np.ndarray, counts: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """Add the counts of the episodes of each class.

    Args:
        class_ids: (N,) the class of each episode.
        counts: (N, ...) integer counts of each episode.
        classes: the C classes of the split, in the order wanted.

    Returns:
        (C, ...) int64; zeros for a class that no episode draws.

    Raises:
        ValueError: an episode's class is not among ``classes``.
    """
    position = {int(c): i for i, c in enumerate(classes)}
    strangers = sorted({int(c) for c in class_ids} - set(position))
    if strangers:
        raise ValueError(
            f"episodes draw class {strangers[0]}, which is not among the split's {list(position)}; "
            "score them on the dataset they were drawn from"
        )
    sums = np.zeros((len(position), *counts.shape[1:]), np.int64)
    np.add.at(sums, np.array([position[int(c)] for c in class_ids], np.intp), counts)
    return sums


def class_iou(
    class_ids: np.ndarray,
    intersection: np.ndarray,
    union: np.ndarray,
    classes: Sequence[int],
    *,
    counting: str = "hsnet",
    absent: str = "zero",
) -> np.ndarray:
    """Foreground IoU of each class, its counts added over all episodes before they are divided.

    Args:
        class_ids: (N,) the class of each episode.
        intersection, union: (N, 2) counts, background and foreground.
        classes: the C classes of the split.

    Returns:
        (C,) float64; a class that no episode draws is 0 (``absent="zero"``) or NaN (``"skip"``).
    """
    check_absent(absent)
    scores = iou(
        class_sums(class_ids, intersection[:, 1], classes),
        class_sums(class_ids, union[:, 1], classes),
        counting,
    )
    if absent == "skip":
        scores[~np.isin(np.asarray(classes), class_ids)] = np.nan
    return scores


def mean_iou(
    class_ids: np.ndarray,
    intersection: np.ndarray,
    union: np.ndarray,
    classes: Sequence[int],
    *,
    counting: str = "hsnet",
    absent: str = "zero",
) -> float:
    """mIoU: the plain mean of `class_iou` over the split's classes (arguments as there)."""
    scores = class_iou(class_ids, intersection, union, classes, counting=counting, absent=absent)
    scores = scores[~np.isnan(scores)]
    return float(scores.mean()) if len(scores) else 0.0


def fb_iou(intersection: np.ndarray, union: np.ndarray, counting: str = "hsnet") -> float:
    """FB-IoU: mean of background and foreground IoU, counts (N, 2) added over all episodes."""
    return float(iou(intersection.sum(axis=0), union.sum(axis=0), counting).mean())


def episode_iou(intersection: np.ndarray, union: np.ndarray, counting: str = "hsnet") -> np.ndarray:
    """Foreground IoU of each episode alone.

    Args:
        intersection, union: (N, 2) counts, background and foreground.

    Returns:
        (N,) float64; NaN where neither prediction nor truth has a foreground pixel, so nothing can be said.
    """
    scores = iou(intersection[:, 1], union[:, 1], counting)
    return np.where(union[:, 1] > 0, scores, np.nan)


def check_absent(absent: str) -> None:
    """Raise ValueError unless ``absent`` is one of `ABSENT_CLASSES`."""
    if absent not in ABSENT_CLASSES:
        raise ValueError(f"TEST.ABSENT_CLASSES is {absent!r}; use one of {', '.join(ABSENT_CLASSES)}")
