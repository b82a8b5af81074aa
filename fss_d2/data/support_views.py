"""Further views of a support: mirrored, cut out round its object."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .windows import Window, object_window

__all__ = ["SUPPORT_VIEWS", "SupportView", "check_support_views", "support_views"]

SUPPORT_VIEWS = ("whole", "flip", "cut", "cut_flip")

_CONTEXT = 1.5  # sides of a cut, as multiples of the object's


@dataclass(frozen=True)
class SupportView:
    """A part of a support, perhaps mirrored.

    Attributes:
        image: (h, w, 3) uint8.
        mask: (h, w) uint8 in {0, 1, 255}.
        window: of the support's pixels that it shows.
        mirrored: left and right.
    """

    image: np.ndarray
    mask: np.ndarray
    window: Window
    mirrored: bool


def check_support_views(kinds: Sequence[str]) -> tuple[str, ...]:
    """Check FEW_SHOT.TEST.SUPPORT_VIEWS.

    Raises:
        ValueError: none, an unknown one, or one that comes twice.
    """
    kinds = tuple(kinds)
    if not kinds or len(set(kinds)) < len(kinds) or not set(kinds) <= set(SUPPORT_VIEWS):
        choices = ", ".join(SUPPORT_VIEWS)
        raise ValueError(f"FEW_SHOT.TEST.SUPPORT_VIEWS {kinds}: give one or more of {choices}, each once")
    return kinds


def support_views(kinds: Sequence[str], image: np.ndarray, mask: np.ndarray) -> list[SupportView]:
    """Look at a support several times; the method gets each view as a shot of its own.

    Args:
        kinds: of `SUPPORT_VIEWS`: "whole" is the support itself, "flip" mirrors it, "cut" is a window with
            1.5 times the sides of the object's box, where the image has so much, "cut_flip" mirrors that.
        image: (H, W, 3) uint8.
        mask: (H, W) uint8 in {0, 1, 255}, with an object.

    Returns:
        One view for each kind, in their order.
    """
    height, width = mask.shape
    views = []
    for kind in kinds:
        cut = kind.startswith("cut")
        window = object_window(mask, _CONTEXT) if cut else Window(0, 0, width, height)
        mirrored = kind.endswith("flip")
        step = -1 if mirrored else 1
        views.append(SupportView(*(window.of(a)[:, ::step] for a in (image, mask)), window, mirrored))
    return views
