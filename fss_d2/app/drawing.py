"""Pictures at the size of a screen, and the files that a visitor's browser fetches."""

import hashlib
import io
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from fss_d2.files import write_atomic
from fss_d2.inference.prediction import Prediction
from fss_d2.visualization import draw_mask
from fss_d2.visualization.panels import attention_panel, class_color
from fss_d2.visualization.tiles import SUPPORT_COLOR, draw_regions, picture_grid

__all__ = [
    "Point",
    "VisitorFiles",
    "attention_rows",
    "draw_prediction",
    "draw_support",
    "on_screen",
    "to_picture",
]

_SCREEN = 720  # longer side, pixels
Point = tuple[float, float]  # (x, y)


def on_screen(picture: np.ndarray, *, smooth: bool = True) -> np.ndarray:
    """A picture (H, W, ...), or without ``smooth`` a label map, scaled down to the size of a screen."""
    height, width = _screen_size(*picture.shape[:2])
    if (height, width) == picture.shape[:2]:
        return picture
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if smooth else cv2.INTER_NEAREST)


def _screen_size(height: int, width: int) -> tuple[int, int]:
    factor = min(1.0, _SCREEN / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def to_picture(point: Point, height: int, width: int) -> Point:
    """The centre of a pixel on the screen, in pixels of the picture (height, width).

    Raises:
        ValueError: it lies outside.
    """
    (shown_height, shown_width), (x, y) = _screen_size(height, width), point
    if not (0 <= x < shown_width and 0 <= y < shown_height):
        raise ValueError(f"point {point} is outside the picture of {shown_width}x{shown_height}: click in it")
    return (x + 0.5) * width / shown_width, (y + 0.5) * height / shown_height


def draw_support(pixels: np.ndarray, mask: np.ndarray | None, corner: Point | None = None) -> np.ndarray:
    """A support with its mask (H, W) in {0, 1, 255} or None, and the first corner of a box as a cross."""
    shown = on_screen(pixels)
    if mask is not None:
        shown = draw_mask(shown, on_screen(mask, smooth=False), SUPPORT_COLOR)
    if corner is not None:
        x, y = _on_screen_point(corner, pixels, shown)
        shown = cv2.drawMarker(shown.copy(), (int(x), int(y)), (255, 40, 40), cv2.MARKER_CROSS, 24, 2)
    return shown


def draw_prediction(pixels: np.ndarray, prediction: Prediction) -> np.ndarray:
    """A picture with its masks, one colour per class."""
    labels = on_screen(prediction.labels, smooth=False)
    regions = [(labels == i + 1, class_color(i)) for i in range(len(prediction.names))]
    return draw_regions(on_screen(pixels), regions)


def attention_rows(
    pixels: np.ndarray,
    point: Point,
    supports: Mapping[str, Sequence[np.ndarray]],
    maps: Mapping[str, Sequence[np.ndarray]],
) -> np.ndarray:
    """A row per class: the picture with the point (x, y) marked, then its attention in each support.

    Args:
        pixels: (H, W, 3) uint8.
        point: in pixels of the picture.
        supports: pictures (h, w, 3) of each class.
        maps: (h, w), not negative, one for each support.
    """
    shown = on_screen(pixels)
    place = _on_screen_point(point, pixels, shown)
    rows = [
        attention_panel(
            shown, place, [on_screen(s) for s in supports[name]], [on_screen(m) for m in of_class], title=name
        )
        for name, of_class in maps.items()
    ]
    return picture_grid(rows)


def _on_screen_point(point: Point, pixels: np.ndarray, shown: np.ndarray) -> Point:
    return point[0] * shown.shape[1] / pixels.shape[1], point[1] * shown.shape[0] / pixels.shape[0]


class VisitorFiles:
    """The folder of one visitor, under a name that nobody can guess.

    A file is named by its content and never changes: it can be fetched while it is made again.
    """

    def __init__(self, parent: str | os.PathLike[str]) -> None:
        """
        Args:
            parent: gets the visitor's folder, which is made with the first file.
        """
        self.parent = Path(parent)
        self.folder = self.parent / secrets.token_hex(16)

    def picture(self, pixels: np.ndarray) -> str:
        """Write a picture (H, W, 3) uint8 as JPEG; return its path."""
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="JPEG", quality=92, subsampling=0)
        return self.file(buffer.getvalue(), ".jpg")

    def file(self, content: bytes, ending: str) -> str:
        """Write a file; return its path. ``ending`` may start with a name: "/masks.zip"."""
        path = Path(f"{self.folder / hashlib.sha256(content).hexdigest()}{ending}")
        if path.exists():
            os.utime(path)  # Gradio deletes it a while after its last use
        else:
            write_atomic(path, content)
        return str(path)

    def clear(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
