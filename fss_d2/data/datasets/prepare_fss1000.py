"""Preparation of FSS-1000: an index of its images and the class lists of its splits."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from . import fss1000
from .preparation import (
    Count,
    find_list,
    parallel_map,
    prepared_dir,
    read_ids,
    read_index,
    require,
    write_index,
    write_text_if_changed,
)

__all__ = ["check", "prepare"]

FIX = "download FSS-1000 and extract it so that its class folders lie in <root>/fss1000"
IMAGES = 10000
_LIST_NAMES = {"train": ("trn", "train"), "val": ("val",), "test": ("test",)}


def prepare(root: Path, *, workers: int, lists: Path | None) -> None:
    """Write the index and the lists under ``<root>/fss_d2/fss1000``; complete files stay.

    Args:
        root: the datasets folder, with ``fss1000/<class>/<N>.jpg`` and ``<N>.png`` in it.
        workers: number of processes; 0 works in this one.
        lists: a folder with ``trn.txt`` (or ``train.txt``), ``val.txt`` and ``test.txt``, one class name
            per line; needed once, because the data do not contain the splits.

    Raises:
        FileNotFoundError: the data or, the first time, the lists are missing.
        ValueError: an image is broken, lacks its mask or differs from it in size; the lists do not match the
            data.
    """
    folder = require(root / "fss1000", FIX)
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    files = "\n".join(f"{path.parent.name}/{path.name}" for c in classes for path in sorted(c.iterdir()))

    def rows_from(start: int) -> Iterator[dict[str, Any]]:
        """Return the rows of the index from the given one on, in order."""
        return parallel_map(_index_row, classes[start:], workers=workers, progress="index")

    header = {"index": "fss1000", "version": 1, "files": zlib.crc32(files.encode())}
    write_index(prepared_dir(root, "fss1000") / "index.jsonl", header, rows_from)
    if lists is not None:
        _install_lists(root, lists, {path.name for path in classes})
    elif not all(fss1000.list_path(root, split).is_file() for split in fss1000.SPLIT_SIZES):
        raise FileNotFoundError(
            "the data do not contain the splits: give --lists FOLDER with trn.txt, val.txt, test.txt"
        )


def check(root: Path) -> tuple[list[Count], list[str]]:
    """Count classes and images per split next to the published numbers, and list missing files."""
    path = prepared_dir(root, "fss1000") / "index.jsonl"
    rows = list(read_index(path, fss1000.PREPARE))
    counts = [
        Count("classes", len(rows), sum(fss1000.SPLIT_SIZES.values())),
        Count("images", sum(len(row["images"]) for row in rows), IMAGES),
    ]
    sizes = {row["class"]: len(row["images"]) for row in rows}
    for split, published in fss1000.SPLIT_SIZES.items():
        names = read_ids(require(fss1000.list_path(root, split), fss1000.PREPARE))
        counts.append(Count(f"{split} classes", len(names), published))
        counts.append(Count(f"{split} images", sum(sizes.get(name, 0) for name in names), 10 * published))
    files = (
        root / "fss1000" / row["class"] / f"{number}{suffix}"
        for row in rows
        for number, _, _ in row["images"]
        for suffix in (".jpg", ".png")
    )
    return counts, [f"{file} not found: {FIX}" for file in files if not file.is_file()]


def _index_row(folder: Path) -> dict[str, Any]:
    """Return ``{"class": name, "images": [[number, height, width], ...]}`` by rising number."""
    stems = sorted(int(path.stem) for path in folder.glob("*.jpg") if path.stem.isdigit())
    images = []
    for stem in stems:
        width, height = _size(folder / f"{stem}.jpg")
        if _size(require(folder / f"{stem}.png", FIX)) != (width, height):
            raise ValueError(f"{folder / str(stem)}.png and .jpg differ in size: extract both again")
        images.append([stem, height, width])
    if not images:
        raise ValueError(f"{folder} holds no images named <number>.jpg: remove it or extract it again")
    return {"class": folder.name, "images": images}


def _size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.size
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is not an image: extract it again") from error


def _install_lists(root: Path, folder: Path, known: set[str]) -> None:
    texts, seen = {}, set[str]()
    for split, size in fss1000.SPLIT_SIZES.items():
        names = sorted(find_list(folder, _LIST_NAMES[split], ".txt").split())
        if len(names) != size or len(set(names)) != size or seen.intersection(names):
            raise ValueError(f"{folder}: the list of {split} must name {size} classes of no other split")
        if unknown := sorted(set(names) - known):
            raise ValueError(f"{folder}: {split} class {unknown[0]!r} has no folder in {root / 'fss1000'}")
        seen.update(names)
        texts[split] = "".join(f"{name}\n" for name in names)
    for split, text in texts.items():
        write_text_if_changed(fss1000.list_path(root, split), text)
