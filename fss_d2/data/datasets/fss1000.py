"""FSS-1000 (Li et al., CVPR 2020): 1000 classes of 10 images, 520 to train, 240 to validate, 240 to test.

There are no folds; each split has classes of its own, whose names come from lists that the user supplies.
Class ids count the sorted names of ``train``, then ``val``, then ``test``.
"""

import zlib
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog
from PIL import Image, UnidentifiedImageError

from .preparation import (
    PAGE,
    Count,
    find_list,
    prepared_dir,
    read_ids,
    read_index,
    require,
    write_index,
    write_text_if_changed,
)
from .splits import fold_metadata, record_of

__all__ = ["SPLIT_SIZES", "check", "list_path", "load_records", "metadata", "names", "prepare"]

SPLIT_SIZES = {"train": 520, "val": 240, "test": 240}
IMAGES = 10000
PREPARE = f"run `python datasets/prepare_fss1000.py --lists FOLDER`; {PAGE}"
DATA_FIX = f"download FSS-1000 and extract it so that its class folders lie in <root>/fss1000; {PAGE}"
_LIST_NAMES = {"train": ("trn", "train"), "val": ("val",), "test": ("test",)}


def names() -> list[str]:
    """Return every dataset name that this module can load."""
    return [f"fss1000_{split}" for split in SPLIT_SIZES]


def metadata(name: str) -> dict[str, Any]:
    """Return the metadata of a split, without ``stuff_classes``; KeyError for an unknown name.

    `load_records` adds the class names from the prepared lists to the MetadataCatalog.
    """
    split = _split(name)
    novel = [c for other in ("val", "test") for c in _class_ids(other)]
    ids = fold_metadata([""] * sum(SPLIT_SIZES.values()), novel, fold=None, train=split == "train")
    ids.pop("stuff_classes")
    return ids | {"class_ids": _class_ids(split)}


def load_records(name: str, root: Path) -> list[dict[str, Any]]:
    """Load the dataset dicts of one split, ``image_id`` "<class>/<number>" ("bus/10").

    The order is that of HSNet's test: classes by name, then images by number as text (1, 10, 2). Masks are
    grey levels, foreground from half of the range on. Also sets ``stuff_classes`` of the dataset's metadata.
    """
    split = _split(name)
    root = Path(root)
    all_names = [name for s in SPLIT_SIZES for name in read_ids(require(list_path(root, s), PREPARE))]
    path = prepared_dir(root, "fss1000") / "index.jsonl"
    images = {row["class"]: row["images"] for row in read_index(path, PREPARE)}
    records = []
    for class_id in _class_ids(split):
        class_name = all_names[class_id]
        for number, *shape in sorted(images[class_name], key=lambda image: str(image[0])):
            stem, image_id = root / "fss1000" / class_name / str(number), f"{class_name}/{number}"
            records.append(record_of(f"{stem}.jpg", image_id, shape, [class_id], f"{stem}.png", "threshold"))
    _publish_names(name, all_names)
    return records


def list_path(root: Path, split: str) -> Path:
    """Return the path of the prepared list of a split's class names, in the order of their ids."""
    return prepared_dir(root, "fss1000") / "lists" / f"{split}.txt"


def _split(name: str) -> str:
    if name not in names():
        raise KeyError(f"dataset {name!r} is not one of {names()}")
    return name.removeprefix("fss1000_")


def _class_ids(split: str) -> list[int]:
    splits = list(SPLIT_SIZES)
    start = sum(SPLIT_SIZES[s] for s in splits[: splits.index(split)])
    return list(range(start, start + SPLIT_SIZES[split]))


def _publish_names(name: str, all_names: list[str]) -> None:
    """Set ``stuff_classes``; the catalog refuses to change a value, so names of another root are removed."""
    catalog = MetadataCatalog.get(name)
    if getattr(catalog, "stuff_classes", all_names) != all_names:
        MetadataCatalog.remove(name)
        catalog = MetadataCatalog.get(name).set(**metadata(name))
    catalog.set(stuff_classes=all_names)


def prepare(root: Path, *, workers: int, lists: Path | None) -> None:
    """Write the index and the lists under ``<root>/fss_d2/fss1000``; complete files stay.

    ``<root>`` holds ``fss1000/<class>/<N>.jpg`` and ``<N>.png``; ``lists`` is a folder with ``trn.txt`` (or
    ``train.txt``), ``val.txt`` and ``test.txt``, one class name per line, and is needed once, because the
    data do not contain the splits.
    """
    folder = require(root / "fss1000", DATA_FIX)
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    files = "\n".join(f"{path.parent.name}/{path.name}" for c in classes for path in sorted(c.iterdir()))
    header = {"index": "fss1000", "version": 1, "files": zlib.crc32(files.encode())}
    write_index(
        prepared_dir(root, "fss1000") / "index.jsonl", header, _index_row, lambda: classes, workers=workers
    )
    if lists is not None:
        _install_lists(root, lists, {path.name for path in classes})
    elif not all(list_path(root, split).is_file() for split in SPLIT_SIZES):
        fault = "the data do not contain the splits: give --lists FOLDER with trn.txt, val.txt, test.txt"
        raise FileNotFoundError(fault)


def check(root: Path) -> tuple[list[Count], list[str]]:
    """Count classes and images per split next to the published numbers, and list missing files."""
    path = prepared_dir(root, "fss1000") / "index.jsonl"
    rows = list(read_index(path, PREPARE))
    counts = [
        Count("classes", len(rows), sum(SPLIT_SIZES.values())),
        Count("images", sum(len(row["images"]) for row in rows), IMAGES),
    ]
    sizes = {row["class"]: len(row["images"]) for row in rows}
    for split, published in SPLIT_SIZES.items():
        names = read_ids(require(list_path(root, split), PREPARE))
        counts.append(Count(f"{split} classes", len(names), published))
        counts.append(Count(f"{split} images", sum(sizes.get(name, 0) for name in names), 10 * published))
    files = (
        root / "fss1000" / row["class"] / f"{number}{suffix}"
        for row in rows
        for number, _, _ in row["images"]
        for suffix in (".jpg", ".png")
    )
    return counts, [f"{file} not found: {DATA_FIX}" for file in files if not file.is_file()]


def _index_row(folder: Path) -> dict[str, Any]:
    """Return ``{"class": name, "images": [[number, height, width], ...]}`` by rising number."""
    stems = sorted(int(path.stem) for path in folder.glob("*.jpg") if path.stem.isdigit())
    images = []
    for stem in stems:
        width, height = _size(folder / f"{stem}.jpg")
        if _size(require(folder / f"{stem}.png", DATA_FIX)) != (width, height):
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
    for split, size in SPLIT_SIZES.items():
        names = sorted(find_list(folder, _LIST_NAMES[split], ".txt").split())
        if len(names) != size or len(set(names)) != size or seen.intersection(names):
            raise ValueError(f"{folder}: the list of {split} must name {size} classes of no other split")
        if unknown := sorted(set(names) - known):
            raise ValueError(f"{folder}: {split} class {unknown[0]!r} has no folder in {root / 'fss1000'}")
        seen.update(names)
        texts[split] = "".join(f"{name}\n" for name in names)
    for split, text in texts.items():
        write_text_if_changed(list_path(root, split), text)
