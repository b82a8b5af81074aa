"""Conversion of published checkpoints: the loop over the tensors, its checks, the output file."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fss_d2.files import atomic_path

__all__ = ["Conversion", "State", "bare", "check_output", "convert", "require", "write_converted"]

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Conversion:
    """A converted checkpoint.

    Attributes:
        architecture: what the checkpoint was recognised as, e.g. "DCAMA ResNet-50".
        model: our state dict.
        dropped: official names that have no place in our model.
        missing: our names that the checkpoint lacks and that are not needed.
        settings: config keys that this model needs in addition to the method's config file: "KEY value".
    """

    architecture: str
    model: dict[str, Tensor]
    dropped: tuple[str, ...]
    missing: tuple[str, ...]
    settings: tuple[str, ...] = ()

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


def require(method: str, state: State, found: Mapping[str, bool]) -> None:
    """Refuse a checkpoint of another method.

    Args:
        method: for the error.
        state: the official state dict.
        found: for an example of each kind of name that the method has, whether `state` has that kind.

    Raises:
        ValueError: a kind was not found.
    """
    for example, is_found in found.items():
        if not is_found:
            raise ValueError(
                f"no {method} checkpoint: none of its {len(state)} names is like {example} "
                f"(found {_quote(state)}); check the file and --method"
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
        architecture: name of the model, for the summary and the errors.
        state: the official state dict.
        rename: our name of an official name and tensor; None if our model has no place for it.
        build: returns the parts of our model by name; "" for a whole model. Runs on the meta device.
        settings: see `Conversion`.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape.
    """
    model: dict[str, Tensor] = {}
    dropped = []
    for name, tensor in state.items():
        ours = rename(name, tensor)
        if ours is None:
            dropped.append(name)
        else:
            model[ours] = tensor
    with torch.device("meta"):
        expected = {
            f"{part}.{name}".removeprefix("."): tensor
            for part, module in build().items()
            for name, tensor in module.state_dict().items()
        }
    return Conversion(architecture, model, tuple(dropped), _check(architecture, model, expected), settings)


def _check(architecture: str, model: State, expected: State) -> tuple[str, ...]:
    """Compare names and shapes; return the missing names that are not needed (batch counters)."""
    missing = [name for name in expected if name not in model]
    required = [name for name in missing if not name.endswith("num_batches_tracked")]
    if required:
        found = f"{len(required)} tensors missing ({_quote(required)})"
        raise ValueError(f"{architecture}: {found}; get the whole file")
    unknown = [name for name in model if name not in expected]
    if unknown:
        found = f"{len(unknown)} tensors unknown ({_quote(unknown)})"
        raise ValueError(f"{architecture}: {found}; check --method")
    wrong = [name for name in model if model[name].shape != expected[name].shape]
    if wrong:
        shapes = f"{tuple(model[wrong[0]].shape)} instead of {tuple(expected[wrong[0]].shape)}"
        raise ValueError(f"{architecture}: {wrong[0]} is {shapes}; this variant is not supported")
    return tuple(missing)


def _quote(names: Iterable[str], shown: int = 3) -> str:
    """Return the first names, for a message."""
    names = list(names)
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")


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
        raise FileNotFoundError(f"folder {path.parent} does not exist: create it first")


def write_converted(path: str | os.PathLike[str], conversion: Conversion, *, force: bool = False) -> None:
    """Write {"model": state dict}, the format of MODEL.WEIGHTS; the file appears whole or not at all.

    Raises:
        FileExistsError, FileNotFoundError: see `check_output`.
    """
    check_output(path, force=force)
    with atomic_path(path) as temporary:
        torch.save({"model": conversion.model}, temporary)
