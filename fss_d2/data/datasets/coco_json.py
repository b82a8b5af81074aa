"""Instance annotations in COCO's JSON format as dataset dicts."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog

from fss_d2.data.masks import load_mask
from fss_d2.io.files import shortened

from .coco_file import CocoFile, read_coco_file
from .coco_objects import ObjectReader, Objects
from .listed_pictures import PictureFinder
from .splits import ClassDivision, ids_of

__all__ = ["CocoSettings", "load_coco_json", "read_coco_records"]


@dataclass(frozen=True)
class CocoSettings:
    """The arguments of `register_coco_json`, which explains them; checks those that need no reading."""

    json_file: Path
    image_root: Path | None  # None searches near the file
    classes: Sequence[str] | None
    min_area: int
    exclude_images_with_novel: bool
    val_fraction: float
    division: ClassDivision
    is_strict: bool = False  # refuse what cannot be read, instead of leaving it out
    root_option: str = "image_root"  # the program's name for `image_root`, for messages; "": it has none

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
    records, metadata = read_coco_records(settings)
    MetadataCatalog.get(settings.division.dataset).set(**metadata)
    return records


def read_coco_records(settings: CocoSettings) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Read the file: its records, in the order of "images", and the metadata of the dataset.

    Metadata hold ``left_out``, [{"image", "reason"}, ...]: pictures with an object that cannot be read. They
    are not used for the class of that object, which is 255 in all of the picture.
    """
    name, path = settings.division.dataset, settings.json_file
    finder = PictureFinder(path, settings.image_root, settings.root_option)
    content = read_coco_file(path).with_pictures(finder, all_exist=settings.is_strict)
    class_of, class_names = _classes(settings, content)
    metadata = settings.division.metadata(class_names)
    drops_novel = settings.exclude_images_with_novel and settings.division.split == "train"
    banned = metadata["novel_class_ids"] if drops_novel else ()
    reader = ObjectReader(path, class_of, settings.is_strict)
    rows = content.of_images()
    records = []
    for image in content.images:
        objects = reader.read(image, rows[image["id"]])
        if settings.has_image(image["id"]) and not any(
            a["category_id"] in banned for a in objects.annotations
        ):
            record = _record(settings, image, objects, metadata["class_ids"])
            if record["classes"]:
                records.append(record)
    reader.log()
    reader.check_classes({c: class_names[c] for c in metadata["class_ids"]})
    if not records:
        why = f"; {reader.why_none()}" if reader.why_none() else ""
        fault = f"{name}: no image of {path} shows a class of split {settings.division.split!r}{why}"
        if settings.is_strict:
            fault = f"{path} annotates no object{why}"
        raise ValueError(fault)
    if not Path(records[0]["file_name"]).is_file():
        file = shortened(records[0]["file_name"])
        fault = f"{name}: image {file} does not exist; correct {settings.root_option}"
        raise FileNotFoundError(fault)
    return records, metadata | {"left_out": reader.left_out}


def _classes(settings: CocoSettings, content: CocoFile) -> tuple[dict[int | str, int | None], list[str]]:
    """Return the class id of every category id (None: not used) and the class names."""
    all_names = [category["name"] for category in content.categories]
    where = f"{settings.division.dataset}: classes"
    kept = (
        ids_of(settings.classes, all_names, where) if settings.classes is not None else range(len(all_names))
    )
    class_of: dict[int | str, int | None] = {category["id"]: None for category in content.categories}
    class_of |= {content.categories[place]["id"]: class_id for class_id, place in enumerate(kept)}
    return class_of, [all_names[place] for place in kept]


def _record(
    settings: CocoSettings, image: dict[str, Any], objects: Objects, drawn: Collection[int]
) -> dict[str, Any]:
    record = {"file_name": image["file_name"], "image_id": image["id"]}
    record |= {"height": objects.frame[0], "width": objects.frame[1]}
    record["annotations"] = objects.annotations  # of every class: held-out objects are not background either
    classes = sorted(objects.shown.intersection(drawn))
    if settings.min_area:
        classes = [c for c in classes if (load_mask(record, c) == 1).sum() >= settings.min_area]
    return record | {"classes": classes}
