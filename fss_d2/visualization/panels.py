"""Pictures of episodes, of predicted masks, and of attention between an image and its supports."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from fss_d2.evaluation.metrics import count_areas, iou

from .colors import class_color
from .tiles import (
    PREDICTION_COLOR,
    SUPPORT_COLOR,
    TRUTH_COLOR,
    Color,
    draw_regions,
    draw_tile,
    heat_map,
    picture_grid,
    picture_row,
    save_picture,
)

__all__ = ["attention_panel", "class_map_png", "episode_panel", "prediction_panel"]
__all__ += ["query_in_score_frame", "save_episode_panel"]

_LEGEND = (8, 120)  # height and width of a class's strip, pixels


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
        height: of each tile, pixels; widths keep the tile's aspect ratio.

    Returns:
        (height + caption, W, 3) uint8, tiles side by side on white.
    """
    title = f": {class_name}" if class_name else ""
    tiles = []
    for i, s in enumerate(inputs["support"], start=1):
        caption, mask = f"support {i}{title}", np.asarray(s["mask"])
        tiles.append(draw_tile(caption, _picture(s["image"]), height, mask, SUPPORT_COLOR))
    query = query_in_score_frame(inputs)
    tiles.append(draw_tile("query", query, height))
    target = None if inputs.get("target") is None else np.asarray(inputs["target"])
    if output is not None:
        pred = _mask(output)
        tiles.append(draw_tile("prediction" + _score(pred, target), query, height, pred, PREDICTION_COLOR))
    if target is not None:
        tiles.append(draw_tile("truth", query, height, target, TRUTH_COLOR))
    return picture_row(tiles)


def save_episode_panel(
    file: Path, episode: Mapping[str, Any], pred: np.ndarray, class_name: str | None
) -> None:
    """Write the picture of `episode_panel`, as `FewShotEvaluator` asks for it."""
    save_picture(file, episode_panel(episode, pred, class_name=class_name))


def query_in_score_frame(inputs: Mapping[str, Any]) -> np.ndarray:
    """The query (height, width, 3) as the scores see it: cropped to its valid part, then resized."""
    query = _picture(inputs["image"])
    valid_height, valid_width = inputs.get("valid_size", query.shape[:2])
    query = query[:valid_height, :valid_width]
    size = (int(inputs.get("width", valid_width)), int(inputs.get("height", valid_height)))
    return np.asarray(Image.fromarray(query).resize(size, Image.Resampling.BILINEAR))


def prediction_panel(
    image: np.ndarray, masks: Mapping[str, np.ndarray], expected_iou: Mapping[str, float]
) -> np.ndarray:
    """Lay the masks of a `Prediction` over the image, above a legend with their expected IoU.

    Args:
        image: (H, W, 3) uint8 RGB.
        masks: (H, W) bool by class name; ``expected_iou`` has the same order.
    """
    drawn = draw_regions(image, [(mask, class_color(i)) for i, mask in enumerate(masks.values())])
    legend = [
        draw_tile(f"{name} {value:.2f}", _plain(class_color(i)), _LEGEND[0])
        for i, (name, value) in enumerate(expected_iou.items())
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
    """An image with a point (x, y) marked, then the supports with the attention of that point.

    Args:
        image: (H, W, 3) uint8 RGB, under the caption ``title``; ``point`` is in its pixels.
        supports: K images (h, w, 3).
        maps: K of (h, w), not negative; all have one scale, up to the largest value.
        height: of each tile, pixels.
    """
    if len(supports) != len(maps):
        raise ValueError(f"{len(supports)} supports and {len(maps)} maps of attention: give one for each")
    largest = max(float(attention.max()) for attention in maps)
    tiles = [draw_tile(title, _marked(image, point), height)]
    for number, (support, attention) in enumerate(zip(supports, maps, strict=True), start=1):
        tiles.append(draw_tile(f"support {number}", heat_map(support, attention, high=largest), height))
    return picture_row(tiles)


def class_map_png(labels: np.ndarray) -> bytes:
    """A PNG of a class map (H, W): palette entry 0 is background, i + 1 is class i in its `class_color`."""
    if labels.dtype != np.uint8:
        raise ValueError("a PNG palette has room for 255 classes; give fewer")
    image = Image.fromarray(labels)
    colors = [(0, 0, 0), *(tuple(round(255 * part) for part in class_color(i)) for i in range(255))]
    image.putpalette([part for color in colors for part in color])
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


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


def _plain(color: Color) -> np.ndarray:
    return np.full((*_LEGEND, 3), [round(255 * part) for part in color], np.uint8)


def _marked(image: np.ndarray, point: tuple[float, float]) -> np.ndarray:
    """The image with a ring around a point; its diameter is 1/30 of the longer side."""
    picture = Image.fromarray(image)
    radius = max(image.shape) / 60
    x, y = point
    corners = (x - radius, y - radius, x + radius, y + radius)
    ImageDraw.Draw(picture).ellipse(corners, outline=(255, 40, 40), width=max(1, round(radius / 4)))
    return np.asarray(picture)
