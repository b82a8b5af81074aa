"""Encoded supports on disk: tensors and plain numbers, and what they were encoded with."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from fss_d2.checkpoint.reading import UNREADABLE, load_plain
from fss_d2.files import atomic_path
from fss_d2.modeling import SupportSet

__all__ = ["ClassSupport", "Frame", "encoding_settings", "load_classes", "save_classes"]

_KIND, _VERSION = "fss_d2 encoded support", 1
# Keys that leave the encoding as it is, or that the digest of the weights stands for.
_NO_MATTER = ("WEIGHTS", "DEVICE", "LOSS", "BACKBONE.WEIGHTS", "BACKBONE.PIXEL_DECODER_WEIGHTS")
_PIXEL_KEYS = ("FEW_SHOT_SIZE", "TEST_RESIZE", "MAX_SIZE_TEST")


@dataclass(frozen=True)
class Frame:
    """Size of a support image, and of the part of the network's input that is not padding; pixels."""

    height: int
    width: int
    valid_size: tuple[int, int] | None = None


@dataclass(frozen=True)
class ClassSupport:
    """The supports of one class.

    Attributes:
        sets: what the method keeps of them, one set for each size at which images run.
        frames: one for each support image.
    """

    sets: tuple[SupportSet, ...]
    frames: tuple[Frame, ...]


def encoding_settings(cfg: CfgNode) -> dict[str, str]:
    """The config keys that an encoded support depends on, with their values as text."""
    settings = {f"INPUT.{key}": str(cfg.INPUT[key]) for key in _PIXEL_KEYS}
    settings["TEST.SCALES"] = str(cfg.TEST.SCALES)
    for key, value in _leaves(cfg.MODEL):
        if not any(f"{key}.".startswith(f"{name}.") for name in _NO_MATTER):
            settings[f"MODEL.{key}"] = str(value)
    return settings


def save_classes(
    path: str | os.PathLike[str],
    classes: Mapping[str, ClassSupport],
    model: nn.Module,
    settings: Mapping[str, str],
) -> None:
    """Write supports as `torch.load` reads them with ``weights_only``; whole or not at all."""
    content = {
        "kind": _KIND,
        "version": _VERSION,
        "method": type(model).__name__,
        "settings": dict(settings),
        "weights": _digest(model),
        "classes": {
            name: {
                "sets": [support_set.state() for support_set in support.sets],
                "frames": [[f.height, f.width, *(f.valid_size or ())] for f in support.frames],
            }
            for name, support in classes.items()
        },
    }
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def load_classes(
    path: str | os.PathLike[str], model: nn.Module, settings: Mapping[str, str]
) -> dict[str, ClassSupport]:
    """Read what `save_classes` wrote, for the same method, settings and weights; tensors on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, or of something else; says which setting differs.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"support file {path} does not exist; write one with save_support")
    try:
        content = load_plain(path)
        known = content["kind"] == _KIND and content["version"] == _VERSION
    except UNREADABLE as error:
        raise ValueError(f"support file {path} is none: write one with save_support") from error
    if not known:
        raise ValueError(f"support file {path} is none of this version: write it anew with save_support")
    try:
        _check_origin(path, content, model, settings)
        return {name: _class_support(state) for name, state in content["classes"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"support file {path} is damaged ({error!r}): write it anew") from error


def _class_support(state: Mapping[str, Any]) -> ClassSupport:
    frames = (Frame(height, width, tuple(valid) or None) for height, width, *valid in state["frames"])
    return ClassSupport(tuple(SupportSet.from_state(s) for s in state["sets"]), tuple(frames))


def _check_origin(
    path: str | os.PathLike[str], content: Mapping[str, Any], model: nn.Module, settings: Mapping[str, str]
) -> None:
    method = type(model).__name__
    if content["method"] != method:
        raise ValueError(
            f"support file {path} is of {content['method']}, the model here is {method}: take its config, or "
            "encode the supports anew"
        )
    there = content["settings"]
    for key in sorted(there.keys() & settings.keys()):
        if there[key] != settings[key]:
            raise ValueError(
                f"support file {path} was encoded with {key} {there[key]}, here it is {settings[key]}: take "
                "its config, or encode the supports anew"
            )
    if content["weights"] != _digest(model):
        raise ValueError(
            f"support file {path} was encoded with other weights of {method}: load those, or encode the "
            "supports anew"
        )


def _digest(model: nn.Module) -> str:
    """A hash of all weights, the same on every device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _leaves(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
