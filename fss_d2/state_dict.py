"""State dicts from files, read without running code that a pickle may carry."""

import collections
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from detectron2.utils.file_io import PathManager
from safetensors import SafetensorError
from torch import Tensor

from fss_d2.model_zoo import register_paths

__all__ = [
    "UNREADABLE",
    "ForbiddenPickle",
    "head_of",
    "is_head",
    "is_head_file",
    "load_plain",
    "read_content",
    "read_state_dict",
    "state_dict_of",
]

register_paths()

# What `load_plain` raises for foreign, truncated or code-carrying files; a text file can raise the last six.
UNREADABLE = (
    pickle.UnpicklingError,
    SafetensorError,
    RuntimeError,
    EOFError,
    ValueError,
    AttributeError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
)
_WRAPPERS = ("state_dict", "model")
_BACKBONE = "backbone."


class ForbiddenPickle(ValueError):
    """A pickle refers to something other than numbers, arrays and containers; the message names it."""


def read_state_dict(path: str | os.PathLike[str], key: str = "the path") -> dict[str, Tensor]:
    """Read the named tensors of a file that `load_plain` can read; `key` is its config key, for the errors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is broken, carries code, or holds no state dict.
    """
    return state_dict_of(read_content(path, key), path)


def read_content(path: str | os.PathLike[str], key: str = "the path") -> Any:
    """Read everything that a checkpoint holds; arguments and errors as `read_state_dict`."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist: check {key}")
    try:
        return load_plain(path)
    except ForbiddenPickle:
        raise
    except UNREADABLE as error:
        raise ValueError(
            f"{path} is no checkpoint of plain tensors, or it is broken: check {key}, or save the model's "
            "state dict alone"
        ) from error


def state_dict_of(content: Any, path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Take the named tensors out of the content of the file `path`; ValueError if it holds none.

    Wrappers "state_dict" and "model" are opened, the prefix "module." of DistributedDataParallel is
    removed, entries that are no tensors are left out.
    """
    while isinstance(content, Mapping):
        inner = [content[name] for name in _WRAPPERS if isinstance(content.get(name), Mapping)]
        if not inner:
            break
        content = inner[0]
    state = {}
    if isinstance(content, Mapping):
        named = {name: value for name, value in content.items() if isinstance(name, str)}
        state = {name.removeprefix("module."): t for name, t in named.items() if isinstance(t, Tensor)}
    if not isinstance(content, Mapping) or (content and not state):
        raise ValueError(f"{path} holds no state dict of named tensors: save the model's state dict")
    return state


def head_of(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a model's tensors without those of its backbone; ValueError if there are no others."""
    head = {name: tensor for name, tensor in weights.items() if not name.startswith(_BACKBONE)}
    if not head:
        raise ValueError("the checkpoint holds a backbone only: give the checkpoint of a trained method")
    return head


def is_head(weights: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has tensors, none of them of a backbone."""
    return bool(weights) and not any(name.startswith(_BACKBONE) for name in weights)


def is_head_file(path: str) -> bool:
    """Whether a file is a checkpoint {"model": tensors} without a backbone; False if it cannot be read.

    The tensors of a large file stay on the disk.
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


def load_plain(path: str | os.PathLike[str]) -> Any:
    """Read tensors, arrays, numbers, strings and containers of these onto the CPU.

    PyTorch's files and plain pickles of numpy arrays (``.pkl`` of Detectron2 and Mask2Former) are
    recognised by their content; ``.safetensors`` files by their name. Arrays in nested dicts become tensors.

    Raises:
        ForbiddenPickle: a plain pickle refers to anything else; none of it was run.
        UNREADABLE: the file is none of these; code in it was not run.
        OSError: the file cannot be opened.
    """
    if Path(path).suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    if not zipfile.is_zipfile(path):
        with Path(path).open("rb") as file:
            content = _ArrayUnpickler(file, str(path)).load()
        is_older_torch = isinstance(content, int) and content == torch.serialization.MAGIC_NUMBER
        if not is_older_torch:  # PyTorch's files from before its zip format begin with that number
            return _to_tensors(content)
    return torch.load(path, map_location="cpu", weights_only=True)


def _encode(text: str, encoding: str) -> bytes:
    """Replace `_codecs.encode`, which protocols 0 to 2 use to pickle bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes encoded as {encoding!r}, not latin1")
    return text.encode("latin1")


def _numpy_functions() -> dict[tuple[str, str], Any]:
    """The functions that rebuild arrays, dtypes and scalars, under the module names of numpy 1 and 2."""
    reconstruct, scalar = np.zeros(1).__reduce__()[0], np.float32(0).__reduce__()[0]
    frombuffer = np.zeros(1).__reduce_ex__(5)[0]
    functions: dict[tuple[str, str], Any] = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}
    for core in ("numpy.core", "numpy._core"):
        functions[core + ".multiarray", "_reconstruct"] = reconstruct
        functions[core + ".multiarray", "scalar"] = scalar
        functions[core + ".numeric", "_frombuffer"] = frombuffer
    return functions


_PERMITTED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("_codecs", "encode"): _encode,
    **{
        (module, kind.__name__): kind
        for module in ("builtins", "__builtin__")
        for kind in (set, frozenset, bytes, bytearray)
    },
    **_numpy_functions(),
}


class _ArrayUnpickler(pickle.Unpickler):
    """Finds only what arrays, numbers and containers need; everything else ends the reading."""

    def __init__(self, file: Any, path: str) -> None:
        super().__init__(file, encoding="latin1")  # for arrays in pickles of Python 2
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        """Return the permitted object of that name; raise `ForbiddenPickle` for any other."""
        try:
            return _PERMITTED[module, name]
        except KeyError:
            raise ForbiddenPickle(
                f"{self._path} refers to {module}.{name}, which is no number, array or container, and was "
                "not run: save the state dict alone, as tensors or numpy arrays"
            ) from None


def _to_tensors(content: Any) -> Any:
    """Replace numpy arrays and scalars in nested dicts by tensors; what no tensor can hold stays."""
    if isinstance(content, Mapping):
        return {key: _to_tensors(value) for key, value in content.items()}
    if isinstance(content, np.ndarray | np.generic) and content.dtype.kind in "biuf":
        native = np.array(content, dtype=content.dtype.newbyteorder("="))
        try:
            return torch.from_numpy(native)
        except TypeError:  # a number type that PyTorch lacks
            return content
    return content
