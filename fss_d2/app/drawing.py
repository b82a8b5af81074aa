"""Pictures at the size of a screen, and the files that a visitor's browser fetches."""

import hashlib
import io
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from fss_d2.inference.prediction import Prediction
from fss_d2.io.files import write_atomic
from fss_d2.visualization import class_color, draw_mask, picture_grid
from fss_d2.visualization.panels import attention_panel
from fss_d2.visualization.tiles import draw_regions

__all__ = ["CANVAS", "LARGE", "PAINT_OPACITY", "Point", "VisitorFiles", "attention_rows", "draw_prediction"]
__all__ += ["draw_support", "edited", "jpeg", "on_canvas", "on_screen", "paint_layer"]
__all__ += ["painted_pixels", "to_picture"]

SCREEN, LARGE = 720, 1600  # longer side of a picture, and of one that is enlarged, pixels
# Longer side of the square on which a mask is corrected. Gradio's editor places layers right only if canvas,
# picture and layer have one size.
CANVAS = 720
_AROUND = 235  # grey of what the picture leaves free
_NO_CLASS = (0.25, 0.25, 0.25)  # colour of what does not show the object
PAINT_OPACITY = 0.5  # of the brush: the picture stays visible
_PAINTED = round(255 * PAINT_OPACITY / 2)  # least alpha of a painted pixel: half that of the brush
Point = tuple[float, float]  # (x, y)


def on_screen(picture: np.ndarray, *, smooth: bool = True, side: int = SCREEN) -> np.ndarray:
    """A picture (H, W, ...), or without ``smooth`` a label map, scaled down to ``side`` pixels at most."""
    height, width = _screen_size(*picture.shape[:2], side)
    if (height, width) == picture.shape[:2]:
        return picture
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if smooth else cv2.INTER_NEAREST)


def _screen_size(height: int, width: int, side: int = SCREEN) -> tuple[int, int]:
    factor = min(1.0, side / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def to_picture(point: Point, height: int, width: int) -> Point:
    """The centre of a pixel on the screen, in pixels of the picture (height, width)."""
    (shown_height, shown_width), (x, y) = _screen_size(height, width), point
    if not (0 <= x < shown_width and 0 <= y < shown_height):
        raise ValueError(f"point {point} is outside the picture of {shown_width}x{shown_height}: click in it")
    return (x + 0.5) * width / shown_width, (y + 0.5) * height / shown_height


def draw_support(
    pixels: np.ndarray, mask: np.ndarray | None, number: int | None = 0, corner: Point | None = None
) -> np.ndarray:
    """A support of class ``number`` (None: grey, of none) with its mask (H, W) in {0, 1, 255} or None.

    ``corner``, the first of a box, is drawn as a cross.
    """
    shown = on_screen(pixels)
    if mask is not None:
        color = _NO_CLASS if number is None else class_color(number)
        shown = draw_mask(shown, on_screen(mask, smooth=False), color)
    if corner is not None:
        x, y = _on_screen_point(corner, pixels, shown)
        shown = cv2.drawMarker(shown.copy(), (int(x), int(y)), (255, 40, 40), cv2.MARKER_CROSS, 24, 2)
    return shown


def draw_prediction(
    pixels: np.ndarray,
    prediction: Prediction,
    numbers: Mapping[str, int] | None = None,
    *,
    side: int = SCREEN,
) -> np.ndarray:
    """A picture with its masks in the colours of the classes: ``numbers``, or in their order."""
    labels = on_screen(prediction.labels, smooth=False, side=side)
    colors = [class_color(numbers[name] if numbers else i) for i, name in enumerate(prediction.names)]
    regions = [(labels == i + 1, color) for i, color in enumerate(colors)]
    return draw_regions(on_screen(pixels, side=side), regions)


def on_canvas(pixels: np.ndarray) -> np.ndarray:
    """A picture (H, W, 3) uint8 in the middle of a painter's square canvas, as large as it fits."""
    window, size = _window(*pixels.shape[:2])
    canvas = np.full((CANVAS, CANVAS, 3), _AROUND, np.uint8)
    smooth = cv2.INTER_AREA if max(pixels.shape) > CANVAS else cv2.INTER_LINEAR
    canvas[window] = cv2.resize(pixels, size, interpolation=smooth)
    return canvas


def paint_layer(mask: np.ndarray, number: int) -> np.ndarray:
    """The mask (H, W) bool of a picture `on_canvas` as paint of class ``number``, (h, w, 4) uint8 RGBA."""
    layer = np.zeros((CANVAS, CANVAS, 4), np.uint8)
    color = [round(255 * part) for part in (*class_color(number), PAINT_OPACITY)]
    window, size = _window(*mask.shape)
    layer[window][_resized(mask, size)] = color
    return layer


def edited(mask: np.ndarray, layers: Sequence[np.ndarray]) -> np.ndarray:
    """A mask (H, W) bool that was given to a painter as `paint_layer`, with what changed in it.

    A pixel around each change is taken from the painter, too: there the canvas may not show all of the mask.
    """
    window, size = _window(*mask.shape)
    shown, painted = _resized(mask, size), painted_pixels(layers, CANVAS, CANVAS)[window]
    changed = cv2.dilate((shown ^ painted).astype(np.uint8), np.ones((3, 3), np.uint8))
    own = mask.shape[1], mask.shape[0]
    return np.where(_resized(changed, own), _resized(painted, own), mask)


def _window(height: int, width: int) -> tuple[tuple[slice, slice], tuple[int, int]]:
    """Where a picture lies on the canvas, and its (width, height) there."""
    factor = CANVAS / max(height, width)
    h, w = max(1, round(height * factor)), max(1, round(width * factor))
    top, left = (CANVAS - h) // 2, (CANVAS - w) // 2
    return (slice(top, top + h), slice(left, left + w)), (w, h)


def _resized(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) == 1


def painted_pixels(layers: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """Where layers (h, w, 4) uint8 of any sizes, which cover the whole picture, are painted: bool."""
    painted = np.zeros((height, width), bool)
    for layer in layers:
        alpha = np.ascontiguousarray(layer[:, :, 3])
        painted |= cv2.resize(alpha, (width, height), interpolation=cv2.INTER_NEAREST) >= _PAINTED
    return painted


def attention_rows(
    pixels: np.ndarray,
    point: Point,
    supports: Mapping[str, Sequence[np.ndarray]],
    maps: Mapping[str, Sequence[np.ndarray]],
) -> np.ndarray:
    """A row per class: the picture (H, W, 3) with the point (x, y) marked, then its attention maps.

    ``supports`` are pictures (h, w, 3), ``maps`` their attention (h, w), not negative, by class.
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
    """The folder of one visitor in ``parent``, with a name that nobody can guess; the first file creates it.

    A file is named by its content and never changes: it can be fetched while it is written again. The files
    used longest ago are deleted when all would have more than ``most`` bytes.
    """

    def __init__(self, parent: str | os.PathLike[str], most: int = 2_000_000_000) -> None:
        self.parent, self.most = Path(parent), most
        self.folder = self.parent / secrets.token_hex(16)

    def picture(self, pixels: np.ndarray) -> str:
        """Write a picture (H, W, 3) uint8 as JPEG; return its path."""
        return self.file(jpeg(pixels), ".jpg")

    def layer(self, pixels: np.ndarray) -> str:
        """Write a picture (H, W, 4) uint8 as PNG; return its path."""
        return self.file(_encoded(pixels, format="PNG"), ".png")

    def file(self, content: bytes, ending: str) -> str:
        """Write a file; return its path. ``ending`` may start with a name: "/masks.zip"."""
        path = Path(f"{self.folder / hashlib.sha256(content).hexdigest()}{ending}")
        if path.exists():
            os.utime(path)  # Gradio deletes it a while after its last use
        else:
            self._make_room(len(content))
            write_atomic(path, content)
        return str(path)

    def _make_room(self, size: int) -> None:
        if size > self.most:
            raise ValueError(
                f"the file has more than {self.most // 1_000_000} MB (--max-disk-mb): give fewer pictures"
            )
        files = [(path, path.stat()) for path in self.folder.rglob("*") if path.is_file()]
        total = sum(status.st_size for _, status in files)
        for path, status in sorted(files, key=lambda file: file[1].st_mtime_ns):
            if total + size <= self.most:
                return
            path.unlink(missing_ok=True)
            total -= status.st_size

    def clear(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def jpeg(pixels: np.ndarray) -> bytes:
    """A picture (H, W, 3) uint8 as a JPEG file."""
    return _encoded(pixels, format="JPEG", quality=92, subsampling=0)


def _encoded(pixels: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, **options)
    return buffer.getvalue()
