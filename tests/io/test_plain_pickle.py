"""Pickles that were made to harm: no code runs, no memory is taken for what a file merely announces."""

import argparse
import pickle
import resource
import struct
from pathlib import Path

import pytest
import torch
from yacs.config import CfgNode

from fss_d2.io.state_dict import ForbiddenPickle, load_plain, read_state_dict

_ARRAY = b"\x8c\x05numpy\x8c\x07ndarray\x93"
_CORE = b"\x8c\x16numpy._core.multiarray"


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04\x8c\x08builtins\x8c\x05bytes\x93\x8a\x05\x00\x00\x00\x00\x10\x85R.",  # bytes(2 ** 36)
        b"\x80\x04\x8c\x08builtins\x8c\x09bytearray\x93\x8a\x05\x00\x00\x00\x00\x10\x85R.",
        b"\x80\x04N" + b"r\xff\xff\xff\x7f" + b"X\x00\x00\x00\x7fa",  # a large memo, and a string of 2 GB
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"a.",
        b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"N.",
        b"\x80\x04" + _ARRAY + b"\x8a\x05\x00\x00\x00\x00\x10\x85R.",  # numpy.ndarray(2 ** 36)
        b"\x80\x04"
        + _CORE
        + b"\x8c\x0c_reconstruct\x93"
        + _ARRAY
        + b"\x8a\x05\x00\x00\x00\x00\x10\x85C\x01b\x87R.",
        b"(" * 100_000 + b"l" + b"0",
        b"]" * 100_000 + b"a" * 99_999 + b".",
        b"\x80\x04]\x94" + b"".join(b"]\x94h%ch%ca" % (i, i) for i in range(200)) + b".",
    ],
)
def test_bombs_in_pickles_take_no_memory(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.pkl").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"w\.pkl"):
        read_state_dict(tmp_path / "w.pkl")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def _dtype(code: str) -> bytes:
    """A dtype whose state numpy itself would trust."""
    made = b"\x80\x04\x8c\x05numpy\x8c\x05dtype\x93" + pickle.dumps(code, 2)[2:-1] + b"\x89\x88\x87R"
    return made + b"(K\x03\x8c\x01<NNK\x05K\x04K\x04K\x00tb."


@pytest.mark.parametrize("code", ["O8", "V8", "M8", "f4, i4", "f-4"])
def test_arrays_of_other_things_than_numbers(tmp_path: Path, code: str) -> None:
    (tmp_path / "w.pkl").write_bytes(_dtype(code))
    with pytest.raises(ValueError, match="is no checkpoint of plain tensors"):
        read_state_dict(tmp_path / "w.pkl")


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04\x8c\x0ccollections\x8c\x0bOrderedDict\x93}b.",  # a state for the class itself
        b"\x80\x04]}\x8c\x01a\x8c\x01bsb.",  # for a list
        b"ctorch._utils\n_rebuild_tensor_v2\n}b.",
    ],
)
def test_states_of_what_has_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.pkl").write_bytes(content)
    with pytest.raises(ValueError, match="is no checkpoint of plain tensors"):
        read_state_dict(tmp_path / "w.pkl")


@pytest.mark.parametrize("name", ["_rebuild_qtensor", "_rebuild_wrapper_subclass", "_import_dotted_name"])
def test_functions_of_torch_are_not_called(tmp_path: Path, name: str) -> None:
    (tmp_path / "w.pkl").write_bytes(f"ctorch._utils\n{name}\n(tR.".encode())
    with pytest.raises(ForbiddenPickle, match=f"refers to torch._utils.{name}, .*was not run"):
        load_plain(tmp_path / "w.pkl")


def test_a_tensor_without_its_storage(tmp_path: Path) -> None:
    storage = b"(Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI4\ntQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"I0\n(I4\nt(I1\ntI00\n(dtR"
    (tmp_path / "w.pkl").write_bytes(b"(dVa\n" + tensor + b"s.")
    with pytest.raises(ValueError, match="is no checkpoint of plain tensors"):
        read_state_dict(tmp_path / "w.pkl")


def test_settings_that_trainings_save_are_left_out(tmp_path: Path) -> None:
    """As DETR, Swin and timm do; what they hold is read like the rest, and code in it is refused."""
    path = tmp_path / "w.pth"
    settings = argparse.Namespace(lr=0.1, folder=Path("/data"), cfg=CfgNode({"A": CfgNode({"B": 1})}))
    torch.save({"model": {"a": torch.ones(2)}, "args": settings}, path)
    assert load_plain(path)["args"] == {}
    assert list(read_state_dict(path)) == ["a"]
    torch.save({"model": {"a": torch.ones(2)}, "args": argparse.Namespace(call=print)}, path)
    with pytest.raises(ForbiddenPickle, match=r"__builtin__\.print"):
        load_plain(path)
