"""Small objects are looked at enlarged: how much, and in which windows, follows from the supports' masks."""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from .views import Window

__all__ = ["Zoom", "choose_zoom", "object_windows", "tile_weights", "tile_windows"]

# Side of an object over the side of its window: of many objects, and of few, whose size in other pictures is
# less certain (docs/BENCHMARKS.md).
_OBJECT_SHARES = {True: 1 / 3, False: 1 / 5}
_SMALL = 0.2  # side of an object over that of the picture; larger ones are seen as well without windows
_MANY = 4  # objects of the typical size in a support
_OVERLAP = 0.25  # of neighbouring tiles, as a share of their side
_MOST_CROPS = 6  # windows of a support; each counts as a shot
_LEAST_NEW = 0.02  # of the object's pixels, which a further window of a support must show


@dataclass(frozen=True)
class Zoom:
    """How a class of small objects is looked at.

    Attributes:
        share: longer side of a window over the longer side of its picture, in (0, 1).
        area: of a typical object, over that of its picture.
        many: the supports show so many objects that their size is certain; else the scores of the windows are
            averaged with those of the picture as it is.
    """

    share: float
    area: float
    many: bool


def choose_zoom(mask: np.ndarray, most_tiles: int) -> Zoom | None:
    """Choose the zoom from the mask of a support (H, W), 1 the object, or None for the picture as it is.

    The picture is enlarged where its objects, that is 8-connected parts of the mask, are small: half of the
    object's pixels lie in parts of the typical size or larger ones. An object gets a third (of few objects, a
    fifth) of the side of its window, or less if a square picture would need more than ``most_tiles`` tiles.
    """
    finest = _finest_share(most_tiles)
    areas = _parts(mask)[0]
    if finest >= 1 or not len(areas):
        return None
    areas = np.sort(areas)
    typical = int(areas[np.searchsorted(np.cumsum(areas), areas.sum() / 2)])
    side = math.sqrt(typical / mask.size)
    many = np.count_nonzero(4 * areas >= typical) >= _MANY
    share = max(side / _OBJECT_SHARES[many], finest)
    return Zoom(share, typical / mask.size, many) if side < _SMALL and share < 1 else None


def _finest_share(most_tiles: int) -> float:
    """The smallest windows of which no more than so many cover a square."""
    return 1 / (1 + (1 - _OVERLAP) * (math.isqrt(max(most_tiles, 1)) - 1))


def _parts(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The areas (N,) and the middles (N, 2), x and y, of the 8-connected parts of the object."""
    found = cv2.connectedComponentsWithStats((mask == 1).astype(np.uint8), connectivity=8)
    return found[2][1:, cv2.CC_STAT_AREA], found[3][1:]


def _window_size(size: tuple[int, int], share: float) -> tuple[int, int]:
    """(height, width) of a window: square, or as narrow as the picture."""
    side = max(1, round(share * max(size)))
    return min(side, size[0]), min(side, size[1])


def tile_windows(size: tuple[int, int], share: float) -> list[Window]:
    """Windows that cover a picture of that (height, width) evenly and overlap by a quarter or more."""
    height, width = _window_size(size, share)
    rows, columns = (_starts(*pair) for pair in zip(size, (height, width), strict=True))
    return [Window(left, top, left + width, top + height) for top in rows for left in columns]


def _starts(length: int, side: int) -> list[int]:
    count = 1 + math.ceil((length - side) / (side * (1 - _OVERLAP)) - 0.05)  # rounding adds no tile
    return np.linspace(0, length - side, max(count, 2 if length > side else 1)).round().astype(int).tolist()


def object_windows(mask: np.ndarray, share: float) -> list[Window]:
    """Up to six windows of a support, each round the middle of an object, that show most of all objects.

    The first shows the most of the object; each further one the most of what the others leave out.
    """
    height, width = _window_size(mask.shape, share)
    left_over = (mask == 1).astype(np.uint8)
    least = _LEAST_NEW * np.count_nonzero(left_over)
    middles = _parts(mask)[1] - (width / 2, height / 2)
    corners = middles.round().astype(int).clip(0, (mask.shape[1] - width, mask.shape[0] - height))
    windows: list[Window] = []
    while len(windows) < _MOST_CROPS:
        sums = cv2.integral(left_over)
        x, y = corners.T
        shown = sums[y + height, x + width] - sums[y, x + width] - sums[y + height, x] + sums[y, x]
        best = int(shown.argmax())
        if shown[best] <= (least if windows else 0):
            break
        left, top = corners[best].tolist()
        windows.append(Window(left, top, left + width, top + height))
        windows[-1].of(left_over)[:] = 0
    return windows


def tile_weights(height: int, width: int) -> np.ndarray:
    """(height, width) float32: the weights by which tiles are blended, 1 at an edge."""
    rows, columns = (np.minimum(np.arange(n), np.arange(n)[::-1]) + 1 for n in (height, width))
    return np.outer(rows, columns).astype(np.float32)
