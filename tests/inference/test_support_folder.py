"""Folders of annotated images."""

import logging
from pathlib import Path

import pytest

from fss_d2.inference.annotations import find_supports


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def names_of(folder: Path, **options: str) -> dict[str, list[tuple[str, str]]]:
    found = find_supports(folder, **options)
    return {name: [(i.name, m.name) for i, m in zip(*pair, strict=True)] for name, pair in found.items()}


def test_folders_of_classes(tmp_path: Path) -> None:
    touch(tmp_path, "dog/b.jpg", "dog/b.png", "dog/a.JPG", "dog/a_mask.png", "cat/x.png", "cat/x_mask.png")
    touch(tmp_path, ".git/a.jpg", "dog/.hidden.jpg", "dog/notes.txt")
    assert names_of(tmp_path) == {
        "cat": [("x.png", "x_mask.png")],
        "dog": [("a.JPG", "a_mask.png"), ("b.jpg", "b.png")],
    }


def test_endings_in_capitals(tmp_path: Path) -> None:
    touch(tmp_path, "a.JPG", "a.PNG", "b.JPEG", "b_mask.PNG", "c.PNG", "c_mask.png")
    assert names_of(tmp_path) == {
        "object": [("a.JPG", "a.PNG"), ("b.JPEG", "b_mask.PNG"), ("c.PNG", "c_mask.png")]
    }


def test_files_of_one_class(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "a.png", "b.webp", "b.png")
    assert names_of(tmp_path) == {"object": [("a.jpg", "a.png"), ("b.webp", "b.png")]}
    assert list(names_of(tmp_path, name="cat")) == ["cat"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["a.jpg"], r"a\.jpg has no mask: add a_mask\.png"),
        (["a.png"], r"a\.png has no mask: add a_mask\.png"),
        (["cat/a.jpg", "cat/b.png", "cat/b_mask.png"], r"a\.jpg has no mask"),
        (["cat/notes.txt"], "cat holds no image"),
        ([], "holds no image"),
        (["a.jpg", "a.png", "cat/b.jpg", "cat/b.png"], r"a\.jpg next to the class folder cat"),
        (
            ["cat/a.jpg", "cat/a.bmp", "cat/a_mask.png"],
            r"a\.bmp and a\.jpg have the same name, and a_mask\.png",
        ),
        (["cat/a.jpg", "cat/a.png", "cat/a_mask.png"], r"a\.jpg and a\.png have the same name"),
        (["cat/a.jpg", "cat/a.png", "cat/b_mask.png"], r"b_mask\.png has no image"),
        (["cat/a.HEIC"], r"cat holds no image that can be read, a\.HEIC \(HEIC files cannot be decoded"),
    ],
)
def test_folders_that_are_not_whole(files: list[str], message: str, tmp_path: Path) -> None:
    touch(tmp_path, *files)
    with pytest.raises(ValueError, match=message):
        find_supports(tmp_path)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_supports(tmp_path / "none")


def test_lost_pictures_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "cat/a.jpg", "cat/a_mask.png", "cat/b.NEF", "c.heic", "notes.txt")
    with caplog.at_level(logging.WARNING):
        assert list(find_supports(tmp_path)) == ["cat"]
    no_decoder = "files cannot be decoded here, save it as JPEG or PNG"
    assert [record.getMessage() for record in caplog.records] == [
        f"Left out in {tmp_path}: c.heic (HEIC {no_decoder})",
        f"Left out in {tmp_path / 'cat'}: b.NEF (NEF {no_decoder})",
    ]
