"""PASCAL-5i: VOC 2012 with SBD's masks, four contiguous folds of five classes.

Three variants, all tested on VOC 2012's segmentation ``val``:

- ``pascal5i``: trained on the 5953 images of PFENet's list (VOC ``train`` and SBD's ``train_noval``);
- ``pascal5i_trainaug``: trained on all VOC and SBD images outside ``val`` (10582);
- ``pascal5i_hsnet``: the (image, class) pairs of HSNet's lists, which the user supplies.

The first two also exist as ``..._train_no_novel``, without images that show a novel class (BAM's rule). In
the other variants such images stay, and their novel pixels are background in every episode.
"""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from detectron2.data.datasets.pascal_voc import CLASS_NAMES

from .preparation import prepared_dir, read_ids, read_index, require
from .splits import MIN_CLASS_PIXELS, NUM_FOLDS, FoldName, fold_metadata, fold_names, held_out_classes

__all__ = [
    "CLASS_NAMES",
    "hsnet_pairs",
    "list_path",
    "load_records",
    "metadata",
    "names",
    "parse_pairs",
    "val_records",
]

# Training pool of each variant: a list of image ids that the preparation writes.
TRAIN_POOLS = {"pascal5i": "train_pfenet", "pascal5i_trainaug": "trainaug"}
HSNET = "pascal5i_hsnet"
VARIANTS = (*TRAIN_POOLS, HSNET)
PREPARE = "run `python datasets/prepare_pascal5i.py`"


def names() -> list[str]:
    """Return every dataset name that this module can load."""
    return fold_names(VARIANTS, no_novel=TRAIN_POOLS)


def metadata(name: str) -> dict[str, Any]:
    """Return the metadata of a split; KeyError for an unknown name."""
    spec = FoldName.parse(name, VARIANTS)
    return fold_metadata(CLASS_NAMES, _novel(spec.fold), fold=spec.fold, train=spec.split == "train")


def load_records(name: str, root: Path) -> list[dict[str, Any]]:
    """Load the dataset dicts of one split, with VOC's ``image_id`` ("2007_000033").

    Masks are class maps (0 background, class id + 1, 255 ignore). ``classes`` holds the split's
    classes that cover at least 2048 pixels (the ``hsnet`` variant: those that the list pairs with the image).
    The (image, class) pairs of the records have the order of HSNet's ``val`` lists. ``query_classes`` (not
    ``hsnet``) holds the classes that cover any pixel.

    Raises:
        KeyError: unknown name.
        FileNotFoundError: the set is not prepared, or HSNet's lists were not installed.
    """
    spec = FoldName.parse(name, VARIANTS)
    root = Path(root)
    if spec.variant == HSNET:
        return _hsnet_records(spec, root)
    novel = _novel(spec.fold)
    if spec.split == "val":
        return val_records(root, novel)
    base = set(range(len(CLASS_NAMES))) - set(novel)
    pool = read_ids(require(list_path(root, f"{TRAIN_POOLS[spec.variant]}.txt"), PREPARE))
    return _select(root, pool, base, exclude=novel if spec.no_novel else ())


def val_records(root: Path, class_ids: Collection[int]) -> list[dict[str, Any]]:
    """Return the records of VOC's ``val`` in which one of ``class_ids`` covers 2048 pixels or more."""
    return _select(root, read_ids(require(list_path(root, "val.txt"), PREPARE)), class_ids)


def list_path(root: Path, name: str) -> Path:
    """Return the path of a prepared list, such as ``val.txt`` or ``hsnet/trn_fold0.txt``."""
    return prepared_dir(root, "pascal5i") / "lists" / name


def hsnet_pairs(root: Path, fold: int, split: str) -> list[tuple[str, int]]:
    """Return HSNet's (image id, class id) pairs of a split, in order.

    ``val``: the fold's own list; ``train``: the ``trn`` lists of the other folds, joined in fold order.
    """
    files = [f"val_fold{fold}"] if split == "val" else [f"trn_fold{i}" for i in range(NUM_FOLDS) if i != fold]
    fix = "run `python datasets/prepare_pascal5i.py --lists FOLDER` with HSNet's lists in FOLDER"
    paths = [list_path(root, f"hsnet/{file}.txt") for file in files]
    return [pair for path in paths for pair in parse_pairs(require(path, fix).read_text(), str(path))]


def parse_pairs(text: str, source: str) -> list[tuple[str, int]]:
    """Parse lines ``<image id>__<class, 1 to 20>`` into (image id, class id 0 to 19).

    Raises:
        ValueError: a line has another form; the message names ``source`` and the line.
    """
    pairs = []
    for number, line in enumerate(text.split(), start=1):
        image_id, mark, class_number = line.rpartition("__")
        if not mark or not class_number.isdigit() or not 1 <= int(class_number) <= len(CLASS_NAMES):
            raise ValueError(f"{source}:{number}: {line!r} is not <image id>__<class number 01 to 20>")
        pairs.append((image_id, int(class_number) - 1))
    return pairs


def _novel(fold: int) -> list[int]:
    return held_out_classes(len(CLASS_NAMES), fold, interleaved=False)


def _select(
    root: Path, pool: Iterable[str], class_ids: Collection[int], exclude: Iterable[int] = ()
) -> list[dict[str, Any]]:
    """Return records of ``pool`` with a large enough class of ``class_ids`` and no pixel of ``exclude``."""
    index = _read_areas(root)
    excluded = set(exclude)
    records = []
    for image_id in pool:
        row = index[image_id]
        areas = {int(c): pixels for c, pixels in row["areas"].items()}
        classes = [c for c in sorted(areas) if c in class_ids and areas[c] >= MIN_CLASS_PIXELS]
        if classes and not excluded.intersection(areas):
            shown = [c for c in sorted(areas) if c in class_ids and areas[c] > 0]
            records.append(_record(root, row, classes) | {"query_classes": shown})
    return records


def _hsnet_records(spec: FoldName, root: Path) -> list[dict[str, Any]]:
    index = _read_areas(root)
    classes: dict[str, list[int]] = {}
    for image_id, class_id in hsnet_pairs(root, spec.fold, spec.split):
        classes.setdefault(image_id, []).append(class_id)
    return [_record(root, index[image_id], listed) for image_id, listed in classes.items()]


def _read_areas(root: Path) -> dict[str, dict[str, Any]]:
    path = prepared_dir(root, "pascal5i") / "index.jsonl"
    return {row["image_id"]: row for row in read_index(path, PREPARE)}


def _record(root: Path, row: dict[str, Any], classes: list[int]) -> dict[str, Any]:
    image_id = row["image_id"]
    return {
        "file_name": str(root / "VOCdevkit/VOC2012/JPEGImages" / f"{image_id}.jpg"),
        "image_id": image_id,
        "height": row["height"],
        "width": row["width"],
        "classes": classes,
        "sem_seg_file_name": str(prepared_dir(root, "pascal5i") / "SegmentationClassAug" / f"{image_id}.png"),
        "mask_encoding": "class_map",
    }
