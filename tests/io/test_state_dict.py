"""Plain pickles of arrays are read; anything else in a pickle is named and not run."""

import collections
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fss_d2.checkpoint.checkpointer import FewShotCheckpointer
from fss_d2.io.state_dict import ForbiddenPickle, load_plain, read_state_dict

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def write(folder: Path, content: bytes) -> Path:
    path = folder / "weights.pkl"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("protocol", "older_numpy"), [*((p, False) for p in PROTOCOLS), *((p, True) for p in range(4))]
)
def test_arrays_of_every_protocol_and_numpy(tmp_path: Path, protocol: int, older_numpy: bool) -> None:
    model = collections.OrderedDict(
        weight=np.arange(6, dtype=np.float32).reshape(2, 3),
        transposed=np.arange(6, dtype=np.float64).reshape(2, 3).T,
        big_endian=np.array([1, 256], dtype=">i4"),
        half=np.array([0.5], dtype=np.float16),
        count=np.int64(7),
        flags=np.array([True, False]),
        empty=np.zeros((0, 4), np.float32),
    )
    content = {"model": model, "__author__": "someone", "iteration": 9, "names": {"a"}, "raw": b"\xff"}
    data = pickle.dumps(content, protocol=protocol)
    if older_numpy:  # protocols before 4 write a module's name without its length
        data = data.replace(b"cnumpy._core.", b"cnumpy.core.")
        assert b"cnumpy.core.multiarray\n" in data
    loaded = load_plain(write(tmp_path, data))
    assert (loaded["__author__"], loaded["iteration"], loaded["names"]) == ("someone", 9, {"a"})
    assert loaded["raw"] == b"\xff"
    assert loaded["model"].keys() == model.keys()
    for name, array in model.items():
        tensor = loaded["model"][name]
        assert isinstance(tensor, torch.Tensor)
        assert tensor.shape == array.shape
        assert np.array_equal(tensor.numpy(), array)
    assert loaded["model"]["half"].dtype == torch.float16


class Command:
    """What an attacker pickles: loading it would run a command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_command_does_not_run(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "ran"
    content = {"model": {"weight": np.zeros(2)}, "evil": Command(marker)}
    path = write(tmp_path, pickle.dumps(content, protocol=protocol))
    with pytest.raises(ForbiddenPickle, match=r"weights.pkl refers to (posix|nt).system, .*not run") as error:
        load_plain(path)
    assert "\n" not in str(error.value)
    assert not marker.exists()
    for read in (read_state_dict, FewShotCheckpointer(torch.nn.Linear(1, 1)).load):
        with pytest.raises(ValueError, match=r"(posix|nt).system"):
            read(str(path))
    assert not marker.exists()
    pickle.loads(pickle.dumps(Command(marker)))  # the test itself is one: unrestricted, it does run
    assert marker.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"cbuiltins\neval\n(V1\ntR.",
        b"cbuiltins\ngetattr\n.",
        b"c__builtin__\n__import__\n.",
        b"cnumpy\nload\n.",
        b"cnumpy.core.multiarray\nfrombuffer\n.",
        b"ctorch.storage\n_load_from_bytes\n.",
        b"cfss_d2.io.state_dict\npickle\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.dump\x93.",  # a dotted name of a permitted class
    ],
)
def test_only_what_arrays_need_is_found(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ForbiddenPickle, match="was not run"):
        load_plain(write(tmp_path, data))


def test_bytes_come_in_one_encoding_only(tmp_path: Path) -> None:
    ok = b"c_codecs\nencode\n(V\\u00ff\nVlatin1\ntR."
    assert load_plain(write(tmp_path, ok)) == b"\xff"
    with pytest.raises(pickle.UnpicklingError, match="'rot13'"):
        load_plain(write(tmp_path, ok.replace(b"latin1", b"rot13")))


def test_torch_files_whatever_they_are_called(tmp_path: Path) -> None:
    for older in (False, True):
        path = tmp_path / "model.pkl"
        torch.save({"model": {"a": torch.ones(2)}}, path, _use_new_zipfile_serialization=not older)
        assert torch.equal(load_plain(path)["model"]["a"], torch.ones(2))
        torch.save({"a": Command(tmp_path / "ran")}, path, _use_new_zipfile_serialization=not older)
        with pytest.raises(ValueError, match="is no checkpoint of plain tensors"):
            read_state_dict(path)
        assert not (tmp_path / "ran").exists()


def test_arrays_that_no_tensor_can_hold(tmp_path: Path) -> None:
    path = write(tmp_path, pickle.dumps({"model": {"names": np.array(["a", "b"])}}))
    with pytest.raises(ValueError, match="holds no state dict of named tensors"):
        read_state_dict(path)
