"""Encoded supports, and their file: tensors, plain numbers and the settings of the encoding."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from fss_d2.data.views import Window
from fss_d2.io.files import atomic_path
from fss_d2.io.state_dict import UNREADABLE, load_plain, not_finite
from fss_d2.modeling import FEW_SHOT_META_ARCHS, FewShotSegmentor, SupportSet
from fss_d2.modeling.enlarged import Enlarged, merge_enlarged
from fss_d2.modeling.layers import resize

__all__ = ["ClassSupport", "Frame", "encoding_settings", "load_classes", "save_classes", "weights_digest"]

_KIND, _VERSION = "fss_d2 encoded support", 5
# Keys that do not change the encoding, or that the digest of the weights covers.
_NO_MATTER = ("WEIGHTS", "WEIGHTS_PARTIAL", "DEVICE", "LOSS")
_NO_MATTER += ("BACKBONE.WEIGHTS", "BACKBONE.PIXEL_DECODER_WEIGHTS")
_PIXEL_KEYS = ("FEW_SHOT_SIZE", "TEST_RESIZE", "MAX_SIZE_TEST")


Filename = str | os.PathLike[str]


@dataclass(frozen=True)
class Frame:
    """Where a view of a support lies in it; sizes are (height, width)."""

    size: tuple[int, int]  # of the support image
    window: Window  # the pixels of it that the view shows
    mirrored: bool = False  # left and right are swapped
    valid_size: tuple[int, int] | None = None  # of the part of the network input that is not padding


@dataclass(frozen=True)
class ClassSupport:
    """The supports of one class."""

    sets: tuple[SupportSet, ...]  # encoded, one per size at which images run
    frames: tuple[tuple[Frame, ...], ...]  # of each support its views, which are the shots of each set
    windows: tuple[Enlarged | None, ...] = ()  # of each support, for small objects
    enlarged: Enlarged | None = None  # those of all supports, if the class is to be seen enlarged

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each network input."""
        return [support_set.size for support_set in self.sets]

    @property
    def negatives(self) -> int:
        """The number of negatives, which are in each set."""
        return len(self.sets[0].negatives or ())

    def on_supports(self, maps: Tensor) -> tuple[np.ndarray, ...]:
        """Maps of the shots (shots, H, W) -> one (h, w) float32 per support image, the sum of its views."""
        shots = iter(maps)
        joined = []
        for views in self.frames:
            whole = np.zeros(views[0].size, np.float32)
            for frame in views:
                part = frame.window.of(whole)
                own = _without_padding(next(shots), frame, part.shape)
                part += own[:, ::-1] if frame.mirrored else own
            joined.append(whole)
        return tuple(joined)


def encoding_settings(cfg: CfgNode) -> dict[str, str]:
    """The config keys that encoded supports depend on, without those of other methods; values as text."""
    settings = {f"INPUT.{key}": str(cfg.INPUT[key]) for key in _PIXEL_KEYS}
    settings |= {f"TEST.{key}": str(cfg.TEST[key]) for key in ("SCALES", "ZOOM_TILES", "KSHOT")}
    settings["FEW_SHOT.TEST.SUPPORT_VIEWS"] = str(cfg.FEW_SHOT.TEST.SUPPORT_VIEWS)
    method = cfg.MODEL.META_ARCHITECTURE
    read = {method, *getattr(META_ARCH_REGISTRY.get(method), "borrows_keys_of", ())}
    others = {name.upper() for name in FEW_SHOT_META_ARCHS if name not in read}
    for key, value in _leaves(cfg.MODEL):
        section = key.partition(".")[0].replace("_", "")  # MM_FORMER is that of MMFormer
        if section not in others and not any(f"{key}.".startswith(f"{name}.") for name in _NO_MATTER):
            settings[f"MODEL.{key}"] = str(value)
    return settings


def save_classes(
    path: Filename, classes: Mapping[str, ClassSupport], model: nn.Module, settings: Mapping[str, str]
) -> None:
    """Write supports atomically, in the form that `torch.load` reads with ``weights_only``."""
    method = {"method": type(model).__name__, "settings": dict(settings), "weights": weights_digest(model)}
    states = {
        name: {
            "sets": [support_set.state() for support_set in support.sets],
            "frames": [[_numbers(frame) for frame in views] for views in support.frames],
            "windows": [one and one.state() for one in support.windows],
        }
        for name, support in classes.items()
    }
    content = {"kind": _KIND, "version": _VERSION, **method, "classes": states}
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def load_classes(
    path: Filename, model: FewShotSegmentor, settings: Mapping[str, str]
) -> dict[str, ClassSupport]:
    """Read what `save_classes` wrote with the same method, settings and weights, to the model's device."""
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
        difference = _difference(content, model, settings)
        states = {} if difference else content["classes"]
        if spoilt := next(not_finite(states), ""):
            raise ValueError(f"tensor {spoilt} holds NaN or infinite values")
        classes = {name: _class_support(name, state, model) for name, state in states.items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"support file {path} is damaged ({error!r}): write it anew") from error
    if difference:
        raise ValueError(f"support file {path} {difference}, or encode the supports anew")
    return classes


def _without_padding(shot: Tensor, frame: Frame, size: Sequence[int]) -> np.ndarray:
    """A map (H, W) of the network input, at the size of the view."""
    h, w = frame.valid_size or shot.shape
    return resize(shot[None, None, :h, :w], size, align_corners=False)[0, 0].cpu().numpy()


def _class_support(name: str, state: Mapping[str, Any], model: FewShotSegmentor) -> ClassSupport:
    frames = tuple(tuple(_frame(numbers) for numbers in views) for views in state["frames"])
    sets, shots = tuple(map(model.restore_support, state["sets"])), sum(map(len, frames))
    if not sets or not shots or any(s.shots != shots for s in sets):
        raise ValueError(f"class {name} has {shots} frames, its sets have {[s.shots for s in sets]} shots")
    windows = tuple(one and Enlarged.from_state(one, model) for one in state["windows"])
    if len(windows) != len(frames):
        raise ValueError(f"class {name} has {len(frames)} supports, windows of {len(windows)}")
    return ClassSupport(sets, frames, windows, merge_enlarged(model, windows))


def _numbers(frame: Frame) -> list[int]:
    return [*frame.size, *frame.window, int(frame.mirrored), *(frame.valid_size or ())]


def _frame(numbers: Sequence[int]) -> Frame:
    height, width, left, top, right, bottom, mirrored, *valid = numbers
    window = Window(left, top, right, bottom)
    return Frame((height, width), window, bool(mirrored), tuple(valid) or None)


def _difference(content: Mapping[str, Any], model: nn.Module, settings: Mapping[str, str]) -> str:
    """How a file's encoding differs from that of the model here, and the fix; "" if it does not."""
    method, there = type(model).__name__, content["settings"]
    if content["method"] != method:
        return f"is of {content['method']}, the model here is {method}: take its config"
    for key in sorted(there.keys() & settings.keys()):
        if there[key] != settings[key]:
            return f"was encoded with {key} {there[key]}, here it is {settings[key]}: take its config"
    if content["weights"] != weights_digest(model):
        return f"was encoded with other weights of {method}: load those"
    return ""


def weights_digest(model: nn.Module) -> str:
    """A hash of all weights but the numbers of the presence, the same on every device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith("presence."):
            continue
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _leaves(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
