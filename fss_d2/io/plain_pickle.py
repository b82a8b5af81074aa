"""Pickles of numbers, strings, arrays, tensors and containers of these, read without running their code."""

import collections
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, ClassVar

import numpy as np
import torch

from fss_d2.io.files import shortened

__all__ = ["ForbiddenPickle", "PlainUnpickler", "Storage", "StoredArray", "StoredTensor"]
__all__ += ["UnreadableError"]


class UnreadableError(ValueError):
    """A file is none that is read; the message names it and says what it is."""


class ForbiddenPickle(UnreadableError):
    """A pickle refers to something other than numbers, arrays and containers; the message names it."""


@dataclass(frozen=True)
class Storage:
    """Numbers of a file, of which tensors are views."""

    key: str
    dtype: torch.dtype
    numel: int
    is_meta: bool = False  # it was saved without its numbers

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that a pickle describes. Nothing of it has been checked."""

    storage: Storage | None  # None: without numbers
    dtype: torch.dtype
    offset: int = 0
    size: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    fault: str = ""  # why it is not read, "is sparse"


class PlainUnpickler(pickle._Unpickler):  # the one in C allocates what a file merely announces
    """Finds only what arrays, tensors, numbers and containers need; everything else ends the reading.

    Nothing of PyTorch or numpy is called that could trust the file: tensors become `StoredTensor`, arrays
    `StoredArray`.

    Args:
        refers: the beginning of an error about something else, ``w.pkl refers to``.

    Attributes:
        storages: by key, those that tensors refer to.
    """

    def __init__(self, file: IO[bytes], refers: str) -> None:
        super().__init__(file, encoding="latin1")  # for arrays in pickles of Python 2
        self._refers = refers
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return the permitted object of that name; raise `ForbiddenPickle` for any other."""
        if (module, name) in _PERMITTED:
            return _PERMITTED[module, name]
        if module in ("torch", "torch.storage") and (found := _torch_constant(name)) is not None:
            return found
        found = shortened(f"{module}.{name}")
        raise ForbiddenPickle(
            f"{self._refers} {found}, which is no number, array or container, and was not run: save "
            "the state dict alone, as tensors or numpy arrays"
        )

    def persistent_load(self, pid: Any) -> Storage:
        """Return the storage that a tensor of a PyTorch file refers to."""
        kind, dtype, key, location, numel, *view = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or any(view):
            raise pickle.UnpicklingError(f"a reference to a {kind}, not to a storage of numbers")
        storage = Storage(str(key), dtype, _count(numel), is_meta=location == "meta")
        if self.storages.setdefault(storage.key, storage) != storage:
            raise pickle.UnpicklingError(f"storage {storage.key} is described in two ways")
        return storage

    def _load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, StoredArray | _Dtype | _Settings):
            target.set(state)
        elif not isinstance(target, collections.OrderedDict):  # its attributes are left out
            raise pickle.UnpicklingError("a state for something that has none")

    dispatch: ClassVar = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: _load_build}


def _count(number: Any) -> int:
    if not isinstance(number, int) or number < 0:
        raise pickle.UnpicklingError(f"{number!r} is no size")
    return number


def _torch_constant(name: str) -> torch.dtype | None:
    """The number type that a name like float32 or FloatStorage stands for; None for other names."""
    if name.endswith("Storage"):
        return _STORAGES.get(name.removesuffix("Storage"))
    found = getattr(torch, name, None)
    return found if isinstance(found, torch.dtype) else None


def _tensor(
    storage: Storage,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    requires_grad: bool = False,
    hooks: Any = None,
    metadata: Any = None,
) -> StoredTensor:
    """Stand for `torch._utils._rebuild_tensor_v2`."""
    if not isinstance(storage, Storage):
        raise pickle.UnpicklingError("a tensor without storage")
    fault = "has values that are conjugated or negated when read" if metadata else ""
    numbers = (tuple(map(_count, size)), tuple(map(_count, stride)))
    return StoredTensor(storage, storage.dtype, _count(offset), *numbers, fault)


def _typed_tensor(
    storage: Storage, offset: int, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *metadata: Any
) -> StoredTensor:
    """Stand for `torch._utils._rebuild_tensor_v3`, whose storage holds bytes."""
    if not isinstance(dtype, torch.dtype):
        raise pickle.UnpicklingError("a tensor without number type")
    typed = Storage(storage.key, dtype, storage.nbytes // dtype.itemsize, storage.is_meta)
    return _tensor(typed, offset, size, stride, grad, hooks, *metadata)


def _meta_tensor(dtype: torch.dtype, size: Any, stride: Any, requires_grad: Any) -> StoredTensor:
    return StoredTensor(None, dtype, fault="has no values: it was saved on the meta device")


def _sparse_tensor(layout: Any, data: Any) -> StoredTensor:
    return StoredTensor(None, torch.float32, fault="is sparse: save it as a dense tensor")


class _Settings(dict):
    """Stands for the settings that trainings save next to their weights; nothing of them is kept."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__()

    def set(self, state: Any) -> None:
        """Leave out the attributes."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Leave out the item."""


def _encode(text: str, encoding: str) -> bytes:
    """Replace `_codecs.encode`, which protocols 0 to 2 use to pickle bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes encoded as {encoding!r}, not latin1")
    return text.encode("latin1")


def _of_content(kind: type) -> Callable[..., Any]:
    """`bytes` or `bytearray`, which would fill any memory for a number."""

    def make(*content: Any) -> Any:
        if any(isinstance(part, int) for part in content):
            raise pickle.UnpicklingError(f"{kind.__name__} of a size without content")
        return kind(*content)

    return make


class _Dtype:
    """Stands for `numpy.dtype`, whose own unpickling trusts the file."""

    def __init__(self, code: str, *flags: Any) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[biufcSU]\d{1,9}", code):
            raise pickle.UnpicklingError(f"an array of {code!r}, which are no numbers")
        self.dtype = np.dtype(code)

    def set(self, state: Any) -> None:
        """Set the byte order, the only part of the state that numbers need."""
        if state[1] not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError(f"a byte order {state[1]!r}")
        self.dtype = self.dtype.newbyteorder(state[1])


class StoredArray:
    """Stands for a `numpy.ndarray` until its content is known."""

    def __init__(self, *described: Any) -> None:
        self.array = np.empty(0, np.uint8)

    def set(self, state: Any) -> None:
        """Take version, shape, dtype, order and bytes."""
        _, shape, dtype, is_fortran, data = state
        self.array = _frombuffer(data, dtype, shape, "F" if is_fortran else "C").array


def _frombuffer(data: Any, dtype: _Dtype, shape: Any, order: str, axes: Any = None) -> StoredArray:
    """Replace numpy's function of that name, with which protocol 5 pickles arrays."""
    made = StoredArray()
    content = data.encode("latin1") if isinstance(data, str) else bytes(memoryview(data))
    flat = np.frombuffer(content, dtype.dtype)
    made.array = flat.reshape(shape).transpose(axes) if order == "K" else flat.reshape(shape, order=order)
    return made


def _scalar(dtype: _Dtype, data: Any = b"") -> np.generic:
    """Replace numpy's function of that name."""
    return _frombuffer(data, dtype, (1,), "C").array[0]


def _numpy_functions() -> dict[tuple[str, str], Any]:
    """What rebuilds arrays, dtypes and scalars, under the module names of numpy 1 and 2."""
    functions: dict[tuple[str, str], Any] = {("numpy", "ndarray"): "ndarray", ("numpy", "dtype"): _Dtype}
    for core in ("numpy.core", "numpy._core"):
        functions[core + ".multiarray", "_reconstruct"] = StoredArray
        functions[core + ".multiarray", "scalar"] = _scalar
        functions[core + ".numeric", "_frombuffer"] = _frombuffer
    return functions


_STORAGES = {
    **{"Untyped": torch.uint8, "Byte": torch.uint8, "Char": torch.int8, "Short": torch.int16},
    **{"Int": torch.int32, "Long": torch.int64, "Bool": torch.bool, "Half": torch.float16},
    **{"BFloat16": torch.bfloat16, "Float": torch.float32, "Double": torch.float64},
    **{"ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128},
}
_PERMITTED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("_codecs", "encode"): _encode,
    **{
        (module, kind.__name__): kind if kind in (set, frozenset) else _of_content(kind)
        for module in ("builtins", "__builtin__")
        for kind in (set, frozenset, bytes, bytearray)
    },
    **_numpy_functions(),
    **{("argparse", "Namespace"): _Settings, ("pathlib", "PosixPath"): _Settings},
    **{("yacs.config", "CfgNode"): _Settings, ("detectron2.config.config", "CfgNode"): _Settings},
    ("torch", "Size"): tuple,
    ("torch", "device"): lambda *parts: ":".join(map(str, parts)),
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _typed_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch._utils", "_rebuild_parameter_with_state"): lambda data, *_: data,
    ("torch._tensor", "_rebuild_from_type_v2"): lambda make, _kind, arguments, _state: make(*arguments),
    ("torch", "Tensor"): "Tensor",
    ("torch.nn.parameter", "Parameter"): "Parameter",
    ("torch._utils", "_rebuild_meta_tensor_no_storage"): _meta_tensor,
    ("torch._utils", "_rebuild_sparse_tensor"): _sparse_tensor,
    ("torch.serialization", "_get_layout"): str,
}
