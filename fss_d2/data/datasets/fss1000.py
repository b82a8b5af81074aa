"""FSS-1000 (Li et al., CVPR 2020): 1000 classes of 10 images, 520 to train, 240 to validate, 240 to test.

There are no folds; each split has classes of its own, whose names come from lists that the user supplies.
Class ids count the sorted names of ``train``, then ``val``, then ``test``.
"""

from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog

from .preparation import prepared_dir, read_ids, read_index, require
from .splits import fold_metadata

__all__ = ["SPLIT_SIZES", "class_names", "list_path", "load_records", "metadata", "names"]

SPLIT_SIZES = {"train": 520, "val": 240, "test": 240}
PREPARE = "run `python datasets/prepare_fss1000.py --lists FOLDER`"


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


def class_names(root: Path) -> list[str]:
    """Return the 1000 class names, index = class id; FileNotFoundError without prepared lists."""
    return [name for s in SPLIT_SIZES for name in read_ids(require(list_path(root, s), PREPARE))]


def load_records(name: str, root: Path) -> list[dict[str, Any]]:
    """Load the dataset dicts of one split, ``image_id`` "<class>/<number>" ("bus/10").

    The order is that of HSNet's test: classes by name, then images by number as text (1, 10, 2). Masks are
    grey levels, foreground from half of the range on. Also sets ``stuff_classes`` of the
    dataset's metadata.

    Raises:
        KeyError: unknown name.
        FileNotFoundError: the set is not prepared.
    """
    split = _split(name)
    root = Path(root)
    all_names = class_names(root)
    path = prepared_dir(root, "fss1000") / "index.jsonl"
    images = {row["class"]: row["images"] for row in read_index(path, PREPARE)}
    records = []
    for class_id in _class_ids(split):
        class_name = all_names[class_id]
        for number, height, width in sorted(images[class_name], key=lambda image: str(image[0])):
            stem = root / "fss1000" / class_name / str(number)
            records.append(
                {
                    "file_name": f"{stem}.jpg",
                    "image_id": f"{class_name}/{number}",
                    "height": height,
                    "width": width,
                    "classes": [class_id],
                    "sem_seg_file_name": f"{stem}.png",
                    "mask_encoding": "binary",
                }
            )
    _publish_names(name, all_names)
    return records


def list_path(root: Path, split: str) -> Path:
    """Return the path of the prepared list of a split's class names."""
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
