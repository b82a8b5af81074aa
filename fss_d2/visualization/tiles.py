"""Parts of pictures: masks drawn by Detectron2's Visualizer, heat maps, captioned tiles, rows and grids.

Every picture is (H, W, 3) uint8 RGB; TensorBoard's ``storage.put_image`` needs ``transpose(2, 0, 1)``.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.utils.visualizer import Visualizer
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont

from fss_d2.evaluation.metrics import IGNORE_LABEL
from fss_d2.io.files import write_atomic

__all__ = ["CAPTION_HEIGHT", "GAP", "IGNORE_COLOR", "PREDICTION_COLOR", "SUBTRACTED_COLOR", "SUPPORT_COLOR"]
__all__ += ["TRUTH_COLOR", "Color", "draw_mask", "draw_regions", "draw_tile", "heat_map", "picture_grid"]
__all__ += ["picture_row", "save_picture"]

Color = tuple[float, float, float]  # RGB in [0, 1]

SUPPORT_COLOR: Color = (0.10, 0.45, 0.95)
PREDICTION_COLOR: Color = (0.95, 0.25, 0.10)
TRUTH_COLOR: Color = (0.10, 0.75, 0.25)
SUBTRACTED_COLOR: Color = (0.60, 0.20, 0.85)  # proposals that are subtracted from the fused mask
IGNORE_COLOR: Color = (0.6, 0.6, 0.6)
CAPTION_HEIGHT = 18  # pixels
GAP = 4  # pixels between tiles
_HEAT_OPACITY = 0.6
_FONT_SIZES = (12, 11, 10, 9)  # of captions, pixels; the first that fits


def draw_mask(
    image: np.ndarray, mask: np.ndarray, color: Color = PREDICTION_COLOR, *, alpha: float = 0.5
) -> np.ndarray:
    """Lay a mask over an image.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) bool or {0, 1, 255}; pixels of 255 (ignored) are drawn in grey.
        color: of the foreground; its contour is opaque.
        alpha: opacity of the fill, 0 to 1.
    """
    if image.shape[:2] != mask.shape:
        raise ValueError(
            f"image {image.shape[:2]} and mask {mask.shape} differ in size; resize the mask first"
        )
    return draw_regions(image, [(mask == IGNORE_LABEL, IGNORE_COLOR), (mask == 1, color)], alpha)


def draw_regions(
    image: np.ndarray, regions: Sequence[tuple[np.ndarray, Color]], alpha: float = 0.5
) -> np.ndarray:
    """Lay (H, W) bool regions over an image, one after the other."""
    visualizer = Visualizer(image, metadata=MetadataCatalog.get("__unused"))
    for region, color in regions:
        if region.any():
            visualizer.draw_binary_mask(region.astype(np.uint8), color=color, edge_color=color, alpha=alpha)
    return np.ascontiguousarray(visualizer.get_output().get_image())


def draw_tile(
    caption: str,
    image: np.ndarray,
    height: int,
    mask: np.ndarray | None = None,
    color: Color = PREDICTION_COLOR,
    framed: bool = False,
) -> np.ndarray:
    """(height + caption, w, 3): the image scaled to ``height``, its mask drawn, a caption above.

    A caption that is too long is written in a smaller font, then shortened.
    """
    width = max(1, round(image.shape[1] * height / image.shape[0]))
    image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    if mask is not None:
        small = Image.fromarray(mask.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
        image = draw_mask(image, np.asarray(small), color)
    canvas = Image.new("RGB", (width, height + CAPTION_HEIGHT), "white")
    canvas.paste(Image.fromarray(image), (0, CAPTION_HEIGHT))
    pen = ImageDraw.Draw(canvas)
    text, font = _fitting(caption, width - 4)
    pen.text((2, 2), text, fill="black", font=font)
    if framed:
        corners = (0, CAPTION_HEIGHT, width - 1, CAPTION_HEIGHT + height - 1)
        pen.rectangle(corners, outline=tuple(round(255 * x) for x in TRUTH_COLOR), width=3)
    return np.asarray(canvas)


def _fitting(text: str, width: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """The text, shortened if necessary, and the largest font in which it fits into ``width`` pixels."""
    fonts = (ImageFont.load_default(size=size) for size in _FONT_SIZES)
    font = next((font for font in fonts if font.getlength(text) <= width), None)
    if font is not None:
        return text, font
    font = ImageFont.load_default(size=_FONT_SIZES[-1])
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..." if text else "", font


def heat_map(image: np.ndarray, values: np.ndarray, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Lay a map (H, W) over an image (H, W, 3) uint8 RGB, from ``low`` (dark) to ``high`` (bright)."""
    scaled = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    colors = 255 * colormaps["inferno"](scaled)[:, :, :3]
    return ((1 - _HEAT_OPACITY) * image + _HEAT_OPACITY * colors).round().astype(np.uint8)


def picture_row(tiles: Sequence[np.ndarray]) -> np.ndarray:
    """Tiles of one height, side by side on white."""
    gap = np.full((tiles[0].shape[0], GAP, 3), 255, np.uint8)
    return np.concatenate([part for tile in tiles for part in (tile, gap)][:-1], axis=1)


def picture_grid(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Stack pictures (H_i, W_i, 3) of any sizes, left-aligned on white, into (sum H_i + gaps, max W_i, 3)."""
    if not rows:
        raise ValueError("a picture grid needs at least one row; draw an episode first")
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(r, ((0, GAP), (0, width - r.shape[1]), (0, 0)), constant_values=255) for r in rows]
    return np.concatenate(padded)[:-GAP]


def save_picture(path: str | Path, picture: np.ndarray) -> None:
    """Write a picture as PNG; its folder is created."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    write_atomic(path, buffer.getvalue())
