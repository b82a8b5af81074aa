"""Reading files of tensors without running code that a pickle may carry."""

import collections
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = ["UNREADABLE", "ForbiddenPickle", "load_plain"]

# What reading raises for foreign, cut or code-carrying files; a text can raise the last six.
UNREADABLE = (
    pickle.UnpicklingError,
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


class ForbiddenPickle(ValueError):
    """A pickle asks for something else than numbers, arrays and containers; the message names it."""


def load_plain(path: str | os.PathLike[str]) -> Any:
    """Read tensors, arrays, numbers, strings and containers of these onto the CPU.

    Both PyTorch's files and plain pickles of numpy arrays (Detectron2's and Mask2Former's ``.pkl``) are
    read; the content tells which, not the name. Arrays in nested dicts become tensors.

    Raises:
        ForbiddenPickle: a plain pickle refers to anything else; nothing of it has run.
        UNREADABLE: the file is no such thing; its code, if any, has not run.
        OSError: the file cannot be opened.
    """
    if not zipfile.is_zipfile(path):
        with Path(path).open("rb") as file:
            content = _ArrayUnpickler(file, str(path)).load()
        older = isinstance(content, int) and content == torch.serialization.MAGIC_NUMBER
        if not older:  # PyTorch's files before it took up zip begin with that number
            return _to_tensors(content)
    return torch.load(path, map_location="cpu", weights_only=True)


def _encode(text: str, encoding: str) -> bytes:
    """Stands in for `_codecs.encode`, through which older protocols pickle bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes encoded as {encoding!r}, not latin1")
    return text.encode("latin1")


def _numpy_functions() -> dict[tuple[str, str], Any]:
    """What arrays, dtypes and scalars are rebuilt with, under the module names of numpy 1 and 2."""
    # How an array and a scalar say they are rebuilt: this numpy's own functions, under any of the names.
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
        super().__init__(file, encoding="latin1")  # as pickles of Python 2 with arrays need it
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        """The permitted object of that name; `ForbiddenPickle` for any other."""
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
        except TypeError:  # a kind of number that PyTorch lacks
            return content
    return content
