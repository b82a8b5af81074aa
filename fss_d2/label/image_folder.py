"""Which images of a folder there are to label."""

import hashlib
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from fss_d2.data.images import is_image_name

__all__ = ["file_state", "find_images", "without_supports"]


def find_images(folder: Path, leave_out: Path) -> list[str]:
    """Names of all images in a folder and its subfolders: paths relative to it, with "/", in order.

    Images are known by their ending. What starts with a dot is left out.

    Args:
        leave_out: a folder, within it or not, whose files are not to be found.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: there is no image in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; give the folder of the images to label")
    leave_out = leave_out.resolve()
    names = []
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in relative.parts)
        if hidden or not is_image_name(path) or not path.is_file():
            continue
        if leave_out not in path.resolve().parents:
            names.append(relative.as_posix())
    if not names:
        raise ValueError(f"{folder} holds no image; give the folder of the images to label")
    return sorted(names)


def without_supports(
    folder: Path, names: Sequence[str], files: Iterable[Path]
) -> tuple[list[str], list[str]]:
    """Tell images to label from those that are supports, or their masks, or copies of either.

    Args:
        names: as `find_images` returns them.
        files: of the supports.

    Returns:
        The names to label, and the others.
    """
    by_size: dict[int, list[Path]] = {}
    for file in files:
        by_size.setdefault(file.stat().st_size, []).append(file)

    @cache
    def digest(path: Path) -> bytes:
        """Of a file's content; asked only of files that have the size of a support."""
        return hashlib.sha256(path.read_bytes()).digest()

    to_label, supports = [], []
    for name in names:
        path = folder / name
        alike = by_size.get(path.stat().st_size, [])
        found = any(path.samefile(file) or digest(path) == digest(file) for file in alike)
        (supports if found else to_label).append(name)
    return to_label, supports


def file_state(path: Path) -> tuple[int, int]:
    """Size in bytes and time of the last change in nanoseconds, by which a changed file is known."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns
