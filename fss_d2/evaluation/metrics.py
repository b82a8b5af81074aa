"""Segmentation scores of few-shot episodes, as pure functions of integer pixel counts.

All scores are fractions in [0, 1], computed from the counts of single episodes: ``intersection`` and
``union`` of (background, foreground). ``counting`` names how a published code base divides:

* ``"hsnet"`` (HSNet, DCAMA): intersection / max(union, 1);
* ``"pfenet"`` (PFENet and its descendants): intersection / (union + 1e-10).

``absent`` says how a class of the split counts that no episode draws: ``"zero"`` (IoU 0, as in both code
bases) or ``"skip"`` (left out of the mean). ``docs/PROTOCOL.md`` compares the formulas.

ROM and RUM measure region-wise over- and under-segmentation. DCAMA (Shi et al., ECCV 2022, Table S1) reports
both and cites Zhang, Mehta and Caspi, "Rethinking semantic segmentation evaluation for explainability and
model selection", arXiv:2101.08418, but prints no formulas. Our **definition**, where G are the connected true
regions and P the connected predicted regions of the class:

* a true and a predicted region match if they share at least one pixel (there is no threshold);
* G_O = true regions matched by two or more predicted ones, P_O = the predicted regions that match one of G_O,
  m_O = sum over G_O of (number of matches - 1); ROM = tanh(m_O * |G_O| |P_O| / (|G| |P|));
* P_U = predicted regions matched by two or more true ones, G_U = the true regions that match one of P_U,
  m_U = sum over P_U of (number of matches - 1); RUM = tanh(m_U * |G_U| |P_U| / (|G| |P|)).

Both lie in [0, 1), smaller is better, and are 0 if G or P is empty. Three choices are ours: regions are
8-connected, ignored pixels belong to no region, and the value of a run is the mean over its episodes.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

__all__ = ["ABSENT_CLASSES", "COUNTINGS", "IGNORE_LABEL", "area_counts", "areas_of", "check_absent"]
__all__ += ["class_iou", "class_sums", "count_areas", "episode_iou", "fb_iou", "iou", "match_table"]
__all__ += ["mean_iou", "region_wise_measures"]

COUNTINGS = ("hsnet", "pfenet")
ABSENT_CLASSES = ("zero", "skip")
IGNORE_LABEL = 255
_PFENET_EPSILON = 1e-10
_EIGHT_NEIGHBOURS = np.ones((3, 3), int)

_Mask = TypeVar("_Mask", np.ndarray, Tensor)


def count_areas(pred: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count the pixels of one episode; pixels whose target is 255 are not counted.

    Args:
        pred: (H, W) bool or {0, 1}, the predicted foreground.
        target: (H, W) in {0, 1, 255}.

    Returns:
        ``intersection`` and ``union``, each (2,) int64: background, foreground.
    """
    intersection, union = areas_of([int(region.sum()) for region in _regions(pred, target)])
    return np.array(intersection, np.int64), np.array(union, np.int64)


def area_counts(pred: Tensor, target: Tensor) -> Tensor:
    """As `count_areas` on the device of both, without waiting for it: (5,) int64, for `areas_of`."""
    return torch.stack([region.sum() for region in _regions(pred, target)])


def areas_of(counts: Sequence[int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return ``intersection`` and ``union`` of (background, foreground) from the values of `area_counts`."""
    valid, found, true, both, not_allowed = counts
    if not_allowed:
        raise ValueError("a prediction or target holds values other than 0, 1 and 255; binarise it first")
    either = found + true - both
    return (valid - either, both), (valid - both, either)


def _regions(pred: _Mask, target: _Mask) -> list[_Mask]:
    """The pixels that count, those predicted, true, and both, and those whose value is not allowed."""
    if tuple(pred.shape) != tuple(target.shape):
        sizes = f"prediction {tuple(pred.shape)} and target {tuple(target.shape)}"
        raise ValueError(f"{sizes} differ in size; resize the scores first")
    valid, true = target != IGNORE_LABEL, target == 1
    found = (pred == 1) & valid
    allowed = (true | (target == 0)) & ((pred == 0) | (pred == 1))
    return [valid, found, true, found & true, valid & ~allowed]


def iou(intersection: np.ndarray, union: np.ndarray, counting: str = "hsnet") -> np.ndarray:
    """Divide counts of one shape element by element, float64; 0 where the union is empty."""
    if counting == "hsnet":
        return intersection / np.maximum(union, 1)
    if counting == "pfenet":
        return intersection / (union + _PFENET_EPSILON)
    raise ValueError(f"TEST.COUNTING is {counting!r}; use one of {', '.join(COUNTINGS)}")


def class_sums(class_ids: np.ndarray, counts: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """Add the integer counts (N, ...) of the episodes of each class.

    Args:
        class_ids: (N,) the class of each episode.
        classes: the C classes of the split, in the order of the result.

    Returns:
        (C, ...) int64; zeros for a class that no episode draws.
    """
    position = {int(c): i for i, c in enumerate(classes)}
    unknown = sorted({int(c) for c in class_ids} - set(position))
    if unknown:
        what = f"episodes draw class {unknown[0]}, which is not among the split's {list(position)}"
        raise ValueError(f"{what}; score them on the dataset they were drawn from")
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
    """Foreground IoU of each class: the counts are added over all episodes, then divided.

    Args:
        class_ids, classes: as `class_sums`.
        intersection, union: (N, 2) counts, background and foreground.

    Returns:
        (C,) float64; a class that no episode draws is 0 (``absent="zero"``) or NaN (``"skip"``).
    """
    check_absent(absent)
    inter, total = (class_sums(class_ids, counts[:, 1], classes) for counts in (intersection, union))
    scores = iou(inter, total, counting)
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
    """mIoU: the mean of `class_iou` over the split's classes; it has the same arguments."""
    scores = class_iou(class_ids, intersection, union, classes, counting=counting, absent=absent)
    scores = scores[~np.isnan(scores)]
    return float(scores.mean()) if len(scores) else 0.0


def fb_iou(intersection: np.ndarray, union: np.ndarray, counting: str = "hsnet") -> float:
    """FB-IoU: mean of background and foreground IoU, counts (N, 2) added over all episodes."""
    return float(iou(intersection.sum(axis=0), union.sum(axis=0), counting).mean())


def episode_iou(intersection: np.ndarray, union: np.ndarray, counting: str = "hsnet") -> np.ndarray:
    """Foreground IoU (N,) of each episode alone; NaN where neither prediction nor truth has a foreground."""
    scores = iou(intersection[:, 1], union[:, 1], counting)
    return np.where(union[:, 1] > 0, scores, np.nan)


def check_absent(absent: str) -> None:
    """Raise ValueError unless ``absent`` is one of `ABSENT_CLASSES`."""
    if absent not in ABSENT_CLASSES:
        raise ValueError(f"TEST.ABSENT_CLASSES is {absent!r}; use one of {', '.join(ABSENT_CLASSES)}")


def region_wise_measures(pred: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    """Return (ROM, RUM) of one episode; arguments as `count_areas`."""
    matches = match_table(pred, target)
    return _measure(matches), _measure(matches.T)


def match_table(pred: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return (|G|, |P|) bool: whether a true and a predicted foreground region share a pixel."""
    valid = target != IGNORE_LABEL
    true_regions, n_true = ndimage.label((target == 1) & valid, _EIGHT_NEIGHBOURS)
    pred_regions, n_pred = ndimage.label((pred != 0) & valid, _EIGHT_NEIGHBOURS)
    matches = np.zeros((n_true + 1, n_pred + 1), bool)
    matches[true_regions, pred_regions] = True
    return matches[1:, 1:]  # row and column 0 are the background


def _measure(matches: np.ndarray) -> float:
    """tanh(m |split| |parts| / (rows * columns)) for the rows of a match table that match several columns."""
    if not matches.size:
        return 0.0
    per_row = matches.sum(axis=1)
    split = per_row > 1
    parts = matches[split].any(axis=0).sum()
    extra = (per_row[split] - 1).sum()
    return float(np.tanh(extra * split.sum() * parts / matches.size))
