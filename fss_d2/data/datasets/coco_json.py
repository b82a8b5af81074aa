"""Instance annotations in COCO's JSON format as dataset dicts."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog

from fss_d2.data.masks import load_mask
from fss_d2.files import read_json

from .splits import ClassDivision, first_duplicate, ids_of

__all__ = ["CocoSettings", "load_coco_json"]


@dataclass(frozen=True)
class CocoSettings:
    """The arguments of `register_coco_json`, which explains them; checks those that need no reading."""

    json_file: Path
    image_root: Path
    classes: Sequence[str] | None
    min_area: int
    exclude_images_with_novel: bool
    val_fraction: float
    division: ClassDivision

    def __post_init__(self) -> None:
        name, split = self.division.dataset, self.division.split
        if not self.json_file.is_file():
            fault = f"{name}: annotation file {self.json_file} does not exist; correct json_file"
            raise FileNotFoundError(fault)
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"{name}: val_fraction {self.val_fraction} must be at least 0 and less than 1")
        if self.min_area < 0:
            raise ValueError(f"{name}: min_area {self.min_area} must not be negative")
        for option in ("val_fraction", "exclude_images_with_novel"):
            if split == "all" and getattr(self, option):
                raise ValueError(f"{name}: {option} separates train from val; give split 'train' or 'val'")

    def has_image(self, image_id: int | str) -> bool:
        """Whether an image belongs to the split by the rule of `val_fraction`."""
        if self.val_fraction == 0:
            return True
        digest = hashlib.sha256(str(image_id).encode()).digest()
        held_out = int.from_bytes(digest[:8], "big") < self.val_fraction * 2**64
        return held_out == (self.division.split == "val")


def load_coco_json(settings: CocoSettings) -> list[dict[str, Any]]:
    """Read the file, complete the dataset's metadata and return its records, in the order of "images"."""
    try:
        return _load(settings)
    except (AttributeError, TypeError) as error:  # for instance a number in place of a list
        raise ValueError(f"{settings.json_file} is not in COCO's format ({error}); fix it") from error


def _load(settings: CocoSettings) -> list[dict[str, Any]]:
    content = _read(settings.json_file)
    class_of, class_names = _classes(settings, content["categories"])
    name = settings.division.dataset
    metadata = settings.division.metadata(class_names)
    annotations = _by_image(settings.json_file, content, class_of)
    drops_novel = settings.exclude_images_with_novel and settings.division.split == "train"
    banned = metadata["novel_class_ids"] if drops_novel else ()
    records = []
    for image in content["images"]:
        mine = annotations[image["id"]]
        if settings.has_image(image["id"]) and not any(a["category_id"] in banned for a in mine):
            record = _record(settings, image, mine, metadata["class_ids"])
            if record["classes"]:
                records.append(record)
    if not records:
        fault = f"{name}: no image of {settings.json_file} shows a class of split {settings.division.split!r}"
        raise ValueError(fault)
    if not Path(records[0]["file_name"]).is_file():
        raise FileNotFoundError(f"{name}: image {records[0]['file_name']} does not exist; correct image_root")
    MetadataCatalog.get(name).set(**metadata)
    return records


def _read(path: Path) -> dict[str, Any]:
    """Parse the file; its three lists must exist and have distinct ids."""
    content = read_json(path, "write it again")
    needs = {
        "images": {"id", "file_name", "height", "width"},
        "categories": {"id", "name"},
        "annotations": {"image_id", "category_id"},
    }
    for part, keys in needs.items():
        rows = content.get(part) if isinstance(content, dict) else None
        if not isinstance(rows, list):
            raise ValueError(f"{path}: there is no list {part!r}; add it as in COCO's format")
        for number, row in enumerate(rows):
            if missing := keys - row.keys():
                raise ValueError(f"{path}: {part}[{number}] has no {sorted(missing)[0]!r}; add it")
        if part != "annotations" and (twice := first_duplicate(row["id"] for row in rows)) is not None:
            raise ValueError(f"{path}: id {twice} occurs twice in {part!r}; make ids distinct")
    return content


def _classes(
    settings: CocoSettings, categories: Sequence[Mapping[str, Any]]
) -> tuple[dict[int, int | None], list[str]]:
    """Return the class id of every category id (None: not used) and the class names."""
    ordered = sorted(categories, key=lambda category: category["id"])
    all_names = [category["name"] for category in ordered]
    if (twice := first_duplicate(all_names)) is not None:
        raise ValueError(f"{settings.json_file}: two categories have the name {twice!r}; rename one")
    where = f"{settings.division.dataset}: classes"
    kept = ids_of(settings.classes, all_names, where) if settings.classes is not None else range(len(ordered))
    class_of: dict[int, int | None] = {category["id"]: None for category in ordered}
    class_of |= {ordered[place]["id"]: class_id for class_id, place in enumerate(kept)}
    return class_of, [all_names[place] for place in kept]


def _by_image(
    path: Path, content: Mapping[str, Any], class_of: Mapping[int, int | None]
) -> dict[int | str, list[dict[str, Any]]]:
    """Return the annotations of each image that have an outline, with class ids in place of category ids."""
    grouped: dict[int | str, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
    for number, row in enumerate(content["annotations"]):
        label = row.get("id", f"number {number}")
        if row["image_id"] not in grouped:
            raise ValueError(f"{path}: annotation {label} is of image {row['image_id']}, not in 'images'")
        if row["category_id"] not in class_of:
            fault = f"{path}: annotation {label} has category {row['category_id']}, not in 'categories'"
            raise ValueError(fault)
        class_id, outline = class_of[row["category_id"]], row.get("segmentation")
        if class_id is not None and outline:
            kept = {"category_id": class_id, "segmentation": outline, "iscrowd": int(row.get("iscrowd", 0))}
            grouped[row["image_id"]].append(kept)
    return grouped


def _record(
    settings: CocoSettings,
    image: Mapping[str, Any],
    annotations: Sequence[dict[str, Any]],
    drawn: Collection[int],
) -> dict[str, Any]:
    record = {"file_name": str(settings.image_root / image["file_name"]), "image_id": image["id"]}
    record |= {"height": image["height"], "width": image["width"]}
    record["annotations"] = list(annotations)  # of every class: held-out objects are not background either
    shown = {a["category_id"] for a in annotations if not a["iscrowd"]}
    classes = sorted(shown.intersection(drawn))
    if settings.min_area:
        classes = [c for c in classes if (load_mask(record, c) == 1).sum() >= settings.min_area]
    return record | {"classes": classes}
