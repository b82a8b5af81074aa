"""Official-style weights and inputs of the reference numbers in this folder (see README.md)."""

import fnmatch
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.golden.recipe import ellipse_mask, recipe_image, recipe_tensor

FOLDER = Path(__file__).parent
NOT_RECIPE = ("*.pe", "*relative_position_index", "*attn_mask")
ELLIPSES = (
    {"cy": 0.50, "cx": 0.45, "ry": 0.30, "rx": 0.22},
    {"cy": 0.40, "cx": 0.60, "ry": 0.18, "rx": 0.33},
    {"cy": 0.62, "cx": 0.38, "ry": 0.25, "rx": 0.15},
    {"cy": 0.30, "cx": 0.30, "ry": 0.22, "rx": 0.22},
    {"cy": 0.55, "cx": 0.70, "ry": 0.40, "rx": 0.20},
    {"cy": 0.47, "cx": 0.52, "ry": 0.12, "rx": 0.40},
)


def load_case(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Arrays and description of `dcama_<name>.npz`."""
    arrays = dict(np.load(FOLDER / f"dcama_{name}.npz"))
    meta = json.loads(str(arrays.pop("meta")))
    grad_names = arrays.pop("grad_names", None)
    if grad_names is not None:
        meta["grad_names"] = [str(n) for n in grad_names]
    return {key: torch.from_numpy(array) for key, array in arrays.items()}, meta


def official_dcama_state(
    backbone: str, adjust: list[tuple[str, float]], prefix: str = ""
) -> dict[str, Tensor]:
    """State dict of the official DCAMA ("r50", "r101" or "swinb") with recipe weights."""
    keys = json.loads((FOLDER / f"dcama_{backbone}_keys.json").read_text())
    state = {}
    for key, spec in keys.items():
        if any(fnmatch.fnmatch(key, pattern) for pattern in NOT_RECIPE):
            tensor = torch.zeros(spec["shape"], dtype=getattr(torch, spec["dtype"]))
        else:
            tensor = torch.from_numpy(recipe_tensor(key, spec["shape"]))
            for pattern, factor in adjust:
                if fnmatch.fnmatch(key, pattern):
                    tensor = tensor * factor
        state[prefix + key] = tensor
    return state


def masks(first: int, count: int, size: int) -> Tensor:
    """Ellipses number first .. first+count-1: (count, size, size) in {0, 1}."""
    ellipses = [ellipse_mask(size, size, **ELLIPSES[j % 6]) for j in range(first, first + count)]
    return torch.from_numpy(np.stack(ellipses)).to(torch.uint8)


def image(name: str, size: int) -> Tensor:
    """(3, size, size) stand-in for a standardised image."""
    return torch.from_numpy(recipe_image(f"input:{name}", 1, size, size))[0]


def head_features(name: str, batch: int, size: int = 96) -> dict[str, Tensor]:
    """Random ResNet-50 features, block -> (batch, C, h, w)."""
    features, index = {}, 0
    for stage, depth, channels, stride in (
        ("res2", 3, 256, 4),
        ("res3", 4, 512, 8),
        ("res4", 6, 1024, 16),
        ("res5", 3, 2048, 32),
    ):
        for block in range(depth):
            shape = (batch, channels, size // stride, size // stride)
            tensor = recipe_tensor(f"input:head.{name}.feat{index}", shape, "normal")
            features[f"{stage}.{block}"] = torch.from_numpy(tensor)
            index += 1
    return features
