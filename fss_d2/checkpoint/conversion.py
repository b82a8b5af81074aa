"""Reading, checking and writing converted checkpoints; what every converter shares."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fss_d2.files import atomic_path

from .reading import UNREADABLE, ForbiddenPickle, load_plain

__all__ = [
    "Conversion",
    "State",
    "check_match",
    "check_output",
    "named_tensors",
    "quote",
    "read_official",
    "write_converted",
]

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Conversion:
    """A converted checkpoint.

    Attributes:
        architecture: what the checkpoint was recognised as, e.g. "DCAMA ResNet-50".
        model: our state dict.
        dropped: official names that have no place in our model.
        missing: our names that the checkpoint lacks and that can be left out.
        settings: what a config must say, besides the method's own file, to build this model: "KEY value".
    """

    architecture: str
    model: dict[str, Tensor]
    dropped: tuple[str, ...]
    missing: tuple[str, ...]
    settings: tuple[str, ...] = ()

    def summary(self) -> str:
        """One line for people."""
        needs = f" (needs {', '.join(self.settings)})" if self.settings else ""
        return (
            f"{self.architecture}{needs}: {len(self.model)} tensors matched, "
            f"{len(self.dropped)} dropped, {len(self.missing)} missing"
        )


def named_tensors(parts: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """State dict of a model made of `parts`, each under its name."""
    return {f"{part}.{name}": t for part, module in parts.items() for name, t in module.state_dict().items()}


def check_match(architecture: str, model: State, expected: State) -> tuple[str, ...]:
    """Compare names and shapes; return the missing names that do no harm (batch counters).

    Raises:
        ValueError: a tensor is missing, unknown or of another shape.
    """
    missing = [name for name in expected if name not in model]
    required = [name for name in missing if not name.endswith("num_batches_tracked")]
    if required:
        found = f"{len(required)} tensors missing ({quote(required)})"
        raise ValueError(f"{architecture}: {found}; get the whole file")
    foreign = [name for name in model if name not in expected]
    if foreign:
        found = f"{len(foreign)} tensors unknown ({quote(foreign)})"
        raise ValueError(f"{architecture}: {found}; check --method")
    wrong = [name for name in model if model[name].shape != expected[name].shape]
    if wrong:
        shapes = f"{tuple(model[wrong[0]].shape)} instead of {tuple(expected[wrong[0]].shape)}"
        raise ValueError(f"{architecture}: {wrong[0]} is {shapes}; this variant is not supported")
    return tuple(missing)


def quote(names: Mapping[str, Tensor] | list[str], shown: int = 3) -> str:
    """The first names, for a message."""
    names = list(names)
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")


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
    except ForbiddenPickle:
        raise
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
