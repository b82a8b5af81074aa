"""Windows round an object, views of a support, and the frames in which predictions are compared."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from .masks import IGNORE
from .samples import Sample

__all__ = [
    "FRAMES",
    "SUPPORT_VIEWS",
    "SupportView",
    "Window",
    "check_support_views",
    "in_frame",
    "object_window",
    "random_object_window",
    "shown_views",
    "support_views",
    "view_frame",
]

SUPPORT_VIEWS = ("whole", "flip", "cut", "cut_flip")
FRAMES = ("original", "network", "pfenet_square")

_CUT_CONTEXT = 1.5  # sides of a cut, as multiples of the object's
_LEAST_SIDE = 64  # pixels of a window; fewer show hardly anything
_LEAST_ASPECT = 0.7  # shorter over longer side of a window, so that a resize to a square distorts little


class Window(NamedTuple):
    """A rectangle of pixels; left and top belong to it, right and bottom do not."""

    left: int
    top: int
    right: int
    bottom: int

    def of(self, array: np.ndarray) -> np.ndarray:
        """Return the part (bottom - top, right - left, ...) of an array (H, W, ...)."""
        return array[self.top : self.bottom, self.left : self.right]


def object_window(mask: np.ndarray, context: float) -> Window:
    """Return the window round the middle of the object, cut off at the edges of the image.

    Its sides are `context` times those of the box of the object (1 in the mask (H, W)). Without an object it
    is the whole image.
    """

    def in_the_middle(start: int, end: int, side: float, length: int) -> tuple[int, int]:
        middle = (start + end) / 2
        return max(0, int(middle - side / 2)), min(length, int(middle + side / 2 + 0.5))

    return _window(mask, context, in_the_middle)


def random_object_window(mask: np.ndarray, context: float) -> Window:
    """Return a window of that size at a random place (numpy's global generator) with all of the object."""

    def anywhere(start: int, end: int, side: float, length: int) -> tuple[int, int]:
        side = min(length, round(side))
        offset = np.random.randint(max(0, end - side), min(start, length - side) + 1)
        return offset, offset + side

    return _window(mask, context, anywhere)


def _window(
    mask: np.ndarray, context: float, place: Callable[[int, int, float, int], tuple[int, int]]
) -> Window:
    """Return the window with the edges, in y then in x, of `place(start, end, side, length)`.

    Start and end are those of the object, side is that of the window, length that of the image.
    """
    box, sides = [(0, length) for length in mask.shape], mask.shape  # without an object
    if (object_pixels := mask == 1).any():
        hits = [np.flatnonzero(object_pixels.any(axis=axis)) for axis in (1, 0)]
        box = [(int(hit[0]), int(hit[-1]) + 1) for hit in hits]
        sides = [(end - start) * context for start, end in box]
        sides = [max(side, _LEAST_SIDE, _LEAST_ASPECT * max(sides)) for side in sides]
    (top, bottom), (left, right) = (place(*b, *s) for b, *s in zip(box, sides, mask.shape, strict=True))
    return Window(left, top, right, bottom)


@dataclass(frozen=True)
class SupportView:
    """A part of a support, possibly mirrored."""

    image: np.ndarray  # (h, w, 3) uint8
    mask: np.ndarray  # (h, w) uint8 in {0, 1, 255}
    window: Window  # the pixels of the support that the view shows
    mirrored: bool  # whether left and right are exchanged

    def of(self, picture: np.ndarray) -> np.ndarray:
        """Return the part (h, w, ...) of the whole support, or of its mask, that the view shows."""
        return self.window.of(picture)[:, :: -1 if self.mirrored else 1]


def check_support_views(kinds: Sequence[str]) -> tuple[str, ...]:
    """Check FEW_SHOT.TEST.SUPPORT_VIEWS; ValueError for none, an unknown kind, or a kind listed twice."""
    kinds = tuple(kinds)
    if not kinds or len(set(kinds)) < len(kinds) or not set(kinds) <= set(SUPPORT_VIEWS):
        choices = ", ".join(SUPPORT_VIEWS)
        raise ValueError(f"FEW_SHOT.TEST.SUPPORT_VIEWS {kinds}: give one or more of {choices}, each once")
    return kinds


def support_views(kinds: Sequence[str], image: np.ndarray, mask: np.ndarray) -> list[SupportView]:
    """Return one view of a support, image (H, W, 3) and mask (H, W) with an object, for each kind, in order.

    "whole" is the support itself, "flip" mirrors it, "cut" is its `object_window` with 1.5 times the sides of
    the object's box, "cut_flip" mirrors that window.
    """
    height, width = mask.shape
    views = []
    for kind in kinds:
        cut = kind.startswith("cut")
        window = object_window(mask, _CUT_CONTEXT) if cut else Window(0, 0, width, height)
        mirrored = kind.endswith("flip")
        step = -1 if mirrored else 1
        views.append(SupportView(*(window.of(a)[:, ::step] for a in (image, mask)), window, mirrored))
    return views


def shown_views(
    kinds: Sequence[str],
    image: np.ndarray,
    mask: np.ndarray,
    prepare: Callable[[np.ndarray, np.ndarray], Sequence[Sample]],
) -> list[tuple[SupportView, Sequence[Sample]]]:
    """Return the views of a support that still show its object at every size of the network's input.

    The method gets each view as a shot; the number of supports stays that of the episode. `prepare` brings a
    view's image and mask to each size. If the object is lost in all views, the first one alone is returned:
    the caller decides whether that is an error (see `Sample.shows`).
    """
    views = [(view, prepare(view.image, view.mask)) for view in support_views(kinds, image, mask)]
    shown = [(view, samples) for view, samples in views if all(sample.shows(1) for sample in samples)]
    return shown or views[:1]


def in_frame(frame: str, original: np.ndarray, network: torch.Tensor) -> torch.Tensor:
    """Bring a mask to the frame (of `FRAMES`) in which predictions are compared with it.

    `original` (h, w) is the mask at the image's own size, `network` (H, W) the same resized with the image.
    "pfenet_square" gives (max(h, w), max(h, w)): the mask top left, the rest 255.
    """
    if frame == "network":
        return network
    if frame == "original":
        return torch.from_numpy(original)
    side = max(original.shape)
    square = torch.full((side, side), IGNORE, dtype=torch.uint8)
    square[: original.shape[0], : original.shape[1]] = torch.from_numpy(original)
    return square


def view_frame(frame: str, view: Sample, query: Sample, height: int, width: int) -> dict[str, Any]:
    """Return the "height" and "width" to which the scores of a view, the query at another size, are resized.

    If padding must be cut off first, also "valid_size". In the frame "network" the size is that of the query
    without padding, which lies top left in the frame; else `height` and `width`, those of the frame.
    """
    if frame == "network":
        height, width = query.valid_size or query.mask.shape
    sizes: dict[str, Any] = {"height": height, "width": width}
    if frame != "pfenet_square" and view.valid_size is not None:  # PFENet's code resizes padding and all
        sizes["valid_size"] = view.valid_size
    return sizes
