"""The result of segmenting an image."""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import cv2
import numpy as np

from .competition import LEAST_SHARE, share_out

__all__ = ["Instance", "Prediction", "check_share", "expected_ious", "least_parts"]

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
            probability of a class that is present exceeds 0.5. `fss_d2.inference.competition` says how
            classes compete.
        mask_iou: by class, the IoU of its mask with the true one that `fss_d2.inference.quality` expects if
            the image shows the class, 0 to 1; empty where there is no estimate, which takes `soft_iou`.
        presence: by class, the calibrated probability that the image shows it, 0 to 1. A class without one
            counts as present for sure.
        present_above: a class of lower presence is judged absent, and has no mask; 0 judges none absent.
        evidence: (N, h, w) float32 at a lower resolution: of each class the lead of its object over its
            background by which classes compete; None takes the probability.
        object_area: of each class of small objects that was seen enlarged (TEST.ZOOM_TILES), the area of a
            typical one in the supports over that of their pictures.
    """

    names: tuple[str, ...]
    probability: np.ndarray
    labels: np.ndarray
    mask_iou: Mapping[str, float] = field(default_factory=dict)
    presence: Mapping[str, float] = field(default_factory=dict)
    present_above: float = 0.0
    evidence: np.ndarray | None = None
    object_area: Mapping[str, float] = field(default_factory=dict)

    @property
    def present(self) -> dict[str, bool]:
        """Whether each class is judged present."""
        return {name: self.presence.get(name, 1.0) >= self.present_above for name in self.names}

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
    def expected_iou(self) -> dict[str, float]:
        """The IoU to expect of each class, see `expected_ious`."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.names) + 1)[1:]
        found = [name for name, count in zip(self.names, counts, strict=True) if count]
        return expected_ious(self.names, found, self.iou_if_present, self.presence)

    @property
    def iou_if_present(self) -> dict[str, float]:
        """`mask_iou`, or where there is no estimate `soft_iou`."""
        return dict(self.mask_iou or self.soft_iou)

    @property
    def lowest_iou(self) -> float:
        """The expected IoU of the worst class: that of the picture as a whole."""
        return min(self.expected_iou.values())

    def at(self, threshold: float = _USUAL, present_above: float | None = None) -> "Prediction":
        """The prediction with other limits, each from 0 to below 1; classes compete anew.

        The expected IoU of a mask falls with the share of it that ``threshold`` changes: `mask_iou` is
        multiplied by the IoU of both masks.

        Args:
            threshold: of the probability of a pixel, instead of 0.5.
            present_above: as the attribute; None keeps it.
        """
        check_share("threshold", threshold)
        limit = self.present_above if present_above is None else present_above
        check_share("present_above", limit)
        changed = self if limit == self.present_above else replace(self, present_above=limit)
        if changed.present != self.present:
            changed = replace(changed, labels=changed._shared_out(_USUAL))
        if threshold == _USUAL:
            return changed
        labels = changed._shared_out(threshold)
        known = {
            name: float(value * _overlap(changed.labels == i, labels == i))
            for i, name in enumerate(self.names, start=1)
            if (value := self.mask_iou.get(name)) is not None
        }
        return replace(changed, labels=labels, mask_iou=known)

    def _shared_out(self, threshold: float) -> np.ndarray:
        present = list(self.present.values())
        least = least_parts(self.names, self.object_area, self.labels.size)
        shared = share_out(self.probability, present, self.evidence, threshold, least)
        return shared.astype(self.labels.dtype)

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


def least_parts(names: Iterable[str], object_area: Mapping[str, float], size: int) -> list[float]:
    """The pixels of each class from which a part of it is never a speck, in an image of that many pixels."""
    if not object_area:
        return []
    return [_NO_SPECK * object_area.get(name, math.inf) * size for name in names]


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """IoU of two masks; 1 where both are empty."""
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 1.0


def expected_ious(
    names: Iterable[str],
    found: Collection[str],
    mask_iou: Mapping[str, float],
    presence: Mapping[str, float],
) -> dict[str, float]:
    """The IoU to expect of each class, 0 to 1.

    Of a class that was found: the probability that the image shows it times `Prediction.mask_iou`, because a
    mask of something else has the IoU 0. Of any other: the probability that the image does not show it.
    """
    given = {name: presence.get(name, 1.0) for name in names}
    return {name: p * mask_iou.get(name, 0.0) if name in found else 1 - p for name, p in given.items()}


def check_share(name: str, value: float) -> None:
    """Raise ValueError with the name of a value that is not from 0 to below 1."""
    if not 0 <= value < 1:
        raise ValueError(f"{name} {value}: give a number from 0 to below 1")
