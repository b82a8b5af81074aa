"""Pictures of a predictor's masks, and of the support pixels that a point of an image attends to."""

import io
from collections.abc import Sequence

import numpy as np
from detectron2.utils.colormap import colormap
from PIL import Image, ImageDraw

from fss_d2.inference.prediction import Prediction

from .heat import heat_map
from .tiles import PREDICTION_COLOR, Color, draw_regions, draw_tile, picture_grid, picture_row

__all__ = ["attention_panel", "class_color", "class_map_png", "prediction_panel"]

_LEGEND = (8, 120)  # height and width of a class's strip, pixels


def class_color(number: int) -> Color:
    """RGB in [0, 1] of the class with a number from 0."""
    palette = [PREDICTION_COLOR, *map(tuple, colormap(rgb=True, maximum=1).tolist())]
    return palette[number % len(palette)]


def prediction_panel(image: np.ndarray, prediction: Prediction) -> np.ndarray:
    """Lay the masks over the image (H, W, 3) and put a legend with the confidences below: (H', W', 3)."""
    masks = prediction.masks.values()
    drawn = draw_regions(image, [(mask, class_color(i)) for i, mask in enumerate(masks)])
    legend = [
        draw_tile(f"{name} {confidence:.2f}", _plain(class_color(i)), _LEGEND[0])
        for i, (name, confidence) in enumerate(prediction.confidence.items())
    ]
    return picture_grid([drawn, picture_row(legend)])


def attention_panel(
    image: np.ndarray,
    point: tuple[float, float],
    supports: Sequence[np.ndarray],
    maps: Sequence[np.ndarray],
    *,
    title: str = "query",
    height: int = 240,
) -> np.ndarray:
    """An image with a point (x, y) marked, and beside it where in the supports it looks.

    Args:
        image: (H, W, 3) uint8 RGB.
        point: in pixels.
        supports: K images (h, w, 3).
        maps: K of (h, w), not negative; brightest where the largest of all is.
        title: over the image.
        height: of each tile, pixels.

    Returns:
        (height + caption, W', 3) uint8.

    Raises:
        ValueError: not as many maps as supports.
    """
    if len(supports) != len(maps):
        raise ValueError(f"{len(supports)} supports and {len(maps)} maps of attention: give one for each")
    largest = max(float(attention.max()) for attention in maps)
    tiles = [draw_tile(title, _marked(image, point), height)]
    for number, (support, attention) in enumerate(zip(supports, maps, strict=True), start=1):
        tiles.append(draw_tile(f"support {number}", heat_map(support, attention, high=largest), height))
    return picture_row(tiles)


def class_map_png(labels: np.ndarray) -> bytes:
    """A PNG of a class map (H, W): palette entry 0 background, i + 1 class i, in the colours of pictures.

    Raises:
        ValueError: more classes than a palette has colours.
    """
    if labels.dtype != np.uint8:
        raise ValueError("a PNG's palette has 255 classes: give fewer")
    image = Image.fromarray(labels)
    colors = [(0, 0, 0), *(tuple(round(255 * part) for part in class_color(i)) for i in range(255))]
    image.putpalette([part for color in colors for part in color])
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _plain(color: Color) -> np.ndarray:
    return np.full((*_LEGEND, 3), [round(255 * part) for part in color], np.uint8)


def _marked(image: np.ndarray, point: tuple[float, float]) -> np.ndarray:
    """The image with a ring round a point, a thirtieth of the longer side across."""
    picture = Image.fromarray(image)
    radius = max(image.shape) / 60
    x, y = point
    corners = (x - radius, y - radius, x + radius, y + radius)
    ImageDraw.Draw(picture).ellipse(corners, outline=(255, 40, 40), width=max(1, round(radius / 4)))
    return np.asarray(picture)
