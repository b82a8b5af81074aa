"""Atomic writes."""

import os
from pathlib import Path

import pytest

from fss_d2.files import (
    atomic_path,
    check_writable,
    is_half_written,
    printable,
    read_json_object,
    write_atomic,
)


def test_write_atomic_makes_the_folder_and_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "f"
    write_atomic(path, b"content")
    assert path.read_bytes() == b"content"
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_while_writing_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_atomic(path, b"old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_while_renaming_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    write_atomic(path, b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_leaves_is_known(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a.b.json") as temporary:
        assert is_half_written(temporary)
        temporary.write_bytes(b"")
    assert not any(is_half_written(tmp_path / name) for name in ("a.json", ".a.tmp", "a.1.tmp", ".a.x.tmp"))


@pytest.mark.parametrize(
    ("content", "message"), [(b"{", "is not valid JSON"), (b"\xff", "is not"), (b"3", "int")]
)
def test_json_that_is_no_object_is_an_error_of_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"^\S*x\.json .*{message}.*; fix it$") as caught:
        read_json_object(tmp_path / "x.json", "fix it")
    assert "\n" not in str(caught.value)


def test_any_name_can_be_printed() -> None:
    assert printable("日本/a b.jpg") == "日本/a b.jpg"
    assert printable(Path(os.fsdecode(b"bad\xff.jpg"))) == r"bad\udcff.jpg"


def test_check_writable(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write to the output folder .*file.* choose another"):
        check_writable(tmp_path / "file" / "below")
