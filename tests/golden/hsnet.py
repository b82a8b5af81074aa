"""Official-style weights and inputs of HSNet's reference numbers in this folder (see README.md)."""

import fnmatch
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.golden.recipe import ellipse_mask, recipe_image, recipe_tensor

FOLDER = Path(__file__).parent
UNUSED = ("backbone.fc.*", "backbone.classifier.*")  # left as zeros of one value: 494 MB in the VGG
# Centre and radii. Each covers a corner, where the strided path of the 4D convolution looks at these sizes.
ELLIPSES = (
    {"cy": 0.30, "cx": 0.25, "ry": 0.50, "rx": 0.45},
    {"cy": 0.65, "cx": 0.75, "ry": 0.55, "rx": 0.42},
    {"cy": 0.25, "cx": 0.70, "ry": 0.45, "rx": 0.50},
    {"cy": 0.70, "cx": 0.35, "ry": 0.50, "rx": 0.55},
    {"cy": 0.20, "cx": 0.20, "ry": 0.35, "rx": 0.40},
    {"cy": 0.80, "cx": 0.30, "ry": 0.40, "rx": 0.50},
)


def load_case(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Arrays and description of `hsnet_<name>.npz`; names of gradients are in the description."""
    with np.load(FOLDER / f"hsnet_{name}.npz") as file:
        arrays = dict(file)
    meta = json.loads(str(arrays.pop("meta")))
    meta["grad_names"] = [str(n) for n in arrays.pop("grad_names", ())]
    return {key: torch.from_numpy(array) for key, array in arrays.items()}, meta


def official_hsnet_state(
    backbone: str, adjust: list[tuple[str, float]], add: tuple[str, list[float]], prefix: str = "module."
) -> dict[str, Tensor]:
    """State dict of the official HSNet ("r50", "r101" or "vgg16") with recipe weights."""
    state = {}
    for key, spec in json.loads((FOLDER / f"hsnet_{backbone}_keys.json").read_text()).items():
        if any(fnmatch.fnmatch(key, pattern) for pattern in UNUSED):
            state[prefix + key] = torch.zeros(()).expand(spec["shape"])
            continue
        tensor = torch.from_numpy(recipe_tensor(key, spec["shape"]))
        for pattern, factor in adjust:
            if fnmatch.fnmatch(key, pattern):
                tensor = tensor * factor
        state[prefix + key] = tensor + torch.tensor(add[1]) if key == add[0] else tensor
    return state


def images(name: str, batch: int, size: int) -> Tensor:
    """(batch, 3, size, size) stand-ins for standardised images."""
    return torch.from_numpy(recipe_image(f"input:{name}", batch, size, size))


def masks(first: int, batch: int, size: int) -> Tensor:
    """Ellipse first + b of each item b: (batch, size, size) in {0, 1}."""
    ellipses = [ellipse_mask(size, size, **ELLIPSES[(first + b) % 6]) for b in range(batch)]
    return torch.from_numpy(np.stack(ellipses)).to(torch.uint8)


def head_features(role: str, batch: int, size: int = 96) -> dict[str, Tensor]:
    """ResNet-50 features of regions with many negative cosines, block -> (batch, C, h, w)."""
    features: dict[str, Tensor] = {}
    stages = (("res3", 4, 512, 8), ("res4", 6, 1024, 16), ("res5", 3, 2048, 32))
    for stage, depth, channels, stride in stages:
        for block in range(depth):
            index, side = len(features), size // stride
            rows = recipe_tensor(f"input:head.bank{index}", (3, channels), "normal")
            bank = np.concatenate([rows, -rows[:2]])
            half = (batch, -(-side // 2), -(-side // 2))
            region = np.floor(5 * recipe_tensor(f"input:head.{role}.region{index}", half, "uniform"))
            region = region.astype(int).repeat(2, axis=1).repeat(2, axis=2)[:, :side, :side]
            shape = (batch, channels, side, side)
            noise = recipe_tensor(f"input:head.{role}.feat{index}", shape, "normal")
            values = bank[region].transpose(0, 3, 1, 2) + np.float32(0.7) * noise
            features[f"{stage}.{block}"] = torch.from_numpy(values)
    return features
