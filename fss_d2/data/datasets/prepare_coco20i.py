"""Preparation of COCO-20i from the instances JSON files: class masks, flattened class maps, lists."""

import zlib
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from pycocotools import mask as rle

from fss_d2.io.files import json_text, read_json, shortened

from . import coco20i
from .coco20i import CATEGORY_IDS, CLASS_NAMES
from .preparation import (
    PAGE,
    Count,
    find_fold_lists,
    find_list,
    list_path,
    parallel_map,
    png_is_whole,
    read_index,
    read_text,
    require,
    write_class_map,
    write_index,
    write_text_if_changed,
)
from .splits import NUM_FOLDS

__all__ = ["ImageTask", "check", "draw_class_map", "index_row", "prepare"]

JSON_FIX = f"download the COCO train/val annotations of that year and extract them to <root>/coco; {PAGE}"
# Images with an annotation.
ANNOTATED_IMAGES = {"train2014": 82081, "val2014": 40137, "train2017": 117266, "val2017": 4952}
# (images, pairs) of HSNet's published lists, folds 0 to 3 (contiguous folds: the same lists regrouped),
# and of the test lists that MM-Former's code reads.
PUBLISHED = {
    ("coco20i", "train"): ((62040, 95476), (74381, 133927), (73035, 141054), (73808, 141016)),
    ("coco20i", "val"): ((26052, 35783), (15305, 17912), (13138, 14563), (12640, 14315)),
    ("coco20i_contiguous", "train"): ((50510, 92770), (75103, 146266), (75704, 133840), (73679, 138597)),
    ("coco20i_contiguous", "val"): ((27982, 37493), (10606, 11680), (11238, 17704), (11343, 15696)),
    (coco20i.MMFORMER, "val"): ((3200, 4342), (1928, 2264), (1601, 1780), (1508, 1716)),
}
# What draws the flattened class maps of a year: HSNet's rule in 2014, MM-Former's in 2017.
DRAWN_BY = {2014: "opencv", 2017: "pycocotools"}
_VARIANTS = {2014: ("coco20i", "coco20i_contiguous"), 2017: (coco20i.MMFORMER,)}  # with lists and counts
_MIN_POLYGON = 6  # numbers: three corners


class ImageTask(NamedTuple):
    """An image in the instances JSON: its entry, its annotations in file order, and its class map's path."""

    image: Mapping[str, Any]
    annotations: Sequence[Mapping[str, Any]]
    drawn_by: str = "opencv"
    class_map: Path | None = None

    def draw(self) -> np.ndarray:
        """Draw the flattened class map."""
        image = self.image
        where = {"where": image["file_name"], "drawn_by": self.drawn_by}
        return draw_class_map(image["height"], image["width"], self.annotations, **where)


def draw_class_map(
    height: int,
    width: int,
    annotations: Sequence[Mapping[str, Any]],
    where: str = "",
    *,
    drawn_by: str = "opencv",
) -> np.ndarray:
    """Draw annotations into one (height, width) uint8 class map: 0 background, class id + 1.

    Later annotations overwrite earlier ones, and crowd regions are left out. Polygons are filled by "opencv",
    border included, with their corners truncated to whole pixels, or by "pycocotools", which is thinner. With
    the 2048-pixel rule the first gives HSNet's published lists and the second MM-Former's, as far as this
    could be checked (datasets/README.md).
    """
    canvas = np.zeros((height, width), dtype=np.uint8)
    for annotation in annotations:
        if annotation.get("iscrowd"):
            continue
        value = CATEGORY_IDS[annotation["category_id"]] + 1
        shape = annotation["segmentation"]
        if isinstance(shape, list) and drawn_by == "opencv":
            for polygon in _polygons(shape):
                cv2.fillPoly(canvas, [np.asarray(polygon).reshape(-1, 2).astype(np.int32)], value)
        else:
            canvas[rle.decode(_to_rle(annotation, height, width, where)) > 0] = value
    return canvas


def index_row(task: ImageTask) -> dict[str, Any]:
    """Return the index row of an image: per class the union of its objects (RLE, pixels), and its crowds.

    ``area`` counts the pixels of the union, ``flat_area`` those that remain in the flattened class map.
    """
    image, height, width = task.image, task.image["height"], task.image["width"]
    regions: tuple[dict[int, list[Any]], dict[int, list[Any]]] = ({}, {})  # objects, crowds
    for annotation in task.annotations:
        class_id = CATEGORY_IDS[annotation["category_id"]]
        mask = _to_rle(annotation, height, width, image["file_name"])
        regions[bool(annotation.get("iscrowd"))].setdefault(class_id, []).append(mask)
    pixels = np.bincount(task.draw().ravel(), minlength=len(CLASS_NAMES) + 1)
    objects, crowds = ([_region(c, masks) for c, masks in sorted(r.items())] for r in regions)
    for region in objects:
        region["flat_area"] = int(pixels[region["class"] + 1])
    row = {"image_id": image["id"], "file_name": image["file_name"], "height": height, "width": width}
    return row | {"objects": objects, "crowds": crowds}


def _region(class_id: int, masks: list[Any]) -> dict[str, Any]:
    union = rle.merge(masks)
    return {"class": class_id, "area": int(rle.area(union)), "rle": union["counts"].decode("ascii")}


def _polygons(shape: Sequence[Sequence[float]]) -> list[Sequence[float]]:
    return [p for p in shape if len(p) >= _MIN_POLYGON and len(p) % 2 == 0]


def _to_rle(annotation: Mapping[str, Any], height: int, width: int, where: str) -> Any:
    """Return the compressed RLE of one annotation: the union of its polygons, or its own RLE."""
    shape = annotation["segmentation"]
    try:
        if isinstance(shape, list):
            polygons = _polygons(shape) or [[0.0] * _MIN_POLYGON]  # without polygons: an empty mask
            return rle.merge(rle.frPyObjects(polygons, height, width))
        if list(shape["size"]) != [height, width]:
            raise ValueError(f"its size is {shape['size']}, the image's {[height, width]}")
        return rle.frPyObjects(shape, height, width) if isinstance(shape["counts"], list) else shape
    except (KeyError, TypeError, ValueError, IndexError) as error:
        name = f"{where}: annotation {annotation['id']}"
        raise ValueError(f"{name} has neither polygons nor an RLE of the image's size: {error}") from error


class _Instances:
    """An instances JSON, parsed on first use."""

    def __init__(self, path: Path, drawn_by: str) -> None:
        self.path, self.drawn_by = require(path, JSON_FIX), drawn_by

    def header(self) -> dict[str, Any]:
        """Return the header of the index, which identifies its source: a changed JSON outdates the index."""
        checksum = 0
        with self.path.open("rb") as file:
            while block := file.read(1 << 24):
                checksum = zlib.crc32(block, checksum)
        header = {"index": "coco20i", "version": 1, "source": self.path.name, "crc32": checksum}
        return header if self.drawn_by == "opencv" else header | {"drawn_by": self.drawn_by}

    @cached_property
    def tasks(self) -> list[ImageTask]:
        """Return the images that have annotations, by rising id; the file must have COCO's 80 classes."""
        try:
            content = read_json(self.path)
            categories = {c["id"]: c["name"] for c in content["categories"]}
            images = {image["id"]: image for image in content["images"]}
            grouped: dict[int, list[Mapping[str, Any]]] = {}
            for annotation in content["annotations"]:
                grouped.setdefault(annotation["image_id"], []).append(annotation)
            tasks = [ImageTask(images[i], grouped[i], self.drawn_by) for i in sorted(grouped)]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = shortened(repr(error))
            raise ValueError(f"{self.path} is not an instances JSON ({reason}): extract it again") from error
        used = {a["category_id"] for task in tasks for a in task.annotations} - set(coco20i.CATEGORY_IDS)
        if used or [categories.get(i) for i in coco20i.CATEGORY_IDS] != list(coco20i.CLASS_NAMES):
            fault = f"{self.path}: categories are not COCO's 80; use `register_coco_json` for other sets"
            raise ValueError(fault)
        return tasks


def prepare(root: Path, *, year: int, workers: int, class_maps: bool, lists: Path | None) -> None:
    """Write the indexes, lists and (``class_maps``) flattened maps under ``<root>/fss_d2/coco20i``.

    Complete files stay, so a second run writes nothing and an interrupted run is continued.

    Args:
        root: the datasets folder, with ``coco/annotations`` in it.
        year: 2014 (HSNet, PFENet and after them) or 2017 (MM-Former).
        class_maps: also write the class maps that ``coco20i_flat``, ``coco20i_hsnet`` and
            ``coco20i_mmformer`` read.
        lists: a folder with HSNet's ``{trn,val}_fold{0..3}.json``, or for 2017 with MM-Former's
            ``val_fold{0..3}.json``; the sets of images follow from the data, but not their order, on which
            the published test episodes depend.
    """
    for split in ("train", "val"):
        image_set = f"{split}{year}"
        path = root / "coco/annotations" / f"instances_{image_set}.json"
        instances = _Instances(path, DRAWN_BY[year])
        bar, path = f"index {instances.path.stem}", coco20i.index_path(root, image_set)
        tasks = partial(getattr, instances, "tasks")  # the file is parsed only if the index must be written
        write_index(path, instances.header(), index_row, tasks, workers=workers, progress=bar)
        if class_maps:
            _write_class_maps(root, image_set, instances, workers)
    _write_lists(root, year)
    if lists is not None:
        (_install_hsnet_lists if year == 2014 else _install_mmformer_lists)(root, lists)


def check(root: Path, *, year: int) -> tuple[list[Count], list[str]]:
    """Count images and pairs per fold next to the published numbers, and list missing or broken files."""
    counts, faults = [], []
    for split in ("train", "val"):
        image_set = f"{split}{year}"
        rows = _light_rows(root, image_set)
        counts.append(Count(f"{image_set} annotated images", len(rows), ANNOTATED_IMAGES.get(image_set)))
        for variant in _VARIANTS[year]:
            for fold in range(NUM_FOLDS):
                published = PUBLISHED.get((variant, split), ((None, None),) * NUM_FOLDS)[fold]
                classes, what = _classes_by_row(rows, variant, fold, split), f"{variant} fold {fold} {split}"
                counts.append(Count(f"{what} images", sum(map(bool, classes)), published[0]))
                counts.append(Count(f"{what} pairs", sum(map(len, classes)), published[1]))
                if variant == coco20i.MMFORMER and split == "val":
                    counts += _list_count(root, fold, what, rows, classes)
        faults += _faults(root, image_set, rows)
    return counts, faults


def _list_count(
    root: Path, fold: int, what: str, rows: Sequence[Mapping[str, Any]], classes: Sequence[list[int]]
) -> list[Count]:
    """How many images of an installed list of MM-Former the rule has as well."""
    path = coco20i.mmformer_list_path(root, fold)
    if not path.is_file():
        return []
    listed = set(coco20i.parse_image_list(read_text(path), str(path)))
    own = {row["image_id"] for row, found in zip(rows, classes, strict=True) if found}
    return [Count(f"{what} images of the list", len(listed & own), len(listed))]


def _faults(root: Path, image_set: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """List missing images and, if there are class maps, those that are missing or broken."""
    try:
        find = coco20i.image_finder(root, image_set)
    except FileNotFoundError as error:
        faults = [str(error)]
    else:
        paths = (find(row) for row in rows)
        faults = [f"{path} not found: {coco20i.IMAGE_FIX}" for path in paths if not path.is_file()]
    maps = [coco20i.class_map_path(root, image_set, row["file_name"]) for row in rows]
    if maps and maps[0].parent.is_dir():
        broken = (path for path in maps if not png_is_whole(path))
        fix = coco20i.prepare_command(image_set, "--class-maps")
        faults += [f"{path} is missing or broken: {fix}" for path in broken]
    return faults


def _write_map(task: ImageTask) -> None:
    if task.class_map is not None:
        write_class_map(task.class_map, task.draw())


def _write_class_maps(root: Path, image_set: str, instances: _Instances, workers: int) -> None:
    names = [row["file_name"] for row in _light_rows(root, image_set)]
    maps = {name: coco20i.class_map_path(root, image_set, name) for name in names}
    missing = {name: path for name, path in maps.items() if not png_is_whole(path)}
    if missing:
        tasks = (task for task in instances.tasks if task.image["file_name"] in missing)
        todo = [task._replace(class_map=missing[task.image["file_name"]]) for task in tasks]
        for _ in parallel_map(_write_map, todo, workers=workers, progress=f"Class maps {image_set}"):
            pass


def _light_rows(root: Path, image_set: str) -> list[dict[str, Any]]:
    """Return the index rows without their RLEs."""
    rows = []
    for row in read_index(coco20i.index_path(root, image_set), coco20i.prepare_command(image_set)):
        objects = [{"class": o["class"], "flat_area": o["flat_area"]} for o in row["objects"]]
        rows.append({"image_id": row["image_id"], "file_name": row["file_name"], "objects": objects})
    return rows


def _classes_by_row(
    rows: Sequence[Mapping[str, Any]], variant: str, fold: int, split: str
) -> list[list[int]]:
    wanted = coco20i.drawn_classes(variant, fold, split)
    return [coco20i.large_classes(row, wanted) for row in rows]


def _write_lists(root: Path, year: int) -> None:
    """Write ``lists/<variant>/fold<i>_<split>.json`` in HSNet's format, for use outside this project."""
    for split in ("train", "val"):
        rows = _light_rows(root, f"{split}{year}")
        for variant in _VARIANTS[year]:
            for fold in range(NUM_FOLDS):
                lists: dict[str, list[str]] = {str(c): [] for c in range(len(coco20i.CLASS_NAMES))}
                for row, classes in zip(rows, _classes_by_row(rows, variant, fold, split), strict=True):
                    for class_id in classes:
                        lists[str(class_id)].append(f"{split}{year}/{row['file_name']}")
                path = list_path(root, "coco20i", f"{variant}/fold{fold}_{split}.json")
                write_text_if_changed(path, json_text(lists))


def _install_hsnet_lists(root: Path, folder: Path) -> None:
    texts = {}
    sets = {"trn": "train2014", "val": "val2014"}
    known = {split: {row["image_id"] for row in _light_rows(root, sets[split])} for split in sets}
    for split, fold, name, text in find_fold_lists(folder, ".json"):
        texts[name] = text
        novel = set(coco20i.novel_classes(coco20i.HSNET, fold))
        for class_id, image_ids in coco20i.parse_class_lists(text, f"{folder}/{name}").items():
            if image_ids and (class_id in novel) != (split == "val"):
                raise ValueError(f"{folder}/{name}: class {class_id} is not for {split} of fold {fold}")
            if unknown := set(image_ids) - known[split]:
                fault = f"{folder}/{name}: image {min(unknown)} is not in {sets[split]}: check the list"
                raise ValueError(fault)
    for name, text in texts.items():
        write_text_if_changed(list_path(root, "coco20i", f"hsnet/{name}"), text)


def _install_mmformer_lists(root: Path, folder: Path) -> None:
    known = {row["image_id"] for row in _light_rows(root, "val2017")}
    texts = {}
    for fold in range(NUM_FOLDS):
        stem = f"val_fold{fold}"
        texts[fold] = find_list(folder, (stem, f"val/fold{fold}"), ".json")
        listed = coco20i.parse_image_list(texts[fold], f"{folder}/{stem}.json")
        if unknown := set(listed) - known:
            raise ValueError(f"{folder}/{stem}.json: image {min(unknown)} is not in val2017: check the list")
    for fold, text in texts.items():
        write_text_if_changed(coco20i.mmformer_list_path(root, fold), text)
