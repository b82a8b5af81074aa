"""Checkpoints of what was trained on top of a frozen backbone: small, without the backbone's tensors."""

import os
from collections.abc import Mapping

import torch
from detectron2.utils.file_io import PathManager
from torch import Tensor

from fss_d2.model_zoo import register_paths

from .reading import UNREADABLE

__all__ = ["head_of", "is_head", "is_head_file"]

_BACKBONE = "backbone."

register_paths()


def head_of(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's tensors without the backbone's.

    Raises:
        ValueError: there are no others.
    """
    head = {name: tensor for name, tensor in weights.items() if not name.startswith(_BACKBONE)}
    if not head:
        raise ValueError("the checkpoint holds a backbone only: give that of a method that was trained")
    return head


def is_head(weights: Mapping[str, Tensor]) -> bool:
    """Whether tensors are a head's alone."""
    return bool(weights) and not any(name.startswith(_BACKBONE) for name in weights)


def is_head_file(path: str) -> bool:
    """Whether a file is a checkpoint {"model": tensors} of a head alone; False if it cannot be read as such.

    Of a large file only the names are read.
    """
    if not path:
        return False
    try:
        local = PathManager.get_local_path(path)
        if not os.path.isfile(local):
            return False
        content = torch.load(local, map_location="cpu", weights_only=True, mmap=True)
        return is_head(content["model"])
    except (*UNREADABLE, OSError):
        return False
