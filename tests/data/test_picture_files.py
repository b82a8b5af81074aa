"""Which files of a folder are pictures, and why others that look like one are left out."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fss_d2.data.picture_files import find_pictures_below, listed, why_left_out

HEIC = bytes.fromhex("0000001866747970") + b"heic"
NO_DECODER = "files cannot be decoded here, save it as JPEG or PNG"


def write(path: Path, content: bytes | None = None, kind: str = "PNG") -> Path:
    """A picture, or ``content``; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(path, kind)
    else:
        path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jpg", None, ""),
        ("a.JPEG", b"", ""),  # an error when it is read
        ("noending", None, ""),
        ("new\nline \udcff", None, ""),
        ("IMG_1.HEIC", HEIC, f"HEIC {NO_DECODER}"),
        ("raw.DNG", b"II*\x00", f"DNG {NO_DECODER}"),
        ("x.nef", b"", f"NEF {NO_DECODER}"),
        ("x.jxl", b"", f"JXL {NO_DECODER}"),
        ("image", HEIC, f"HEIF {NO_DECODER}"),
        ("photo.jpg_original", None, "a PNG picture with the ending .jpg_original, rename it"),
        ("photo.bak", HEIC, "a HEIF picture with the ending .bak, rename it"),
        ("day2", b"../elsewhere", "it has no file ending and holds no picture"),
        ("empty", b"", "it has no file ending and holds no picture"),
        ("notes.txt", b"text", None),
        ("a.json", b"{}", None),
        ("Thumbs.db", b"\xd0\xcf\x11\xe0", None),
        ("README", b"text", None),
        (".DS_Store", b"\x00\x00\x00\x01Bud1", None),
        (".hidden.jpg", None, None),
    ],
)
def test_files(tmp_path: Path, name: str, content: bytes | None, reason: str | None) -> None:
    assert why_left_out(write(tmp_path / name, content)) == reason


def test_links_without_target(tmp_path: Path) -> None:
    for name, reason in (
        ("a.jpg", "a link to a file that does not exist"),
        ("b.HEIC", "a link to a file that does not exist"),
        ("folder", "a link to a file that does not exist"),
        ("notes.txt", None),
    ):
        (tmp_path / name).symlink_to(tmp_path / "gone")
        assert why_left_out(tmp_path / name) == reason


def test_pipes_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    assert why_left_out(tmp_path / "a.jpg") is None


def test_linked_files_and_folders_are_followed_once(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    write(root / "b/x.png")
    write(root / "a.jpg")
    write(tmp_path / "elsewhere/deep/linked.jpg")
    write(tmp_path / "elsewhere/lost.heic", HEIC)
    (root / "day2").symlink_to(tmp_path / "elsewhere")
    (root / "same").symlink_to(tmp_path / "elsewhere/deep")
    (root / "again").symlink_to(root / "b")
    (root / "b/up").symlink_to(root)
    (root / "out").symlink_to(tmp_path)
    (tmp_path / "elsewhere/back").symlink_to(root)
    (root / "c.png").symlink_to(root / "b/x.png")
    found = find_pictures_below(root)
    assert found.names == ["a.jpg", "b/x.png", "c.png", "day2/deep/linked.jpg"]
    searched = "a link to a folder that is searched already"
    assert found.left_out == {
        "again": searched,
        "b/up": searched,
        "day2/back": searched,
        "day2/lost.heic": f"HEIC {NO_DECODER}",
        "out": searched,
        "same": searched,
    }


def test_the_output_folder_is_not_searched(tmp_path: Path) -> None:
    write(tmp_path / "a.jpg")
    write(tmp_path / "out/thumbnails/a.jpg")
    write(tmp_path / "out/lost.heic", HEIC)
    (tmp_path / "b.jpg").symlink_to(tmp_path / "out/thumbnails/a.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "out")
    found = find_pictures_below(tmp_path, leave_out=tmp_path / "out")
    assert (found.names, found.left_out) == (["a.jpg"], {})


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.jpg")
    write(tmp_path / "locked/b.jpg")
    listing = Path.iterdir

    def refuse(folder: Path):  # the tests may run as root, whom no permission stops
        if folder.name == "locked":
            raise PermissionError(13, "Permission denied")
        return listing(folder)

    monkeypatch.setattr(Path, "iterdir", refuse)
    found = find_pictures_below(tmp_path)
    assert found.left_out == {"locked": "the folder cannot be listed (Permission denied)"}


def test_long_lists_are_cut() -> None:
    text = listed([(f"{i}.heic", "no") for i in range(20)])
    assert text == ", ".join(f"{i}.heic (no)" for i in range(8)) + " and 12 more"
