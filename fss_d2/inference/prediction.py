"""The result of segmenting an image."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import cv2
import numpy as np

from .competition import LEAST_SHARE, without_specks

__all__ = ["Instance", "Prediction", "least_parts"]

_USUAL = 0.5  # the threshold that the labels have
_LEAST_OF_OBJECT = 0.1  # of the typical small object: the pixels of an instance
_NO_SPECK = 0.25  # of the typical small object: a part of this size is an object of its own


class Instance(NamedTuple):
    """One connected part of a class's mask (H, W) bool; its score is the mean probability inside, 0 to 1."""

    name: str
    mask: np.ndarray
    score: float


@dataclass(frozen=True)
class Prediction:
    """The objects of N classes in one image, at its own resolution.

    Attributes:
        names: of the classes, in the order in which their supports were given.
        probability: (N, H, W) float32 in [0, 1], each class against its own background: the softmax of the
            method's scores, which are not calibrated (MM-Former's stay between 0.2 and 0.8, for example).
        labels: (H, W), unsigned integers: i + 1 where the class names[i] was found; 0, background, where no
            probability exceeds 0.5. `fss_d2.inference.competition` says how classes compete.
        expected_iou: by class, the IoU of its mask with the true one that `fss_d2.inference.quality` expects
            from this image, 0 to 1; empty where it was not asked for, or where the supports came from a file
            without what it needs. A class that was not found has the estimate that this is right.
        object_area: of each class of small objects that was seen enlarged (TEST.ZOOM_TILES), the area of a
            typical one in the supports over that of their pictures.
    """

    names: tuple[str, ...]
    probability: np.ndarray
    labels: np.ndarray
    expected_iou: Mapping[str, float] = field(default_factory=dict)
    object_area: Mapping[str, float] = field(default_factory=dict)

    @property
    def masks(self) -> dict[str, np.ndarray]:
        """The mask (H, W) bool of each class; they do not overlap."""
        return {name: self.labels == i for i, name in enumerate(self.names, start=1)}

    @property
    def confidence(self) -> dict[str, float]:
        """The mean probability of each class inside its mask, 0 where the mask is empty.

        It rises with the threshold, whatever becomes of the mask: `expected_iou` says how good a mask is.
        """
        pairs = zip(self.masks.items(), self.probability, strict=True)
        return {
            name: float(probability.mean(where=mask, dtype=np.float64)) if mask.any() else 0.0
            for (name, mask), probability in pairs
        }

    @property
    def soft_iou(self) -> dict[str, float]:
        """Of each class, how well its mask and its probability agree: soft IoU, 0 where the mask is empty."""
        pairs = zip(self.masks.items(), self.probability, strict=True)
        return {
            name: float(p.sum(where=mask, dtype=np.float64) / np.where(mask, 1, p).sum(dtype=np.float64))
            if mask.any()
            else 0.0
            for (name, mask), p in pairs
        }

    @property
    def quality(self) -> dict[str, float]:
        """The IoU to expect of the mask of each class, 0 to 1; where there is no estimate, the soft IoU."""
        return dict(self.expected_iou or self.soft_iou)

    def quality_of(self, found: Collection[str]) -> dict[str, float]:
        """The quality of the classes that were found.

        If none was, it is, of each class, 1 minus its largest probability at any pixel, so that a near miss
        is reviewed.
        """
        if found:
            known = self.quality
            return {name: known[name] for name in self.names if name in found}
        best = self.probability.max(axis=(1, 2)).tolist()
        return {name: 1 - value for name, value in zip(self.names, best, strict=True)}

    def at(self, threshold: float) -> "Prediction":
        """The prediction with another threshold in [0, 1) for the probability, instead of 0.5.

        A pixel keeps its class where that class exceeds the threshold; elsewhere the most probable class gets
        it. The expected IoU of a mask falls with the share of it that changes: it is multiplied by the IoU of
        both masks.
        """
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold {threshold}: give a number from 0 to below 1")
        if threshold == _USUAL:
            return self
        best = self.probability.argmax(axis=0) + 1
        labels = np.where(self.probability.max(axis=0) > threshold, best, 0).astype(self.labels.dtype)
        for i, probability in enumerate(self.probability, start=1):
            labels[(self.labels == i) & (probability > threshold)] = i
        labels = without_specks(labels, least_parts(self.names, self.object_area, labels.size))
        expected = {
            name: float(value * _overlap(self.labels == i, labels == i))
            for i, name in enumerate(self.names, start=1)
            if (value := self.expected_iou.get(name)) is not None
        }
        return replace(self, labels=labels, expected_iou=expected)

    def instances(self, min_area: int | None = None) -> list[Instance]:
        """`iter_instances` as a list; each mask has the size of the image."""
        return list(self.iter_instances(min_area))

    def iter_instances(self, min_area: int | None = None) -> Iterator[Instance]:
        """The 8-connected parts of the masks, class by class, the largest first.

        Args:
            min_area: pixels that a part must have; None takes 1/2000 of the image, or a tenth of a typical
                object where objects are small.
        """
        if min_area is not None and min_area < 0:
            raise ValueError(f"min_area {min_area} is below 0: give a number of pixels")
        for number, (name, probability) in enumerate(zip(self.names, self.probability, strict=True), start=1):
            least = self._least_area(name) if min_area is None else min_area
            _, parts, statistics, _ = cv2.connectedComponentsWithStats(
                (self.labels == number).astype(np.uint8), connectivity=8
            )
            for part in np.argsort(-statistics[1:, cv2.CC_STAT_AREA], kind="stable") + 1:
                left, top, width, height, area = statistics[part]
                if area >= least:
                    window = slice(top, top + height), slice(left, left + width)
                    region = parts[window] == part
                    mask = np.zeros(parts.shape, bool, order="F")  # as RLE runs: encoding is fast
                    mask[window] = region
                    yield Instance(name, mask, float(probability[window].mean(where=region)))

    def _least_area(self, name: str) -> int:
        """The pixels that a part of a class must have, unless the caller chooses."""
        usual = self.labels.size // LEAST_SHARE
        if name not in self.object_area:
            return usual
        return min(usual, int(_LEAST_OF_OBJECT * self.object_area[name] * self.labels.size))


def least_parts(names: Sequence[str], object_area: Mapping[str, float], size: int) -> list[float]:
    """The pixels of each class from which a part of it is never a speck, in an image of that many pixels."""
    if not object_area:
        return []
    return [_NO_SPECK * object_area.get(name, math.inf) * size for name in names]


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """IoU of two masks; 1 where both are empty."""
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 1.0
