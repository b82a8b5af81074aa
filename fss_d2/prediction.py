"""What a predictor says of an image."""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

__all__ = ["Instance", "Prediction"]

_LEAST_SHARE = 2000  # of an image that an instance covers at least: one part in so many


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
        probability: (N, H, W) float32 in [0, 1], of each class against its own background. Softmax of the
            method's scores, which are not calibrated: MM-Former's stay between 0.2 and 0.8, for example.
        labels: (H, W), unsigned integers: 0 background, i + 1 the class names[i]. The class with the highest
            probability, background where none exceeds one half.
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

    def instances(self, min_area: int | None = None) -> list[Instance]:
        """The 8-connected parts of the masks, class by class, the largest first.

        Args:
            min_area: pixels that a part must have; None takes a two-thousandth of the image.

        Raises:
            ValueError: an area below 0.
        """
        if min_area is None:
            min_area = self.labels.size // _LEAST_SHARE
        if min_area < 0:
            raise ValueError(f"min_area {min_area} is below 0: give a number of pixels")
        found = []
        for name, probability, mask in zip(self.names, self.probability, self.masks.values(), strict=True):
            _, parts, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
            areas = statistics[1:, cv2.CC_STAT_AREA]
            for part in np.argsort(-areas, kind="stable"):
                if areas[part] >= min_area:
                    region = parts == part + 1
                    found.append(Instance(name, region, float(probability.mean(where=region))))
        return found
