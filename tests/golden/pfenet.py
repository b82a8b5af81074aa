"""Official-style weights and inputs of PFENet's reference numbers in this folder (see README.md)."""

import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.golden.recipe import recipe_tensor

FOLDER = Path(__file__).parent
DAMPED = "*bn3.weight"  # times 0.2: otherwise residual sums grow to 1e4 and hide the prior


def load(name: str) -> dict[str, Any]:
    """Arrays of `pfenet_<name>.npz`; an array of names becomes a list of strings."""
    with np.load(FOLDER / f"pfenet_{name}.npz") as arrays:
        return {
            key: array.tolist() if array.dtype.kind == "U" else torch.from_numpy(array)
            for key, array in arrays.items()
        }


def published(backbone: str) -> dict[str, Any]:
    """Of "r50", "r101" or "vgg": "keys" (names and shapes of the state dict) and numbers of parameters."""
    return json.loads((FOLDER / "pfenet_keys.json").read_text())[backbone]


def official_pfenet_state(backbone: str, prefix: str = "module.") -> dict[str, Tensor]:
    """State dict of the official model with recipe weights."""
    state = {}
    for key, shape in published(backbone)["keys"].items():
        weight = recipe_tensor(key, shape)
        if fnmatch(key, DAMPED):
            weight = weight * np.float32(0.2)
        state[prefix + key] = torch.from_numpy(weight)
    return state


def random(name: str, *shape: int) -> Tensor:
    """Recipe input such as "r50_1shot/query" of a shape, normally distributed."""
    return torch.from_numpy(recipe_tensor(f"input:{name}", shape, "normal"))
