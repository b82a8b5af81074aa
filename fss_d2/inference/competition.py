"""Which class a pixel belongs to where several claim it."""

from collections.abc import Sequence

import cv2
import numpy as np

__all__ = ["LEAST_SHARE", "share_out", "without_specks"]

LEAST_SHARE = 2000  # an object covers at least 1/2000 of the image

# Of the connected foreground: a smaller part that other classes surround is a speck (docs/BENCHMARKS.md).
_SPECK_SHARE = 0.1
_ROUNDS = 2  # a part that joins its surroundings may leave another one surrounded


def share_out(
    probability: np.ndarray,
    present: Sequence[bool],
    evidence: np.ndarray | None = None,
    threshold: float = 0.5,
    least: Sequence[float] = (),
) -> np.ndarray:
    """Give each pixel to one class, or to the background: (H, W) unsigned integers, i + 1 for class i.

    A class that is present claims a pixel where its probability exceeds the threshold. Of several, the one
    with the most evidence gets it. That is the lead of object over background before the refinement, and how
    much the features resemble the object (`fss_d2.inference.segment`). Refinement sets a lead of 0.04
    wherever it changes a label, so that leads after it say little about two classes, and would speckle an
    object with the others.

    Args:
        probability: (N, H, W), each class against its own background.
        present: of each class.
        evidence: (N, h, w), which covers the image at another resolution; None takes the probability.
        least: see `without_specks`.
    """
    labels = np.zeros(probability.shape[1:], np.min_scalar_type(len(probability)))
    competing = np.flatnonzero(present)
    if len(competing) == 1:
        labels[probability[competing[0]] > threshold] = competing[0] + 1
        return labels
    best = np.full(labels.shape, -np.inf, np.float32)  # evidence of the winner so far
    for i in competing:
        own = probability[i] if evidence is None else _at_size(evidence[i], labels.shape)
        wins = (probability[i] > threshold) & (own > best)
        labels[wins], best[wins] = i + 1, own[wins]
    return without_specks(labels, least)


def _at_size(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return cv2.resize(values, shape[::-1], interpolation=cv2.INTER_LINEAR)


def without_specks(labels: np.ndarray, least: Sequence[float] = ()) -> np.ndarray:
    """Give parts of a class that lie inside objects of other classes to the class most around them.

    A part is 8-connected. It changes its class if it has less than a tenth of the pixels of the connected
    foreground that it lies in, and if more of its edge borders on other classes than on background. The
    largest part of a class stays if it covers 1/2000 of the image: a belt on a coat is no speck. Which pixels
    are background does not change.

    Args:
        labels: (H, W) unsigned integers, 0 background, i + 1 the i-th class.
        least: of each class, the pixels of a part that is never a speck; empty knows no such size.

    Returns:
        (H, W) of the same type; ``labels`` itself where nothing changes.
    """
    for _ in range(_ROUNDS):
        present = np.flatnonzero(np.bincount(labels.ravel()))
        if np.count_nonzero(present) < 2:
            return labels
        parts, classes, areas = _parts(labels, present[present > 0])
        around = _borders(parts, labels, len(classes))  # (parts, classes + 1)
        others = around[:, 1:].sum(axis=1)
        speck = (areas < _SPECK_SHARE * _foreground(parts, areas)) & (others > around[:, 0])
        speck[0] = False
        if least:
            speck &= areas < np.array([0, *least])[classes]
        for label in present[present > 0].tolist():
            largest = np.where(classes == label, areas, 0).argmax()
            speck[largest] &= areas[largest] * LEAST_SHARE < labels.size
        if not speck.any():
            return labels
        classes[speck] = 1 + around[speck, 1:].argmax(axis=1)
        labels = classes[parts].astype(labels.dtype)
    return labels


def _parts(labels: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Number the parts of all classes from 1: their map (H, W), and the class and area of each.

    Part 0 is the background.
    """
    numbers = np.zeros(labels.shape, np.int32)
    classes, areas = [0], [0]
    for label in present.tolist():
        mask = (labels == label).astype(np.uint8)
        count, of_class, statistics, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        inside = of_class > 0
        numbers[inside] = of_class[inside] + (len(classes) - 1)
        classes += [label] * (count - 1)
        areas += statistics[1:, cv2.CC_STAT_AREA].tolist()
    return numbers, np.array(classes), np.array(areas)


def _borders(parts: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """How many neighbours of each label each part has, its own not counted: (parts, labels)."""
    width = int(labels.max()) + 1
    around = np.zeros(count * width, np.int64)
    for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        for here, there in ((one, other), (other, one)):
            edge = labels[here] != labels[there]
            pairs = parts[here][edge].astype(np.int64) * width + labels[there][edge]
            around += np.bincount(pairs, minlength=len(around))
    return around.reshape(count, width)


def _foreground(parts: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """The area of the 8-connected foreground in which each part lies."""
    _, regions = cv2.connectedComponents((parts > 0).astype(np.uint8), connectivity=8)
    region_of = np.zeros(len(areas), np.int64)
    region_of[parts.ravel()] = regions.ravel()
    return np.bincount(region_of, weights=areas)[region_of]
