"""Weight files of every format: read in full, or refused with the reason."""

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fss_d2.checkpoint.checkpointer import FewShotCheckpointer
from fss_d2.io.state_dict import load_plain, read_state_dict

BASE = torch.arange(12.0)
CONTENT = {
    "model": {
        "transposed": BASE[4:10].view(2, 3).t(),
        "shared": BASE[:6],
        "again": BASE[:6],
        "half": torch.tensor([0.5]).half(),
        "bfloat16": torch.tensor([0.5]).bfloat16(),
        "double": torch.tensor([1 / 3], dtype=torch.float64),
        "complex": torch.tensor([1 + 2j]),
        "flags": torch.tensor([True, False]),
        "scalar": torch.tensor(3),
        "nothing": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    },
    "optimizer": {
        "state": {0: {"step": torch.tensor(4.0)}},
        "param_groups": [{"lr": 0.1, "betas": (0.9, 1)}],
    },
    "size": torch.Size([1, 2]),
    "iteration": 7,
}


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, Tensor):
        return (
            found.dtype == expected.dtype and found.shape == expected.shape and torch.equal(found, expected)
        )
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(same(found[k], expected[k]) for k in expected)
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(same, found, expected))
    return found == expected and type(found) is type(expected)


@pytest.mark.parametrize("is_zip", [True, False])
def test_pytorch_files_of_both_formats(tmp_path: Path, is_zip: bool) -> None:
    path = tmp_path / "w.pth"
    torch.save(CONTENT, path, _use_new_zipfile_serialization=is_zip)
    found = load_plain(path)
    assert same(found, CONTENT)
    assert found["model"]["shared"].data_ptr() == found["model"]["again"].data_ptr()
    shapes = load_plain(path, values=False)["model"]
    assert shapes["transposed"].is_meta and shapes["transposed"].shape == (3, 2)


def test_attributes_of_tensors_are_left_out(tmp_path: Path) -> None:
    tensor, parameter = torch.rand(3), torch.nn.Parameter(torch.rand(2))
    tensor.note = parameter.note = "decay"
    torch.save({"a": tensor, "b": parameter}, tmp_path / "w.pth")
    found = read_state_dict(tmp_path / "w.pth")
    assert torch.equal(found["a"], tensor) and torch.equal(found["b"], parameter)
    assert not hasattr(found["a"], "note")


def test_torch_load_is_never_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ran code before torch 2.6, so that a file is read in the same way with every torch."""
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("torch.load"))
    torch.save(torch.nn.Linear(2, 1).state_dict(), tmp_path / "w.pth")
    FewShotCheckpointer(torch.nn.Linear(2, 1)).load(str(tmp_path / "w.pth"))


def test_pytorch_files_without_checksums_or_zipped_again(tmp_path: Path) -> None:
    torch.save(CONTENT, tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth") as old, zipfile.ZipFile(tmp_path / "z.pth", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name), zipfile.ZIP_DEFLATED)
    assert same(load_plain(tmp_path / "z.pth"), CONTENT)
    content = bytearray((tmp_path / "w.pth").read_bytes())
    with zipfile.ZipFile(tmp_path / "w.pth") as archive:
        info = archive.getinfo("w/data/0")
    start = content.rindex(b"PK\x01\x02", 0, content.rindex(b"w/data/0"))
    content[start + 16 : start + 20] = bytes(4)  # as torch.serialization.set_crc32_options(False) leaves it
    content[info.header_offset + 14 : info.header_offset + 18] = bytes(4)
    (tmp_path / "n.pth").write_bytes(content)
    assert same(load_plain(tmp_path / "n.pth"), CONTENT)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.bin"])
def test_safetensors_are_known_by_their_content(tmp_path: Path, name: str) -> None:
    state = {"weight": torch.rand(2, 3), "half": torch.ones(2).half()}
    save_file(state, tmp_path / name)
    assert same(dict(sorted(load_plain(tmp_path / name).items())), dict(sorted(state.items())))
    assert load_plain(tmp_path / name, values=False)["weight"].shape == (2, 3)
    model = torch.nn.Linear(3, 2, bias=False)
    save_file({"weight": state["weight"]}, tmp_path / name)
    FewShotCheckpointer(model).load(str(tmp_path / name))
    assert torch.equal(model.weight, state["weight"])


def test_a_pytorch_file_called_safetensors(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "w.safetensors")
    assert torch.equal(read_state_dict(tmp_path / "w.safetensors")["a"], torch.ones(2))


def test_arrays_with_permuted_axes(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(1, 0, 2)
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"a": array}, protocol=5))
    assert np.array_equal(load_plain(tmp_path / "w.pkl")["a"].numpy(), array)


def _zip(names: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in names.items():
            archive.writestr(name, content)
    return file.getvalue()


def _saved(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def _safetensors(state: dict[str, Tensor], cut: int) -> bytes:
    from safetensors.torch import save

    return save(state)[:-cut]


_PAGE = b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>"
_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
_HEADER = json.dumps({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}).encode()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty; get the file again"),
        (_PAGE, "it is a web page, which a failed download left; get the file again"),
        (b"\n <html>", "it is a web page, which a failed download left; get the file again"),
        (
            b"<?xml version='1.0'?><Error>",
            "it is a web page, which a failed download left; get the file again",
        ),
        (_POINTER, "it is a git-lfs pointer, not the file itself; run `git lfs pull`"),
        (b"Access denied", "it is a text file ('Access denied'); check the path"),
        (_saved(CONTENT)[:-200], "it is cut off; get the file again"),
        (_saved(CONTENT)[:300], "it is cut off; get the file again"),
        (_safetensors({"a": torch.ones(9)}, 5), "as safetensors it is damaged or cut off"),
        (struct.pack("<Q", 500) + _HEADER, "it is cut off; get the file again"),
        (_zip({"a.txt": b"a"}), "it is a zip archive of other files; save the model's state dict"),
        (
            _zip({"m/data.pkl": b"a", "m/constants.pkl": b"b"}),
            "it is a TorchScript program; save the",
        ),
        (b"\x1f\x8b\x08" + bytes(20), "it is a gzip file, which is not read; extract or convert it first"),
        (b"\x89HDF\r\n\x1a\n" + bytes(20), "it is a HDF5 file, which is not read; extract or convert it"),
        (
            b"a" * 257 + b"ustar" + bytes(99),
            "it is a tar file, which is not read; extract or convert it first",
        ),
        (bytes(range(100)), "it is another kind of file, or it is broken; check the path"),
    ],
)
def test_other_files_are_refused_with_the_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_state_dict(path)
    assert f"{path} is no checkpoint of plain tensors: {reason}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    content = bytearray(_saved({"a": torch.full((1000,), 3.0)}))
    content[content.index(struct.pack("<f", 3.0) * 9) + 100] ^= 64
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"it is damaged \(Bad CRC-32 for file .*; get the file again"):
        read_state_dict(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("tensor", "fault"),
    [
        (torch.eye(2).to_sparse(), "is sparse: save it as a dense tensor"),
        (torch.empty(2, device="meta"), "has no values: it was saved on the meta device"),
        (torch.ones(2, dtype=torch.complex64).conj(), "has values that are conjugated or negated when read"),
    ],
)
def test_tensors_without_plain_values_are_named(tmp_path: Path, tensor: Tensor, fault: str) -> None:
    torch.save({"model": {"head.weight": tensor}}, tmp_path / "w.pth")
    with pytest.raises(ValueError) as caught:
        read_state_dict(tmp_path / "w.pth")
    assert str(caught.value) == f"{tmp_path / 'w.pth'}: tensor model.head.weight {fault}"


def _described(
    size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, numel: int = 4, device: str = "cpu"
) -> bytes:
    """A PyTorch file whose only tensor is described so, on a storage of four numbers."""
    numbers = ["(" + "".join(f"I{number}\n" for number in part) + "t" for part in (size, stride)]
    storage = f"(Vstorage\nctorch\nFloatStorage\nV0\nV{device}\nI{numel}\ntQ"
    tensor = f"ctorch._utils\n_rebuild_tensor_v2\n({storage}I{offset}\n{''.join(numbers)}I00\n(dtR"
    return _zip({"m/data.pkl": f"(dVa\n{tensor}s.".encode(), "m/data/0": bytes(16)})


@pytest.mark.parametrize("device", ["cuda:7", "xla:0", "mps"])
def test_tensors_of_any_device_come_to_the_cpu(tmp_path: Path, device: str) -> None:
    (tmp_path / "w.pth").write_bytes(_described((2, 2), (2, 1), device=device))
    assert read_state_dict(tmp_path / "w.pth")["a"].device.type == "cpu"
    (tmp_path / "w.pth").write_bytes(_described((2, 2), (2, 1), device="meta"))
    with pytest.raises(ValueError, match="tensor a has no values: it was saved on the meta device"):
        read_state_dict(tmp_path / "w.pth")


def test_views_outside_their_storage_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(_described((2, 2), (2, 1)))
    assert torch.equal(read_state_dict(path)["a"], torch.zeros(2, 2))
    for content in (
        _described((5,), (1,)),
        _described((4,), (1,), offset=1),
        _described((2, 2), (1 << 40, 1)),
        _described((-4,), (-1,)),
        _described((4,), (1,), numel=400),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="no checkpoint of plain tensors"):
            read_state_dict(path)


def _deflated(size: int) -> bytes:
    return _zip({"m/data.pkl": b"N.", "m/data/0": bytes(size)})


def _overlapping(copies: int) -> bytes:
    """Many names for the same bytes."""
    with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
        archive.writestr("m/data.pkl", b"N.")
        archive.writestr("m/data/0", bytes(1 << 20))
        info = archive.getinfo("m/data/0")
        for number in range(1, copies):
            copy = zipfile.ZipInfo(f"m/data/{number}")
            copy.header_offset, copy.CRC = info.header_offset, info.CRC
            copy.file_size = copy.compress_size = info.file_size
            archive.filelist.append(copy)
    return file.getvalue()


@pytest.mark.parametrize("make", [lambda: _deflated(100 << 20), lambda: _overlapping(100)])
def test_a_file_that_announces_far_more_than_it_holds(tmp_path: Path, make: Callable[[], bytes]) -> None:
    (tmp_path / "w.pth").write_bytes(make())
    with pytest.raises(ValueError, match=r"its [\d,]+ bytes announce 10\d,\d{3},\d{3}; save the"):
        read_state_dict(tmp_path / "w.pth")
