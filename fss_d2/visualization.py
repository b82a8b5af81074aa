"""Pictures of episodes: masks drawn by Detectron2's Visualizer, laid out in rows and grids.

Every picture is (H, W, 3) uint8 RGB; for TensorBoard's ``storage.put_image`` give ``transpose(2, 0, 1)``.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.utils.visualizer import Visualizer
from PIL import Image, ImageDraw, ImageFont

from fss_d2.evaluation.metrics import IGNORE_LABEL, count_areas, iou
from fss_d2.files import write_atomic

__all__ = ["draw_mask", "episode_panel", "picture_grid", "save_picture"]

Color = tuple[float, float, float]  # RGB in [0, 1]

SUPPORT_COLOR: Color = (0.10, 0.45, 0.95)
PREDICTION_COLOR: Color = (0.95, 0.25, 0.10)
TRUTH_COLOR: Color = (0.10, 0.75, 0.25)
IGNORE_COLOR: Color = (0.6, 0.6, 0.6)
_CAPTION_HEIGHT = 18  # pixels
_GAP = 4  # pixels between tiles


def draw_mask(
    image: np.ndarray, mask: np.ndarray, color: Color = PREDICTION_COLOR, *, alpha: float = 0.5
) -> np.ndarray:
    """Lay a mask over an image.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) bool or {0, 1, 255}; pixels of 255 (ignored) are drawn in grey.
        color: RGB in [0, 1] of the foreground, its contour drawn solid.
        alpha: opacity of the fill, 0 to 1.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: image and mask differ in size.
    """
    if image.shape[:2] != mask.shape:
        raise ValueError(
            f"image {image.shape[:2]} and mask {mask.shape} differ in size; resize the mask first"
        )
    visualizer = Visualizer(image, metadata=MetadataCatalog.get("__unused"))
    for region, shade in ((mask == IGNORE_LABEL, IGNORE_COLOR), (mask == 1, color)):
        if region.any():
            visualizer.draw_binary_mask(region.astype(np.uint8), color=shade, edge_color=shade, alpha=alpha)
    return np.ascontiguousarray(visualizer.get_output().get_image())


def episode_panel(
    inputs: Mapping[str, Any],
    output: Mapping[str, Any] | np.ndarray | None = None,
    *,
    class_name: str | None = None,
    height: int = 192,
) -> np.ndarray:
    """One episode as a row: each support with its mask, the query, the prediction, the truth.

    Args:
        inputs: a mapper's dict; without "target" the truth is left out.
        output: the model's dict ("sem_seg", (2, h, w) scores) or a mask (h, w); None draws no prediction.
        class_name: shown over the first support.
        height: of each tile, pixels; widths keep the tile's aspect ratio.

    Returns:
        (height + caption, W, 3) uint8, tiles side by side on white.
    """
    title = f": {class_name}" if class_name else ""
    tiles = [
        _tile(f"support {i + 1}{title}", _picture(s["image"]), height, np.asarray(s["mask"]), SUPPORT_COLOR)
        for i, s in enumerate(inputs["support"])
    ]
    query = _query_in_score_frame(inputs)
    tiles.append(_tile("query", query, height))
    target = None if inputs.get("target") is None else np.asarray(inputs["target"])
    if output is not None:
        pred = _mask(output)
        tiles.append(_tile("prediction" + _score(pred, target), query, height, pred, PREDICTION_COLOR))
    if target is not None:
        tiles.append(_tile("truth", query, height, target, TRUTH_COLOR))
    gap = np.full((height + _CAPTION_HEIGHT, _GAP, 3), 255, np.uint8)
    return np.concatenate([part for tile in tiles for part in (tile, gap)][:-1], axis=1)


def picture_grid(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Stack pictures (H_i, W_i, 3) of any sizes, left-aligned on white, into (sum H_i + gaps, max W_i, 3).

    Raises:
        ValueError: there are none.
    """
    if not rows:
        raise ValueError("a picture grid needs at least one row; draw an episode first")
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(r, ((0, _GAP), (0, width - r.shape[1]), (0, 0)), constant_values=255) for r in rows]
    return np.concatenate(padded)[:-_GAP]


def save_picture(path: str | Path, picture: np.ndarray) -> None:
    """Write a picture as PNG, all or nothing; the folder is made."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    write_atomic(path, buffer.getvalue())


def _query_in_score_frame(inputs: Mapping[str, Any]) -> np.ndarray:
    """The query (height, width, 3) as the scores see it: cropped to its valid part, then resized."""
    query = _picture(inputs["image"])
    valid_height, valid_width = inputs.get("valid_size", query.shape[:2])
    query = query[:valid_height, :valid_width]
    size = (int(inputs.get("width", valid_width)), int(inputs.get("height", valid_height)))
    return np.asarray(Image.fromarray(query).resize(size, Image.Resampling.BILINEAR))


def _picture(image: torch.Tensor) -> np.ndarray:
    """(3, H, W) tensor, 0 to 255 -> (H, W, 3) uint8."""
    return np.ascontiguousarray(image.detach().cpu().clamp(0, 255).byte().permute(1, 2, 0).numpy())


def _mask(output: Mapping[str, Any] | np.ndarray) -> np.ndarray:
    """(h, w) bool from a model's dict or from a mask."""
    if isinstance(output, Mapping):
        background, foreground = output["sem_seg"]
        return (foreground > background).detach().cpu().numpy()
    return np.asarray(output).astype(bool)


def _score(pred: np.ndarray, target: np.ndarray | None) -> str:
    if target is None:
        return ""
    intersection, union = count_areas(pred, target)
    return f" (IoU {100 * iou(intersection, union)[1]:.1f})"


def _tile(
    caption: str,
    image: np.ndarray,
    height: int,
    mask: np.ndarray | None = None,
    color: Color = PREDICTION_COLOR,
) -> np.ndarray:
    """(height + caption, w, 3): the image scaled to ``height``, its mask drawn, a caption above."""
    width = max(1, round(image.shape[1] * height / image.shape[0]))
    image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    if mask is not None:
        small = Image.fromarray(mask.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
        image = draw_mask(image, np.asarray(small), color)
    canvas = Image.new("RGB", (width, height + _CAPTION_HEIGHT), "white")
    canvas.paste(Image.fromarray(image), (0, _CAPTION_HEIGHT))
    ImageDraw.Draw(canvas).text((2, 2), caption, fill="black", font=ImageFont.load_default(size=12))
    return np.asarray(canvas)
