"""Weight files: PyTorch's, safetensors and pickles of arrays, read without running code that they carry.

`torch.load` is not called, also not with ``weights_only``, which ran code from some files before torch 2.6
(CVE-2025-32434): what a pickle may name is decided here, in the same way for every torch.
"""

import errno
import io
import logging
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fss_d2.io.files import shortened

from .plain_pickle import ForbiddenPickle, PlainUnpickler, Storage, StoredArray, StoredTensor, UnreadableError

__all__ = ["UNREADABLE", "ForbiddenPickle", "UnreadableError", "describe", "load_plain"]

logger = logging.getLogger(__name__)

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
_ZIP, _TORCH_MAGIC = b"PK\x03\x04", 0x1950A86A20F9469CFC6C  # of PyTorch's files since 1.6, and before
_MAX_HEADER = 100_000_000  # bytes; safetensors' own limit
# A file may announce so many times its own size, or at least these bytes: weights do not compress.
_MAX_EXPANSION, _SMALL = 10, 64 << 20
_ARCHIVES = {
    **{b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"7z\xbc\xaf": "7z", b"(\xb5/\xfd": "zstd"},
    **{b"Rar!": "rar", b"\x89HDF": "HDF5"},
}
_Read = Callable[[Storage], Tensor]  # returns the bytes (n,) uint8 of a storage


def load_plain(path: str | os.PathLike[str], *, values: bool = True) -> Any:
    """Read tensors, arrays, numbers, strings and containers of these onto the CPU.

    PyTorch's files, safetensors and plain pickles of numpy arrays (``.pkl`` of Detectron2 and Mask2Former)
    are recognised by their content, whatever they are called. Arrays become tensors.

    Args:
        values: False: the tensors of PyTorch's files and safetensors are on the meta device, and their
            values are not read.

    Raises:
        ForbiddenPickle: a pickle refers to anything else; none of it was run.
        UnreadableError: the file is recognised as something else, or announces far more than it holds.
        UNREADABLE: the file is none of these; code in it was not run.
        OSError: the file cannot be opened.
    """
    path = Path(path)
    with path.open("rb") as file:
        head = file.read(512)
    size = path.stat().st_size
    header = int.from_bytes(head[:8], "little")
    try:
        if head[8:9] == b"{" and header <= _MAX_HEADER:
            return _load_safetensors(path, values, is_cut=8 + header > size)
        if head.startswith(_ZIP):
            return _load_zip(path, values, size)
        if fault := _foreign(head):
            raise UnreadableError(f"{path} is no checkpoint of plain tensors: it is {fault}")
        return _load_pickles(path, values)
    except (zipfile.BadZipFile, zlib.error, struct.error, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # a place before the file's beginning
            raise
        reason = shortened(error)
        raise UnreadableError(
            f"{path} is no checkpoint of plain tensors: it is damaged ({reason}); get the file again"
        ) from error
    except RecursionError as error:
        raise UnreadableError(
            f"{path} is no checkpoint of plain tensors: its content is nested too deeply"
        ) from error


def _foreign(head: bytes) -> str:
    """What a file is that holds no weights, and the fix; "" if it is not recognised."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "empty; get the file again"
    if head.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer, not the file itself; run `git lfs pull`"
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<error")):
        return "a web page, which a failed download left; get the file again"
    kinds = [kind for magic, kind in _ARCHIVES.items() if head.startswith(magic)]
    if head[257:262] == b"ustar":
        kinds = ["tar"]
    return f"a {kinds[0]} file, which is not read; extract or convert it first" if kinds else ""


def describe(path: str | os.PathLike[str]) -> str:
    """What a file seems to be that `load_plain` could not read, for a message."""
    with open(path, "rb") as file:
        head = file.read(40)
    if head.isascii() and (text := " ".join(head.decode().split())).isprintable():
        return f"it is a text file ({text!r})"
    return "it is another kind of file, or it is broken"


def _load_safetensors(path: Path, values: bool, *, is_cut: bool) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        logger.info("%s is read as safetensors, which its content is", path)
    if is_cut:
        raise UnreadableError(f"{path} is no checkpoint of plain tensors: it is cut off; get the file again")
    try:
        if values:
            return safetensors.torch.load_file(path)
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            return {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in names}
    except SafetensorError as error:
        raise UnreadableError(
            f"{path} is no checkpoint of plain tensors: as safetensors it is damaged or cut off "
            f"({shortened(error)}); get the file again"
        ) from error


def _load_zip(path: Path, values: bool, size: int) -> Any:
    """Read PyTorch's format since 1.6: a zip archive with data.pkl and a file for each storage."""
    if not zipfile.is_zipfile(path):
        raise UnreadableError(f"{path} is no checkpoint of plain tensors: it is cut off; get the file again")
    with zipfile.ZipFile(path) as archive:
        infos = {info.filename: info for info in archive.infolist()}
        folder = next(iter(infos), "").partition("/")[0]
        if f"{folder}/data.pkl" not in infos or f"{folder}/constants.pkl" in infos:
            is_program = f"{folder}/constants.pkl" in infos
            kind = "a TorchScript program" if is_program else "a zip archive of other files"
            raise UnreadableError(
                f"{path} is no checkpoint of plain tensors: it is {kind}; save the model's state dict"
            )
        announced = sum(info.file_size for info in archive.infolist())
        if announced > max(_SMALL, _MAX_EXPANSION * size) or len(infos) < len(archive.infolist()):
            raise UnreadableError(
                f"{path} is no checkpoint of plain tensors: its {size:,} bytes announce {announced:,}; "
                "save the weights anew, without compression"
            )

        def member(name: str) -> bytes:
            info = infos[f"{folder}/{name}"]
            if info.CRC == 0:  # torch.serialization.set_crc32_options(False) leaves the sums out
                info.CRC = None
            return archive.read(info)

        if f"{folder}/byteorder" in infos and member("byteorder") != b"little":
            raise UnreadableError(f"{path} was saved on a big-endian machine: save it anew on another")
        content = PlainUnpickler(io.BytesIO(member("data.pkl")), _torch_refers(path)).load()
        read = (lambda storage: _bytes_of(member(f"data/{storage.key}"), storage)) if values else None
        return _Maker(path, read).make(content)


def _torch_refers(path: Path) -> str:
    return f"{path} is no checkpoint of plain tensors: it refers to"


def _load_pickles(path: Path, values: bool) -> Any:
    """Read one plain pickle, or PyTorch's older format: a number, version and machine, content, storages."""
    with path.open("rb") as file:
        content = PlainUnpickler(file, f"{path} refers to").load()
        if not isinstance(content, int) or content != _TORCH_MAGIC:
            return _Maker(path, _no_storage).make(content)
        refers = _torch_refers(path)
        _version, _machine = (PlainUnpickler(file, refers).load() for _ in range(2))
        unpickler = PlainUnpickler(file, refers)
        content = unpickler.load()
        if not values:
            return _Maker(path, None).make(content)
        tensors, size = {}, path.stat().st_size
        for key in PlainUnpickler(file, refers).load():
            storage = unpickler.storages[str(key)]
            if int.from_bytes(file.read(8), "little") != storage.numel or storage.nbytes > size:
                raise EOFError
            tensors[storage.key] = _bytes_of(file.read(storage.nbytes), storage)
        return _Maker(path, lambda storage: tensors[storage.key]).make(content)


def _no_storage(storage: Storage) -> Tensor:
    raise EOFError(f"a plain pickle has no storage {storage.key}")


def _bytes_of(data: bytes, storage: Storage) -> Tensor:
    """The content of a storage, (n,) uint8; EOFError unless it is whole."""
    if len(data) != storage.nbytes:
        raise EOFError
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


class _Maker:
    """Makes tensors of what a pickle describes, in nested containers; what they share they go on sharing.

    Args:
        path: of the file, for errors.
        read: returns the bytes of a storage; None leaves the tensors on the meta device.
    """

    def __init__(self, path: Path, read: _Read | None) -> None:
        self._path, self._read = path, read
        self._storages: dict[str, Tensor] = {}
        self._made: dict[int, Any] = {}  # by the identity of what it was made of

    def make(self, content: Any, name: str = "") -> Any:
        """Replace stored tensors, numpy arrays and scalars; ``name`` is that of the content in its file."""
        if id(content) not in self._made:
            self._made[id(content)] = self._new(content, name)
        return self._made[id(content)]

    def _new(self, content: Any, name: str) -> Any:
        if isinstance(content, Mapping):
            return {
                key: self.make(value, f"{name}.{key}".removeprefix(".")) for key, value in content.items()
            }
        if isinstance(content, list | tuple):
            return type(content)([self.make(value, f"{name}[{i}]") for i, value in enumerate(content)])
        if isinstance(content, StoredTensor):
            return self._tensor(content, name)
        if isinstance(content, StoredArray):
            content = content.array
        if isinstance(content, np.ndarray | np.generic) and content.dtype.kind in "biufc":
            native = np.array(content, dtype=content.dtype.newbyteorder("="))
            try:
                return torch.from_numpy(native)
            except TypeError:  # a number type that PyTorch lacks
                return content
        return content

    def _tensor(self, stored: StoredTensor, name: str) -> Tensor:
        storage, fault = stored.storage, stored.fault
        if storage is not None and storage.is_meta:
            fault = "has no values: it was saved on the meta device"
        if fault or storage is None:
            raise UnreadableError(f"{self._path}: tensor {name} {fault}")
        if self._read is None:
            return torch.empty(stored.size, dtype=stored.dtype, device="meta")
        if storage.key not in self._storages:
            self._storages[storage.key] = self._read(storage)
        flat = self._storages[storage.key].view(stored.dtype)
        return flat.as_strided(stored.size, stored.stride, stored.offset)
