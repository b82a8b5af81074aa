"""Predictors on the fake backbone, and pictures for them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fss_d2.data.augmentations import build_resize, build_view_resizes
from fss_d2.data.datasets.glyph_drawing import GlyphGenerator
from fss_d2.inference.predictor import FewShotPredictor
from fss_d2.inference.support_file import encoding_settings
from fss_d2.modeling import FEW_SHOT_META_ARCHS
from tests.modeling.episodes import make_cfg, make_model

METHODS = pytest.mark.parametrize("method", FEW_SHOT_META_ARCHS)
SMALL = ("INPUT.FEW_SHOT_SIZE", (48, 64), "INPUT.MAX_SIZE_TEST", 96, "TEST.FRAME", "original")


def make_predictor(method: str = "Prototype", *overrides: Any) -> FewShotPredictor:
    """A predictor on the fake backbone with random weights, always the same."""
    options = (*SMALL, *overrides)
    cfg = make_cfg(method, *options)
    resizes = build_view_resizes(cfg) or [build_resize(cfg)]
    views = cfg.FEW_SHOT.TEST.SUPPORT_VIEWS
    model = make_model(method, *options)
    shared = {"support_views": views, "zoom_tiles": cfg.TEST.ZOOM_TILES}
    return FewShotPredictor(model, resizes, settings=encoding_settings(cfg), **shared)


def glyph(index: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A part of a drawn image with its own symbol's mask (height, width) bool."""
    image, class_map = GlyphGenerator(size=120).generate(index)
    mask = class_map == index % 80 + 1
    y, x = (int(axis.mean()) for axis in mask.nonzero())
    top, left = min(max(y - height // 2, 0), 120 - height), min(max(x - width // 2, 0), 120 - width)
    window = slice(top, top + height), slice(left, left + width)
    return image[window].copy(), mask[window]


def square(height: int = 40, width: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """A bright square on a dark ground, with its mask."""
    image, mask = np.full((height, width, 3), 20, np.uint8), np.zeros((height, width), bool)
    mask[: height // 2, : width // 2] = True
    image[mask] = (230, 220, 40)
    return image, mask


def three_colors() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Three bright stripes on black, and their masks."""
    image = np.zeros((64, 64, 3), np.uint8)
    masks = {}
    for i, name in enumerate(("red", "green", "blue")):
        masks[name] = np.zeros((64, 64), bool)
        masks[name][20 * i : 20 * i + 16, :40] = True
        image[masks[name], i] = 255
    return image, masks


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """IoU of two masks."""
    return (a & b).sum() / (a | b).sum()


def count_backbone_passes(predictor: FewShotPredictor, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """A function that gives the images that passed the backbone since it was last called."""
    backbone, images = predictor.model.backbone, []
    forward = backbone.forward

    def counted(x: torch.Tensor, *names: Any) -> dict[str, torch.Tensor]:
        images.extend([None] * len(x))
        return forward(x, *names)

    def calls() -> int:
        count = len(images)
        images.clear()
        return count

    monkeypatch.setattr(backbone, "forward", counted)
    return calls
