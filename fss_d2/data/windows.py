"""Windows round the object of a mask."""

from typing import NamedTuple

import numpy as np

__all__ = ["Window", "object_window", "random_object_window"]

_LEAST_SIDE = 64  # pixels; less is hardly a picture
_LEAST_ASPECT = 0.7  # of the shorter side to the longer one, so that a resize to a square distorts little


class Window(NamedTuple):
    """A rectangle of pixels; left and top belong to it, right and bottom do not."""

    left: int
    top: int
    right: int
    bottom: int

    def of(self, array: np.ndarray) -> np.ndarray:
        """The part (bottom - top, right - left, ...) of an array (H, W, ...)."""
        return array[self.top : self.bottom, self.left : self.right]


def object_window(mask: np.ndarray, context: float) -> Window:
    """Cut round the middle of the object; what would lie outside the image is left away.

    Args:
        mask: (H, W), the object is 1.
        context: sides of the window as multiples of the object's box.

    Returns:
        The window; the whole image where there is no object.
    """
    box, sides = _box_and_sides(mask, context)
    edges = []
    for (start, end), side, length in zip(box, sides, mask.shape, strict=True):
        middle = (start + end) / 2
        edges.append((max(0, int(middle - side / 2)), min(length, int(middle + side / 2 + 0.5))))
    (top, bottom), (left, right) = edges
    return Window(left, top, right, bottom)


def random_object_window(mask: np.ndarray, context: float) -> Window:
    """A window of the same size somewhere in the image with all of the object in it.

    Random numbers come from numpy's global generator, as in Detectron2's augmentations.
    """
    box, sides = _box_and_sides(mask, context)
    edges = []
    for (start, end), side, length in zip(box, sides, mask.shape, strict=True):
        side = min(length, round(side))
        first, last = max(0, end - side), min(start, length - side)
        offset = np.random.randint(first, last + 1)
        edges.append((offset, offset + side))
    (top, bottom), (left, right) = edges
    return Window(left, top, right, bottom)


def _box_and_sides(mask: np.ndarray, context: float) -> tuple[list[tuple[int, int]], tuple[float, float]]:
    """((top, bottom), (left, right)) of the object, and (height, width) of the window round it."""
    object_pixels = mask == 1
    if not object_pixels.any():
        height, width = mask.shape
        return [(0, height), (0, width)], (height, width)
    box = []
    for axis in (1, 0):
        hit = np.flatnonzero(object_pixels.any(axis=axis))
        box.append((int(hit[0]), int(hit[-1]) + 1))
    sides = [(end - start) * context for start, end in box]
    least = max(_LEAST_SIDE, _LEAST_ASPECT * max(sides))
    return box, (max(sides[0], least), max(sides[1], least))
