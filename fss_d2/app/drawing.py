"""Pictures of the size of a screen: what the page shows, and points on them."""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from fss_d2.inference.prediction import Prediction
from fss_d2.visualization import draw_mask
from fss_d2.visualization.panels import attention_panel, class_color
from fss_d2.visualization.tiles import SUPPORT_COLOR, draw_regions, picture_grid

__all__ = ["attention_rows", "draw_prediction", "draw_support", "on_screen", "to_picture"]

SCREEN = 720  # pixels of the longer side
Point = tuple[float, float]  # (x, y)


def screen_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) at which a picture is shown: not above `SCREEN`, and never enlarged."""
    factor = min(1.0, SCREEN / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def on_screen(picture: np.ndarray, *, smooth: bool = True) -> np.ndarray:
    """A picture (H, W, ...) or, not smooth, a map of labels at the size at which it is shown."""
    height, width = screen_size(*picture.shape[:2])
    if (height, width) == picture.shape[:2]:
        return picture
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if smooth else cv2.INTER_NEAREST)


def to_picture(point: Point, height: int, width: int) -> Point:
    """The middle of a shown pixel, in pixels of the picture (height, width).

    Raises:
        ValueError: it lies outside.
    """
    (shown_height, shown_width), (x, y) = screen_size(height, width), point
    if not (0 <= x < shown_width and 0 <= y < shown_height):
        raise ValueError(f"point {point} is outside the picture of {shown_width}x{shown_height}: click in it")
    return (x + 0.5) * width / shown_width, (y + 0.5) * height / shown_height


def draw_support(pixels: np.ndarray, mask: np.ndarray | None, corner: Point | None = None) -> np.ndarray:
    """A support with its mask (H, W) in {0, 1, 255} or none, and a first corner of a box as a cross."""
    shown = on_screen(pixels)
    if mask is not None:
        shown = draw_mask(shown, on_screen(mask, smooth=False), SUPPORT_COLOR)
    if corner is not None:
        height, width = pixels.shape[:2]
        x, y = corner[0] * shown.shape[1] / width, corner[1] * shown.shape[0] / height
        shown = cv2.drawMarker(shown.copy(), (int(x), int(y)), (255, 40, 40), cv2.MARKER_CROSS, 24, 2)
    return shown


def draw_prediction(pixels: np.ndarray, prediction: Prediction) -> np.ndarray:
    """Masks laid over a picture, each class in its colour."""
    labels = on_screen(prediction.labels, smooth=False)
    regions = [(labels == i + 1, class_color(i)) for i in range(len(prediction.names))]
    return draw_regions(on_screen(pixels), regions)


def attention_rows(
    pixels: np.ndarray,
    point: Point,
    supports: Mapping[str, Sequence[np.ndarray]],
    maps: Mapping[str, Sequence[np.ndarray]],
) -> np.ndarray:
    """A row for each class: the picture with the point (x, y) marked, then where in its supports it looks.

    Args:
        pixels: (H, W, 3) uint8.
        point: in pixels of the picture.
        supports: pictures (h, w, 3) by class.
        maps: (h, w), not negative, one for each support.
    """
    shown = on_screen(pixels)
    place = (point[0] * shown.shape[1] / pixels.shape[1], point[1] * shown.shape[0] / pixels.shape[0])
    rows = [
        attention_panel(
            shown, place, [on_screen(s) for s in supports[name]], [on_screen(m) for m in of_class], title=name
        )
        for name, of_class in maps.items()
    ]
    return picture_grid(rows)
