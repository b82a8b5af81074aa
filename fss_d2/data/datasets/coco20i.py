"""COCO-20i: COCO in four folds of 20 classes.

Variants, on the images of the 2014 split unless noted otherwise:

- ``coco20i``: interleaved folds, class masks from each object's own outline, so that overlaps are kept;
- ``coco20i_contiguous``: the same with PANet's contiguous folds;
- ``coco20i_flat``: as ``coco20i``, with masks from one flattened class map as in the published protocols;
- ``coco20i_hsnet``: as ``coco20i_flat``, with images in the order of HSNet's lists, which the user supplies;
- ``coco20i_mmformer``: MM-Former's data, train2017 and val2017 with flattened class maps that pycocotools
  draws; test images have the order of its lists if the user supplies them, else rise by number;
- ``coco20i_2017``: the images of ``coco20i_mmformer`` with overlaps kept.

All except ``coco20i_hsnet`` also exist as ``..._train_no_novel``, without images that show a novel class.
"""

import graphlib
import itertools
import logging
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from fss_d2.io.files import parse_json, shortened

from .preparation import PAGE, list_path, prepared_dir, read_index, read_text, require
from .splits import MIN_CLASS_PIXELS, FoldName, fold_metadata, fold_names, held_out_classes

__all__ = [
    "CATEGORY_IDS",
    "CLASS_NAMES",
    "class_map_path",
    "drawn_classes",
    "image_finder",
    "index_path",
    "large_classes",
    "load_records",
    "metadata",
    "mmformer_list_path",
    "names",
    "novel_classes",
    "parse_class_lists",
    "parse_image_list",
    "prepare_command",
    "records_of",
]

logger = logging.getLogger(__name__)

_THINGS = sorted((c for c in COCO_CATEGORIES if c["isthing"]), key=lambda c: c["id"])
CLASS_NAMES = tuple(c["name"] for c in _THINGS)
CATEGORY_IDS = {c["id"]: class_id for class_id, c in enumerate(_THINGS)}  # COCO's id -> ours

HSNET, MMFORMER = "coco20i_hsnet", "coco20i_mmformer"
DERIVED = ("coco20i", "coco20i_contiguous", "coco20i_flat", "coco20i_2017", MMFORMER)
VARIANTS = (*DERIVED, HSNET)
_FLAT = ("coco20i_flat", MMFORMER)
_OF_2017 = ("coco20i_2017", MMFORMER)
IMAGE_FIX = "download the COCO images and extract them there"


def names() -> list[str]:
    """Return every dataset name that this module can load."""
    return fold_names(VARIANTS, no_novel=DERIVED)


def metadata(name: str) -> dict[str, Any]:
    """Return the metadata of a split; KeyError for an unknown name."""
    spec = FoldName.parse(name, VARIANTS)
    novel = novel_classes(spec.variant, spec.fold)
    return fold_metadata(CLASS_NAMES, novel, fold=spec.fold, train=spec.split == "train")


def novel_classes(variant: str, fold: int) -> list[int]:
    """Return the class ids that a fold of a variant holds out."""
    return held_out_classes(len(CLASS_NAMES), fold, interleaved=variant != "coco20i_contiguous")


def drawn_classes(variant: str, fold: int, split: str) -> set[int]:
    """Return the classes that a split samples."""
    novel = set(novel_classes(variant, fold))
    return novel if split == "val" else set(range(len(CLASS_NAMES))) - novel


def load_records(name: str, root: Path) -> list[dict[str, Any]]:
    """Load the dataset dicts of one split; ``image_id`` is COCO's own number in every variant.

    ``classes`` holds the split's classes that cover at least 2048 pixels of the flattened class map
    (``coco20i_hsnet``: those whose list has the image). The flattened map of the year counts in all variants,
    so that they share their sets of images, which are meant to be the published ones. ``query_classes`` (not
    ``coco20i_hsnet``) holds the classes that cover any pixel of it. ``annotations`` has one RLE per class
    (the union of its objects) and one per class of crowd regions; the flat variants have
    ``sem_seg_file_name`` instead.
    """
    spec = FoldName.parse(name, VARIANTS)
    root = Path(root)
    image_set = spec.split + ("2017" if spec.variant in _OF_2017 else "2014")
    if spec.variant == HSNET:
        lists, listed = _read_class_lists(root, spec), dict[int, list[int]]()
        for class_id, image_ids in sorted(lists.items()):
            for image_id in image_ids:
                listed.setdefault(image_id, []).append(class_id)
        records = records_of(root, image_set, lambda row: listed.get(row["image_id"], []), flat=True)
        return _in_list_order(records, lists)
    wanted = drawn_classes(spec.variant, spec.fold, spec.split)
    excluded = set(novel_classes(spec.variant, spec.fold)) if spec.no_novel else set()

    def choose(row: Mapping[str, Any]) -> list[int]:
        shows_excluded = any(o["class"] in excluded for o in (*row["objects"], *row["crowds"]))
        return [] if shows_excluded else large_classes(row, wanted)

    records = records_of(root, image_set, choose, flat=spec.variant in _FLAT, shown=wanted)
    if spec.variant == MMFORMER and spec.split == "val":
        return _in_mmformers_order(records, mmformer_list_path(root, spec.fold))
    return records


def records_of(
    root: Path,
    image_set: str,
    choose: Callable[[Mapping[str, Any]], list[int]],
    *,
    flat: bool = False,
    shown: Collection[int] | None = None,
) -> list[dict[str, Any]]:
    """Return the records of the images for which ``choose`` returns a class, in the order of the index.

    Args:
        root, image_set: the datasets folder, and for instance "train2014".
        choose: returns, for an index row, the class ids whose episodes may use the image.
        flat: read the masks from the flattened class maps.
        shown: classes that a record lists as ``query_classes`` if they have a pixel in the flattened map.
    """
    image_path = image_finder(root, image_set)
    if flat:
        require(class_map_path(root, image_set, "").parent, prepare_command(image_set, "--class-maps"))
    records = []
    for row in read_index(index_path(root, image_set), prepare_command(image_set)):
        classes = choose(row)
        if classes:
            record = {key: row[key] for key in ("image_id", "height", "width")}
            record |= {"file_name": str(image_path(row)), "classes": classes}
            if flat:
                path = str(class_map_path(root, image_set, row["file_name"]))
                record |= {"sem_seg_file_name": path, "mask_encoding": "class_map"}
            else:
                record |= _joined_masks(row)
            if shown is not None:
                record["query_classes"] = large_classes(row, shown, pixels=1)
            records.append(record)
    return records


def large_classes(
    row: Mapping[str, Any], class_ids: Collection[int], pixels: int = MIN_CLASS_PIXELS
) -> list[int]:
    """Return the classes in ``class_ids`` that have at least ``pixels`` in the flattened map of an image."""
    return [o["class"] for o in row["objects"] if o["class"] in class_ids and o["flat_area"] >= pixels]


def index_path(root: Path, image_set: str) -> Path:
    """Return the path of the prepared index of an image set, for instance ``train2014``."""
    return prepared_dir(root, "coco20i") / f"{image_set}.jsonl"


def class_map_path(root: Path, image_set: str, file_name: str) -> Path:
    """Return the path of an image's flattened class map."""
    return prepared_dir(root, "coco20i") / "class_maps" / image_set / f"{Path(file_name).stem}.png"


def parse_class_lists(text: str, source: str) -> dict[int, list[int]]:
    """Parse ``{class id 0..79: [".../COCO_val2014_000000000042.jpg", ...]}`` of ``source`` into image ids."""
    try:
        lists = {int(c): [_image_number(path) for path in paths] for c, paths in parse_json(text).items()}
    except (AttributeError, TypeError, ValueError) as error:
        reason = shortened(error)
        raise ValueError(f"{source}: not JSON of the form {{class id: [image path]}} ({reason})") from error
    if not set(lists) <= set(range(len(CLASS_NAMES))):
        raise ValueError(f"{source}: class ids must be 0 to {len(CLASS_NAMES) - 1}")
    return lists


def _image_number(path: str) -> int:
    match = re.search(r"(\d+)\.jpg$", path)
    if match is None:
        raise ValueError(f"{path!r} does not end in <image id>.jpg")
    return int(match[1])


def _read_class_lists(root: Path, spec: FoldName) -> dict[int, list[int]]:
    split = "trn" if spec.split == "train" else "val"
    path = list_path(root, "coco20i", f"hsnet/{split}_fold{spec.fold}.json")
    fix = "run `python datasets/prepare_coco20i.py --lists FOLDER` with HSNet's lists, as JSON, in FOLDER; "
    fix += PAGE
    return parse_class_lists(read_text(require(path, fix)), str(path))


def _in_list_order(
    records: Sequence[dict[str, Any]], lists: Mapping[int, Sequence[int]]
) -> list[dict[str, Any]]:
    """Sort records so that the images of each class have the order of its list.

    HSNet's episodes depend on these orders; its lists agree with one order of all images.
    """
    before: dict[int, set[int]] = {record["image_id"]: set() for record in records}
    for image_ids in lists.values():
        for first, second in itertools.pairwise(image_ids):
            before[second].add(first)
    try:
        order = list(graphlib.TopologicalSorter(before).static_order())
    except graphlib.CycleError:
        logger.warning("the lists order images differently: HSNet's episodes cannot be reproduced from them")
        return list(records)
    place = {image_id: i for i, image_id in enumerate(order)}
    return sorted(records, key=lambda record: place[record["image_id"]])


def mmformer_list_path(root: Path, fold: int) -> Path:
    """Return the path of an installed test list of MM-Former."""
    return list_path(root, "coco20i", f"mmformer/val_fold{fold}.json")


def parse_image_list(text: str, source: str) -> list[int]:
    """Parse ``{"images": [id or path of an image, ...]}`` of ``source`` into the ids, in its order."""
    try:
        names = [str(name) for name in parse_json(text)["images"]]
        return [_image_number(name if name.endswith(".jpg") else f"{name}.jpg") for name in names]
    except (KeyError, TypeError, ValueError) as error:
        reason = shortened(error)
        raise ValueError(f'{source}: not JSON of the form {{"images": [image id]}} ({reason})') from error


def _in_mmformers_order(records: Sequence[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """Sort records by a list of MM-Former, which its test episodes depend on; what it lacks comes last."""
    if not path.is_file():
        logger.info(
            "%s is not there: images rise by number, so the test episodes are not the published ones", path
        )
        return list(records)
    place = {image_id: i for i, image_id in enumerate(parse_image_list(read_text(path), str(path)))}
    return sorted(records, key=lambda record: place.get(record["image_id"], len(place)))


def prepare_command(image_set: str, options: str = "") -> str:
    """How to prepare the year of an image set, for errors."""
    year = "--year 2017" if image_set.endswith("2017") else ""
    words = " ".join(["python datasets/prepare_coco20i.py", year, options]).split()
    return f"run `{' '.join(words)}`; {PAGE}"


def image_finder(root: Path, image_set: str) -> Callable[[Mapping[str, Any]], Path]:
    """Return a function from an index row to its image: in the folder of its set, or (2014) of 2017."""
    folder = root / "coco" / image_set
    train, val = root / "coco/train2017", root / "coco/val2017"
    if image_set.endswith("2014") and not folder.is_dir() and train.is_dir() and val.is_dir():
        in_val = set(os.listdir(val))

        def find(row: Mapping[str, Any]) -> Path:
            name = f"{row['image_id']:012d}.jpg"
            return (val if name in in_val else train) / name

        return find
    require(folder, f"{IMAGE_FIX}, then {prepare_command(image_set)}")
    return lambda row: folder / row["file_name"]


def _joined_masks(row: Mapping[str, Any]) -> dict[str, Any]:
    size = [row["height"], row["width"]]
    annotations = [
        {"category_id": o["class"], "segmentation": {"size": size, "counts": o["rle"]}, "iscrowd": iscrowd}
        for iscrowd, regions in enumerate((row["objects"], row["crowds"]))
        for o in regions
    ]
    return {"annotations": annotations, "objects_joined": True}
