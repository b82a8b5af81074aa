"""Objects of other training pictures pasted into a query, with their masks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from detectron2.config import CfgNode

from .masks import components

__all__ = ["CutOut", "PasteOptions", "cut_object", "paste_copies", "paste_other"]

_LEAST_PART = 0.25  # smaller components, as a share of the largest, are no object to cut out
_MOST_ENLARGED = 2.0  # factor on a side
_MOST_COVERED = 0.5  # of the object's pixels in the query
_TRIES = 10  # places that are tried for an object


@dataclass(frozen=True)
class PasteOptions:
    """Sizes and number of pasted objects; the keys INPUT.AUG of the same names explain them."""

    paste_size: tuple[float, float] = (0.2, 0.6)
    paste_copy_size: tuple[float, float] = (0.05, 0.2)
    paste_copy_count: tuple[int, int] = (1, 6)

    def __post_init__(self) -> None:
        for name in ("paste_size", "paste_copy_size"):
            size = tuple(getattr(self, name))
            if len(size) != 2 or not 0 < size[0] <= size[1] <= 1:
                fix = "give two rising shares of the query's shorter side, above 0 and at most 1"
                raise ValueError(f"INPUT.AUG.{name.upper()} {size}: {fix}")
        count = tuple(self.paste_copy_count)
        if len(count) != 2 or not 1 <= count[0] <= count[1]:
            raise ValueError(f"INPUT.AUG.PASTE_COPY_COUNT {count}: give two rising numbers of at least 1")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "PasteOptions":
        """Read the keys."""
        aug = cfg.INPUT.AUG
        return cls(aug.PASTE_SIZE, aug.PASTE_COPY_SIZE, aug.PASTE_COPY_COUNT)


@dataclass(frozen=True)
class CutOut:
    """An object: colours (h, w, 3), 0 to 255, times coverage; coverage (h, w), 0 to 1; both float32."""

    color: np.ndarray
    coverage: np.ndarray

    def scaled(self, side: float, rng: np.random.Generator) -> "CutOut":
        """Return it mirrored or not, with this longer side in pixels, or enlarged as far as it may be."""
        height, width = self.coverage.shape
        factor = min(side / max(height, width), _MOST_ENLARGED)
        size = (max(round(width * factor), 1), max(round(height * factor), 1))
        step = 1 if rng.random() < 0.5 else -1
        kind = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
        arrays = (np.ascontiguousarray(array[:, ::step]) for array in (self.color, self.coverage))
        return CutOut(*(cv2.resize(array, size, interpolation=kind) for array in arrays))

    def places(self, shape: Sequence[int], rng: np.random.Generator) -> Iterator[tuple[slice, slice]]:
        """Yield random windows (rows, columns) of its size in a picture of this (height, width)."""
        height, width = self.coverage.shape
        for _ in range(_TRIES):
            top, left = rng.integers(shape[0] - height + 1), rng.integers(shape[1] - width + 1)
            yield slice(top, top + height), slice(left, left + width)

    def draw(self, image: np.ndarray, mask: np.ndarray, place: tuple[slice, slice], value: int) -> None:
        """Draw it in place: on the image (H, W, 3) uint8 with soft edges, as `value` in the mask (H, W)."""
        blended = image[place] * (1 - self.coverage[..., None]) + self.color
        image[place] = np.clip(np.rint(blended), 0, 255).astype(np.uint8)
        mask[place][self.coverage >= 0.5] = value


def cut_object(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> CutOut:
    """Cut one connected object (1), not a very small one, out of an image (H, W, 3) uint8 and mask (H, W)."""
    parts = components(mask == 1)
    least = _LEAST_PART * np.count_nonzero(parts[0][1])
    parts = [part for part in parts if np.count_nonzero(part[1]) >= least]
    box, pixels = parts[rng.integers(len(parts))]
    coverage = pixels.astype(np.float32)
    return CutOut(image[box] * coverage[..., None], coverage)


def paste_other(
    image: np.ndarray, mask: np.ndarray, cut: CutOut, size: tuple[float, float], rng: np.random.Generator
) -> None:
    """Paste an object of another class in place; it hides the query's object where it lies over it.

    Its longer side is log-uniform in `size` times the shorter side of the query. If every place would hide
    more than half of the object, nothing is pasted.
    """
    other = cut.scaled(_side(size, mask, rng), rng)
    most = _MOST_COVERED * np.count_nonzero(mask == 1)
    for place in other.places(mask.shape, rng):
        if np.count_nonzero((mask[place] == 1) & (other.coverage > 0)) <= most:
            other.draw(image, mask, place, 0)
            return


def paste_copies(
    image: np.ndarray,
    mask: np.ndarray,
    cut: CutOut,
    size: tuple[float, float],
    count: tuple[int, int],
    rng: np.random.Generator,
) -> None:
    """Paste copies of an object of the query's class in place, apart from the object and from one another.

    Their number is uniform in `count`; a copy that finds no place is left out. The longer side is about the
    same for all, log-uniform in `size` times the shorter side of the query.
    """
    side = _side(size, mask, rng)
    for _ in range(rng.integers(count[0], count[1] + 1)):
        copy = cut.scaled(side * rng.uniform(0.8, 1.0), rng)
        if not (copy.coverage >= 0.5).any():  # too thin to be seen at this size
            continue
        for place in copy.places(mask.shape, rng):
            if not ((mask[place] == 1) & (copy.coverage > 0)).any():
                copy.draw(image, mask, place, 1)
                break


def _side(size: tuple[float, float], mask: np.ndarray, rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(*np.log(size)))) * min(mask.shape)
