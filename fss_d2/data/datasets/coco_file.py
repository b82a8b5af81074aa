"""A file in COCO's format as it is written: parsed, its ids and names put in order."""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fss_d2.data.outlines import checked_frame
from fss_d2.io.files import printable, read_json, shortened

from .listed_pictures import PictureFinder

__all__ = ["CocoFile", "Row", "read_coco_file"]

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]
Id = int | str

_ID_TYPES = (int, str)
_ODD = "\\%?:"  # characters of names that another system or program wrote

_NEEDED = {
    "images": {"id", "file_name", "height", "width"},
    "categories": {"id", "name"},
    "annotations": {"image_id", "category_id"},
}


@dataclass(frozen=True)
class CocoFile:
    """The lists of a file: every annotation's ids are those of one of its images and categories."""

    path: Path
    images: list[dict[str, Any]]  # id, file_name, height, width
    categories: list[Row]  # by rising id; names are distinct
    annotations: list[dict[str, Any]]  # image_id, category_id, "label" for messages, and as written

    def of_images(self) -> dict[Id, list[dict[str, Any]]]:
        """The annotations of each image, by its id."""
        grouped: dict[Id, list[dict[str, Any]]] = {image["id"]: [] for image in self.images}
        for row in self.annotations:
            grouped[row["image_id"]].append(row)
        return grouped

    def with_pictures(self, finder: PictureFinder, *, all_exist: bool) -> "CocoFile":
        """The same with paths as file names; images with the same file are joined into the first of them.

        With ``all_exist`` the picture of every annotation must exist. Otherwise plain names are taken as they
        stand, without a look at each file, if that is right for the first.
        """
        used = {row["image_id"] for row in self.annotations}
        searched = [all_exist, not all(map(os.path.isfile, self._paths(finder.bases[0])[:1]))]
        images: dict[Path, dict[str, Any]] = {}
        same: dict[Id, dict[str, Any]] = {}
        for image, path in zip(self.images, self._paths(finder.bases[0]), strict=True):
            name = image["file_name"]
            if all_exist and image["id"] in used:
                path = finder.require(name)
            elif any(searched) or any(mark in name for mark in _ODD):
                path = finder.find(name) or path
            same[image["id"]] = images.setdefault(path, {**image, "file_name": str(path), "listed_as": name})
        if remark := finder.remark():
            logger.info("%s", printable(remark))
        self._log_joined([(image, same[image["id"]]) for image in self.images])
        rows = [
            row if (joined := same[row["image_id"]]["id"]) == row["image_id"] else {**row, "image_id": joined}
            for row in self.annotations
        ]
        return CocoFile(self.path, list(images.values()), self.categories, rows)

    def _paths(self, root: Path) -> list[Path]:
        return [root / image["file_name"] for image in self.images]

    def _log_joined(self, pairs: Sequence[tuple[Row, Row]]) -> None:
        """Say which images have the file of another; ValueError if their sizes differ."""
        joined = [(image, first) for image, first in pairs if image["id"] != first["id"]]
        for image, first in joined:
            ids = f"{shortened(image['file_name'])} has the ids {first['id']} and {image['id']}"
            if (first["height"], first["width"]) != (image["height"], image["width"]):
                raise ValueError(f"{self.path}: {ids} with different sizes; keep the one that is right")
        if joined:
            image, first = joined[0]
            what = f"{self.path}: pictures listed again under another id: {len(joined)}, the first "
            what += f"{shortened(image['file_name'])} under {first['id']} and {image['id']}; "
            what += "their annotations are joined"
            logger.info("%s", printable(what))


def read_coco_file(path: Path) -> CocoFile:
    """Parse a file; ValueError, which names the entry, if its lists do not fit together."""
    content = read_json(path, "write it again", any_number=True)
    for part, keys in _NEEDED.items():
        rows = content.get(part) if isinstance(content, dict) else None
        if not isinstance(rows, list):
            raise ValueError(f"{path}: there is no list {part!r}; add it as in COCO's format")
        for number, row in enumerate(rows):
            if not isinstance(row, dict):
                fault = f"{part}[{number}] is {shortened(row)}, not an object; remove it"
                raise ValueError(f"{path} is not in COCO's format: {fault}")
            if missing := keys - row.keys():
                raise ValueError(f"{path}: {part}[{number}] has no {sorted(missing)[0]!r}; add it")
    for part in ("images", "categories"):
        _check_ids(path, part, content[part])
    images = [_image(path, number, row) for number, row in enumerate(content["images"])]
    annotations = _linked(path, content)
    categories = _categories(path, content["categories"], {row["category_id"] for row in annotations})
    return CocoFile(path, images, categories, annotations)


def _image(path: Path, number: int, row: Row) -> dict[str, Any]:
    name = row["file_name"]
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{path}: images[{number}] has the file_name {shortened(name)!r}; give a file name")
    try:
        height, width = checked_frame(row["height"], row["width"])
    except ValueError as error:
        raise ValueError(f"{path}: images[{number}] ({shortened(name)}): {error}") from error
    return {"id": row["id"], "file_name": name, "height": height, "width": width}


def _check_ids(path: Path, part: str, rows: Iterable[Row]) -> None:
    count: Counter[Any] = Counter()
    for number, row in enumerate(rows):
        if not isinstance(row["id"], int | str) or isinstance(row["id"], bool):
            fault = f"{part}[{number}] has the id {shortened(row['id'])}; give a whole number or a text"
            raise ValueError(f"{path} is not in COCO's format: {fault}")
        count[row["id"]] += 1
    if twice := [key for key, times in count.items() if times > 1]:
        raise ValueError(f"{path}: id {twice[0]} occurs twice in {part!r}; make ids distinct")


def _linked(path: Path, content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The annotations with the ids of images and categories as these two lists write them."""
    images, categories = ({row["id"]: row["id"] for row in content[p]} for p in ("images", "categories"))
    texts = {key: {str(i): i for i in ids} for key, ids in (("image", images), ("category", categories))}
    mixed, linked = 0, []
    for number, row in enumerate(content["annotations"]):
        given = row.get("id")
        label = f"number {number}" if given is None else given if type(given) is int else shortened(given)
        row = {**row, "label": label}
        for what, ids, part in (("image", images, "images"), ("category", categories, "categories")):
            given = row[f"{what}_id"]
            if type(given) in _ID_TYPES and given in ids:
                continue
            if isinstance(given, int | str) and given not in ids and str(given) in texts[what]:
                row[f"{what}_id"] = texts[what][str(given)]
                mixed += 1
            elif not isinstance(given, int | float | str) or given not in ids:
                verb = "is of image" if what == "image" else "has category"
                raise ValueError(f"{path}: annotation {label} {verb} {shortened(given)}, not in {part!r}")
        linked.append(row)
    if mixed:
        logger.info("%s writes ids as numbers and as texts; they are taken as equal", printable(path))
    return linked


def _categories(path: Path, rows: Sequence[Row], used: set[Id]) -> list[Row]:
    """The categories by rising id, without unused ones that share their name with a used one."""
    ordered = sorted(rows, key=lambda row: (isinstance(row["id"], str), row["id"]))
    for row in ordered:
        if not isinstance(row["name"], str) or not row["name"].strip():
            raise ValueError(
                f"{path}: category {row['id']} has the name {shortened(row['name'])!r}; give one"
            )
    named: dict[str, list[Row]] = {}
    for row in ordered:
        named.setdefault(row["name"], []).append(row)
    kept = []
    for name, same in named.items():
        in_use = [row for row in same if row["id"] in used]
        if len(same) > 1 and len(in_use) != 1:
            raise ValueError(f"{path}: two categories have the name {shortened(name)!r}; rename one")
        if len(same) > 1:
            what = f"{path}: category {name!r} is listed {len(same)} times and used under one id"
            logger.info("%s; the other entries are left out", printable(what))
        kept += in_use if len(same) > 1 else same
    return sorted(kept, key=lambda row: (isinstance(row["id"], str), row["id"]))
