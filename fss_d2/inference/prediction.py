"""The result of segmenting an image."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np

__all__ = ["Instance", "Prediction"]

_USUAL = 0.5  # the threshold that the labels have
_LEAST_SHARE = 2000  # an instance covers at least 1/2000 of the image


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
        labels: (H, W), unsigned integers: i + 1 for the class names[i] with the highest probability; 0,
            background, where no probability exceeds 0.5.
    """

    names: tuple[str, ...]
    probability: np.ndarray
    labels: np.ndarray

    @property
    def masks(self) -> dict[str, np.ndarray]:
        """The mask (H, W) bool of each class; they do not overlap."""
        return {name: self.labels == i for i, name in enumerate(self.names, start=1)}

    @property
    def confidence(self) -> dict[str, float]:
        """The mean probability of each class inside its mask, 0 where the mask is empty."""
        pairs = zip(self.masks.items(), self.probability, strict=True)
        return {
            name: float(probability.mean(where=mask, dtype=np.float64)) if mask.any() else 0.0
            for (name, mask), probability in pairs
        }

    def at(self, threshold: float) -> "Prediction":
        """The prediction with another threshold in [0, 1) for the highest probability, instead of 0.5."""
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold {threshold}: give a number from 0 to below 1")
        if threshold == _USUAL:
            return self
        best = self.probability.argmax(axis=0)
        labels = np.where(self.probability.max(axis=0) > threshold, best + 1, 0)
        return replace(self, labels=labels.astype(self.labels.dtype))

    def instances(self, min_area: int | None = None) -> list[Instance]:
        """`iter_instances` as a list; each mask has the size of the image."""
        return list(self.iter_instances(min_area))

    def iter_instances(self, min_area: int | None = None) -> Iterator[Instance]:
        """The 8-connected parts of the masks, class by class, the largest first.

        Args:
            min_area: pixels that a part must have; None takes 1/2000 of the image.
        """
        if min_area is None:
            min_area = self.labels.size // _LEAST_SHARE
        if min_area < 0:
            raise ValueError(f"min_area {min_area} is below 0: give a number of pixels")
        for number, (name, probability) in enumerate(zip(self.names, self.probability, strict=True), start=1):
            _, parts, statistics, _ = cv2.connectedComponentsWithStats(
                (self.labels == number).astype(np.uint8), connectivity=8
            )
            for part in np.argsort(-statistics[1:, cv2.CC_STAT_AREA], kind="stable") + 1:
                left, top, width, height, area = statistics[part]
                if area >= min_area:
                    window = slice(top, top + height), slice(left, left + width)
                    region = parts[window] == part
                    mask = np.zeros(parts.shape, bool, order="F")  # as RLE runs: encoding is fast
                    mask[window] = region
                    yield Instance(name, mask, float(probability[window].mean(where=region)))
