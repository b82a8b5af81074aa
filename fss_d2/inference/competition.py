"""Which class a pixel belongs to where several claim it."""

from collections.abc import Sequence

import cv2
import numpy as np
from torch import Tensor

__all__ = ["LEAST_SHARE", "Contest", "without_specks"]

LEAST_SHARE = 2000  # an object covers at least 1/2000 of the image

# Of the connected foreground: a smaller part that other classes surround is a speck (docs/BENCHMARKS.md).
_SPECK_SHARE = 0.1
_ROUNDS = 2  # a part that joins its surroundings may leave another one surrounded


class Contest:
    """The classes of one image, which claim its pixels one after the other.

    A class claims a pixel where its object leads its background. Of several, the one with the largest lead
    before the refinement gets it: refinement sets a lead of 0.04 wherever it changes a label, so that leads
    after it say little about two classes, and would speckle an object with the others. With one class, its
    mask is where it leads.
    """

    def __init__(self, size: tuple[int, int], count: int) -> None:
        self.probability = np.empty((count, *size), np.float32)
        self._labels = np.zeros(size, np.min_scalar_type(count))
        self._best = np.full(size, -np.inf, np.float32)  # lead of the winner so far, before refinement

    def enter(self, index: int, lead: Tensor, unrefined: Tensor | None = None) -> None:
        """Add a class: its lead (H, W) float32 on the CPU, which is overwritten, and its unrefined lead."""
        own = (lead if unrefined is None else unrefined).numpy()
        wins = (lead.numpy() > 0) & (own > self._best)
        self._labels[wins], self._best[wins] = index + 1, own[wins]
        self.probability[index] = lead.sigmoid_().numpy()

    def labels(self, least: Sequence[float] = ()) -> np.ndarray:
        """(H, W) unsigned integers: i + 1 for class i, 0 for background; see `without_specks`."""
        return without_specks(self._labels, least)


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
