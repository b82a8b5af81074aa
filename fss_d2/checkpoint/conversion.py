"""Conversion of published checkpoints: the loop over the tensors, its checks, the output file."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fss_d2.io.files import atomic_path
from fss_d2.io.state_dict import quoted

__all__ = [
    "Conversion",
    "State",
    "bare",
    "check_output",
    "convert",
    "deep_stem_name",
    "require",
    "write_converted",
]

State = Mapping[str, Tensor]
_DEEP_STEM = {0: "conv1", 1: "bn1", 3: "conv2", 4: "bn2", 6: "conv3", 7: "bn3"}  # by position in the stem


@dataclass(frozen=True)
class Conversion:
    """A converted checkpoint."""

    architecture: str  # what the checkpoint was recognised as, e.g. "DCAMA ResNet-50"
    model: dict[str, Tensor]  # our state dict
    dropped: tuple[str, ...]  # official names that have no place in our model
    missing: tuple[str, ...]  # our names that the checkpoint lacks and that are not needed
    settings: tuple[str, ...] = ()  # "KEY value", needed in addition to the method's config file

    def summary(self) -> str:
        """Describe the conversion in one line."""
        needs = f" (needs {', '.join(self.settings)})" if self.settings else ""
        return (
            f"{self.architecture}{needs}: {len(self.model)} tensors matched, "
            f"{len(self.dropped)} dropped, {len(self.missing)} missing"
        )


def bare(state: State) -> dict[str, Tensor]:
    """Remove the prefix "module." of DistributedDataParallel from the names."""
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def deep_stem_name(name: str) -> str:
    """Our name of a tensor of a ResNet's deep stem, by its position in "layer0."; other names stay."""
    found = re.fullmatch(r"layer0\.(\d)\.(.+)", name)
    return f"{_DEEP_STEM.get(int(found[1]), name)}.{found[2]}" if found else name


def require(method: str, state: State, found: Mapping[str, bool]) -> None:
    """Raise ValueError unless the official state dict is one of the method.

    Args:
        found: for an example of each kind of name that the method has, whether `state` has that kind.
    """
    for example, is_found in found.items():
        if not is_found:
            raise ValueError(
                f"no {method} checkpoint: none of its {len(state)} names is like {example} "
                f"(found {quoted(state)}); check the file and --method"
            )


def convert(
    architecture: str,
    state: State,
    rename: Callable[[str, Tensor], str | None],
    build: Callable[[], Mapping[str, nn.Module]],
    settings: tuple[str, ...] = (),
) -> Conversion:
    """Rename the tensors and compare them with those of our model.

    Args:
        architecture, settings: see `Conversion`.
        state: the official state dict.
        rename: our name of an official name and tensor; None if our model has no place for it.
        build: returns the parts of our model by name; "" for a whole model. Runs on the meta device.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape.
    """
    renamed = {name: rename(name, tensor) for name, tensor in state.items()}
    model = {ours: state[name] for name, ours in renamed.items() if ours is not None}
    dropped = tuple(name for name, ours in renamed.items() if ours is None)
    with torch.device("meta"):
        expected = {
            f"{part}.{name}".removeprefix("."): tensor
            for part, module in build().items()
            for name, tensor in module.state_dict().items()
        }
    return Conversion(architecture, model, dropped, _check(architecture, model, expected), settings)


def _check(architecture: str, model: State, expected: State) -> tuple[str, ...]:
    """Compare names and shapes; return the missing names that are not needed (batch counters)."""
    missing = [name for name in expected if name not in model]
    required = [name for name in missing if not name.endswith("num_batches_tracked")]
    if required:
        found = f"{len(required)} tensors missing ({quoted(required)})"
        raise ValueError(f"{architecture}: {found}; get the whole file")
    if unknown := [name for name in model if name not in expected]:
        found = f"{len(unknown)} tensors unknown ({quoted(unknown)})"
        raise ValueError(f"{architecture}: {found}; check --method")
    if wrong := [name for name in model if model[name].shape != expected[name].shape]:
        shapes = f"{tuple(model[wrong[0]].shape)} instead of {tuple(expected[wrong[0]].shape)}"
        raise ValueError(f"{architecture}: {wrong[0]} is {shapes}; this variant is not supported")
    return tuple(missing)


def check_output(path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Raise FileExistsError or FileNotFoundError (of the folder) before the work, if it cannot be written."""
    path = Path(path)
    if path.exists() and not force:
        raise FileExistsError(f"{path} exists: give another name, or --force to overwrite it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"folder {path.parent} does not exist: create it first")


def write_converted(path: str | os.PathLike[str], conversion: Conversion, *, force: bool = False) -> None:
    """Write {"model": state dict}, the format of MODEL.WEIGHTS, all or nothing; errors of `check_output`."""
    check_output(path, force=force)
    with atomic_path(path) as temporary:
        torch.save({"model": conversion.model}, temporary)
