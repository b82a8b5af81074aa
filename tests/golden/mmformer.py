"""Official-style weights and inputs of MM-Former's reference numbers in this folder (see README.md)."""

import json
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.golden.recipe import ellipse_mask, recipe_image, recipe_tensor

FOLDER = Path(__file__).parent
UNSCALED = ("*query_feat.weight", "*query_embed.weight", "*level_embed.weight", "*level_embed")
# Otherwise residual sums grow to 1e4 and self-alignment saturates.
DAMPED = {1: "backbone.res*.conv3.norm.weight", 2: "layer[1-4].*.bn3.weight"}


def load(name: str) -> dict[str, Any]:
    """Arrays of `mmformer_<name>.npz`; an array of names becomes a list of strings."""
    with np.load(FOLDER / f"mmformer_{name}.npz") as arrays:
        return {
            key: array.tolist() if array.dtype.kind == "U" else torch.from_numpy(array)
            for key, array in arrays.items()
        }


def key_shapes(version: int, stage: int) -> dict[str, list[int]]:
    """Names and shapes of the published state dict; version 1 (of the paper) or 2, stage 1 or 2."""
    prefix = {1: "", 2: "v2_"}[version]
    return json.loads((FOLDER / f"mmformer_{prefix}stage{stage}_keys.json").read_text())


def official_mmformer_state(version: int, stage: int, prefix: str = "") -> dict[str, Tensor]:
    """State dict of the official model with recipe weights.

    Args:
        version: 1 the paper's, 2 the later one.
        stage: 1 the segmenter of potential objects, 2 the whole MM-Former.
        prefix: keep only the keys that start so, without it (a module's own state dict).
    """
    shapes = key_shapes(version, stage).items()
    return {
        key.removeprefix(prefix): torch.from_numpy(_weight(key, shape, version))
        for key, shape in shapes
        if key.startswith(prefix)
    }


def _weight(key: str, shape: Sequence[int], version: int) -> np.ndarray:
    if key == "criterion.empty_weight":  # the module's own: 1 a class, 0.1 for "no object"
        return np.append(np.ones(shape[0] - 1, np.float32), np.float32(0.1))
    if key.endswith("vector_S"):
        return np.float32(0.7) * (1 + np.float32(0.1) * recipe_tensor(key, shape, "normal"))
    unscaled = any(fnmatch(key, pattern) for pattern in UNSCALED)
    weight = recipe_tensor(key, shape, "normal" if unscaled else "auto")
    return weight * np.float32(0.2) if fnmatch(key, DAMPED[version]) else weight


def random(name: str, shape: Sequence[int], kind: str = "normal") -> Tensor:
    """Recipe input ("normal" or "uniform"); `name` as in README.md, such as "c:x0"."""
    return torch.from_numpy(recipe_tensor(f"input:mmformer:{name}", shape, kind))


def blocky(name: str, b: int, q: int, h: int, w: int, k: int, c: float) -> Tensor:
    """(b, q, h, w) mask logits, constant on squares of k x k."""
    coarse = c * random(name, (b, q, -(-h // k), -(-w // k)))
    return coarse.repeat_interleave(k, dim=2).repeat_interleave(k, dim=3)[:, :, :h, :w].contiguous()


def feat(name: str, shape: Sequence[int]) -> Tensor:
    """(b, c, h, w) features at least 0, stronger in some places than in others."""
    b, _, h, w = shape
    return random(name, shape).abs() * (0.2 + 2 * random(f"{name}:field", (b, 1, h, w), "uniform"))


def ellipse(
    height: int, width: int, cy: float = 0.5, cx: float = 0.5, ry: float = 0.3, rx: float = 0.25
) -> Tensor:
    """(height, width) float mask in {0, 1}; see `recipe.ellipse_mask`."""
    return torch.from_numpy(ellipse_mask(height, width, cy, cx, ry, rx))


def image(name: str, size: int = 128) -> Tensor:
    """(1, 3, size, size) image in 0 .. 255, before normalisation, such as of "h:image"."""
    return (50 * torch.from_numpy(recipe_image(f"input:mmformer:{name}", 1, size, size)) + 120).clamp(0, 255)


class RecordedRand:
    """Stands in for `torch.rand`: call k gives the recipe tensor "<case>:rand<k>".

    Use: ``monkeypatch.setattr(torch, "rand", RecordedRand("e:one"))``; `shapes` lists those asked for.
    """

    def __init__(self, case: str) -> None:
        self.case = case
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, *size: int | Sequence[int], **_: object) -> Tensor:
        shape = tuple(size) if isinstance(size[0], int) else tuple(size[0])
        self.shapes.append(shape)
        return random(f"{self.case}:rand{len(self.shapes) - 1}", shape, "uniform")
