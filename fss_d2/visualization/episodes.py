"""Pictures of episodes: supports, query, prediction and truth."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from fss_d2.evaluation.metrics import count_areas, iou

from .tiles import PREDICTION_COLOR, SUPPORT_COLOR, TRUTH_COLOR, draw_tile, picture_row

__all__ = ["episode_panel", "query_in_score_frame"]


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
        class_name: shown over the supports.
        height: of each tile, pixels; widths keep the tile's aspect ratio.

    Returns:
        (height + caption, W, 3) uint8, tiles side by side on white.
    """
    title = f": {class_name}" if class_name else ""
    tiles = [
        draw_tile(
            f"support {i + 1}{title}", _picture(s["image"]), height, np.asarray(s["mask"]), SUPPORT_COLOR
        )
        for i, s in enumerate(inputs["support"])
    ]
    query = query_in_score_frame(inputs)
    tiles.append(draw_tile("query", query, height))
    target = None if inputs.get("target") is None else np.asarray(inputs["target"])
    if output is not None:
        pred = _mask(output)
        tiles.append(draw_tile("prediction" + _score(pred, target), query, height, pred, PREDICTION_COLOR))
    if target is not None:
        tiles.append(draw_tile("truth", query, height, target, TRUTH_COLOR))
    return picture_row(tiles)


def query_in_score_frame(inputs: Mapping[str, Any]) -> np.ndarray:
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
