"""The colour of each class: the same in pictures, label files, the report and the page."""

from functools import cache

import numpy as np
from detectron2.utils.colormap import colormap

from .tiles import IGNORE_COLOR, PREDICTION_COLOR, Color

__all__ = ["class_color", "class_css"]

_APART = 0.3  # distance in RGB between the colours of the first classes


def class_color(number: int) -> Color:
    """RGB in [0, 1] of class ``number``, which starts at 0."""
    palette = _palette()
    return palette[number % len(palette)]


def class_css(number: int) -> str:
    """`class_color` for HTML: "rgb(242, 64, 26)"."""
    return f"rgb({', '.join(str(round(255 * part)) for part in class_color(number))})"


@cache
def _palette() -> tuple[Color, ...]:
    """Detectron2's colours after that of a single class; those that resemble an earlier one come last."""
    first: list[Color] = [PREDICTION_COLOR]
    last: list[Color] = []
    for color in dict.fromkeys(map(tuple, colormap(rgb=True, maximum=1).tolist())):
        apart = min(float(np.linalg.norm(np.subtract(color, other))) for other in (IGNORE_COLOR, *first))
        (first if apart >= _APART else last).append(color)
    return (*first, *last)
