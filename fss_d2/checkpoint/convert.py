"""Official checkpoints to ours, tensor by tensor and by name."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fss_d2.files import atomic_path
from fss_d2.modeling.backbone.resnet import ResNetBackbone
from fss_d2.modeling.backbone.swin import SwinBackbone
from fss_d2.modeling.meta_arch import DCAMA

from .pretrained import rename_microsoft_swin
from .reading import UNREADABLE, load_plain

__all__ = ["CONVERTERS", "Conversion", "check_output", "convert_dcama", "read_official", "write_converted"]

State = Mapping[str, Tensor]

# Unused by the method, or recomputed: classifiers, the norm before Swin's classifier, fixed tables.
_DROPPED_BACKBONE = re.compile(r"(fc|head|norm)\.|.*(relative_position_index|attn_mask)$")
_DCAMA_LEVELS = ("res3", "res4", "res5")
_DCAMA_STACKS = {
    "conv1": "squeeze.res5",
    "conv2": "squeeze.res4",
    "conv3": "squeeze.res3",
    "conv4": "merge.res4",
    "conv5": "merge.res3",
    "mixer1": "mixers.0",
    "mixer2": "mixers.1",
    "mixer3": "mixers.2",
}


@dataclass(frozen=True)
class Conversion:
    """A converted checkpoint.

    Attributes:
        architecture: what the checkpoint was recognised as, e.g. "DCAMA ResNet-50".
        model: our state dict.
        dropped: official names that have no place in our model.
        missing: our names that the checkpoint lacks and that can be left out.
    """

    architecture: str
    model: dict[str, Tensor]
    dropped: tuple[str, ...]
    missing: tuple[str, ...]

    def summary(self) -> str:
        """One line for people."""
        return (
            f"{self.architecture}: {len(self.model)} tensors matched, "
            f"{len(self.dropped)} dropped, {len(self.missing)} missing"
        )


def convert_dcama(state: State) -> Conversion:
    """Convert a state dict of the official DCAMA code (ResNet-50, ResNet-101 or Swin-B).

    The attention blocks 0, 1, 2 are the levels res3, res4, res5; in each, projection 0 is the query's and
    1 the key's.

    Raises:
        ValueError: not such a checkpoint, or an incomplete one.
    """
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    backbone = _rename_backbone(state)
    head = {ours: state[name] for name in state if (ours := _rename_dcama_head(name, state[name]))}
    used = {name for name in state if _rename_dcama_head(name, state[name])}
    used |= {name for name in state if _is_kept_backbone(name)}
    if not head or not backbone:
        raise ValueError(
            f"no DCAMA checkpoint: none of its {len(state)} names is like "
            f"{'model.conv1.0.weight' if not head else 'feature_extractor.conv1.weight'} "
            f"(found {_quote(state)}); check the file and --method"
        )
    model = {f"backbone.{name}": tensor for name, tensor in backbone.items()} | head
    if "feature_extractor.patch_embed.proj.weight" in state:
        architecture, ours = "DCAMA Swin-B", lambda: SwinBackbone(size="base")
    else:
        depth = 101 if any(name.startswith("feature_extractor.layer3.22.") for name in state) else 50
        architecture, ours = f"DCAMA ResNet-{depth}", lambda: ResNetBackbone(depth=depth)
    with torch.device("meta"):
        expected = DCAMA(backbone=ours()).state_dict()
    missing = _check(architecture, model, expected)
    dropped = tuple(name for name in state if name not in used)
    return Conversion(architecture, model, dropped, missing)


def _is_kept_backbone(name: str) -> bool:
    prefix, _, rest = name.partition(".")
    return prefix == "feature_extractor" and not _DROPPED_BACKBONE.match(rest)


def _rename_backbone(state: State) -> dict[str, Tensor]:
    kept = {n.removeprefix("feature_extractor."): t for n, t in state.items() if _is_kept_backbone(n)}
    if "patch_embed.proj.weight" not in kept:
        return kept
    return {f"model.{name}": tensor for name, tensor in rename_microsoft_swin(kept).items()}


def _rename_dcama_head(name: str, tensor: Tensor) -> str | None:
    """Our name of a tensor of the official head; None if there is none."""
    projection = re.fullmatch(r"model\.DCAMA_blocks\.([012])\.linears\.([01])\.(weight|bias)", name)
    if projection:
        level, which, kind = projection.groups()
        role = ("query", "key")[int(which)]
        return f"head.attention.{_DCAMA_LEVELS[int(level)]}.{role}.{len(tensor)}.{kind}"
    stack = re.fullmatch(r"model\.(conv[1-5]|mixer[1-3])\.(\d\.(?:weight|bias))", name)
    return f"head.{_DCAMA_STACKS[stack[1]]}.{stack[2]}" if stack else None


def _check(architecture: str, model: State, expected: State) -> tuple[str, ...]:
    """Compare names and shapes; return the missing names that do no harm (batch counters)."""
    missing = [name for name in expected if name not in model]
    required = [name for name in missing if not name.endswith("num_batches_tracked")]
    if required:
        found = f"{len(required)} tensors missing ({_quote(required)})"
        raise ValueError(f"{architecture}: {found}; get the whole file")
    foreign = [name for name in model if name not in expected]
    if foreign:
        found = f"{len(foreign)} tensors unknown ({_quote(foreign)})"
        raise ValueError(f"{architecture}: {found}; check --method")
    wrong = [name for name in model if model[name].shape != expected[name].shape]
    if wrong:
        shapes = f"{tuple(model[wrong[0]].shape)} instead of {tuple(expected[wrong[0]].shape)}"
        raise ValueError(f"{architecture}: {wrong[0]} is {shapes}; this variant is not supported")
    return tuple(missing)


def _quote(names: Mapping[str, Tensor] | list[str], shown: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")


CONVERTERS: dict[str, Callable[[State], Conversion]] = {"dcama": convert_dcama}
"""Method name -> converter; each raises ValueError for a checkpoint that is not its own."""


def read_official(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the state dict of a checkpoint without running code that a pickle may carry.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is broken, needs pickled code, or holds no state dict.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist: check the path")
    try:
        content = load_plain(path)
    except UNREADABLE as error:
        raise ValueError(f"{path} is broken or holds more than tensors: save its state dict alone") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise ValueError(f"{path} holds no state dict of named tensors: save the model's state dict")
    return dict(content)


def check_output(path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Check that a file can be written, before the work.

    Raises:
        FileExistsError: the file exists and ``force`` is False.
        FileNotFoundError: its folder does not exist.
    """
    path = Path(path)
    if path.exists() and not force:
        raise FileExistsError(f"{path} exists: give another name, or --force to overwrite it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"folder {path.parent} does not exist: make it first")


def write_converted(path: str | os.PathLike[str], conversion: Conversion, *, force: bool = False) -> None:
    """Write {"model": state dict}, which MODEL.WEIGHTS takes; the file appears whole or not at all.

    Raises:
        FileExistsError, FileNotFoundError: as `check_output`.
    """
    check_output(path, force=force)
    with atomic_path(path) as temporary:
        torch.save({"model": conversion.model}, temporary)
