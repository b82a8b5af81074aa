"""The objects of a COCO file: outlines that are checked, boxes without outline, and what cannot be read."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fss_d2.data.outlines import (
    box_outline,
    checked_outline,
    fills_holes,
    fits_box,
    has_outline,
    has_stray_parts,
    is_empty,
    overhang,
    whole_frame,
)
from fss_d2.io.files import printable, shortened

from .coco_file import Row
from .listed_pictures import framed_as

__all__ = ["ObjectReader", "Objects"]

logger = logging.getLogger(__name__)

Frame = tuple[int, int]  # (height, width)

_SLACK = 2  # pixels by which outlines of the right frame reach out of it, by rounding
_CROWD = {None: 0, 0: 0, 1: 1, "0": 0, "1": 1}
_SHAPELESS = "export outlines (polygons or masks)"


@dataclass(frozen=True)
class Objects:
    """The objects of one picture."""

    frame: Frame
    annotations: list[dict[str, Any]]  # category_id (the class id), segmentation, iscrowd, id
    shown: set[int]  # classes with an object whose mask is known


@dataclass
class _Reading:
    """What the annotations of one picture give in one frame."""

    annotations: list[dict[str, Any]]
    faults: list[tuple[int, str]]  # class, reason
    notes: list[tuple[str, int, int | str]]  # kind of `ObjectReader.notes`, class, label of the annotation
    reach: float = 0.0  # pixels by which outlines reach out of the frame

    @property
    def fits(self) -> bool:
        """Whether all outlines can be drawn and lie in the frame."""
        return not self.faults and self.reach <= _SLACK


class ObjectReader:
    """Reads the annotations of all pictures of a file, and counts what it has to guess or leave out.

    Args:
        path: of the file, for messages.
        class_of: class id of each category id; None for categories that are not used.
        is_strict: raise ValueError for an object that cannot be read, and compare every frame with the
            picture. Otherwise the class of such an object is 255 in the whole picture.
    """

    def __init__(self, path: Path, class_of: Mapping[int | str, int | None], is_strict: bool) -> None:
        self.path, self.class_of, self.is_strict = path, class_of, is_strict
        self.left_out: list[dict[str, str]] = []
        self.notes: dict[str, list[int | str]] = {}  # by kind: labels of the annotations, or sentences
        self.counts: dict[str, Counter[int]] = {kind: Counter() for kind in ("shown", "box", "crowd")}

    def read(self, image: Row, rows: Sequence[Row]) -> Objects:
        """The objects of a picture; its entry has a path as "file_name"."""
        mine = [row for row in rows if self.class_of.get(row["category_id"]) is not None]
        frame = (image["height"], image["width"])
        reading = self._reading(mine, frame)
        if mine and (self.is_strict or not reading.fits):
            frame, reading = self._compared(image, mine, frame, reading)
        for kind, class_id, label in reading.notes:
            self.notes.setdefault(kind, []).append(label)
            if kind in self.counts:
                self.counts[kind][class_id] += 1
        unknown = {class_id for class_id, _ in reading.faults}
        if reading.faults:
            self.left_out.append({"image": image["file_name"], "reason": reading.faults[0][1]})
        open_areas = [_annotation(c, whole_frame(frame), 1) for c in sorted(unknown)]
        shown = {a["category_id"] for a in reading.annotations if not a["iscrowd"]} - unknown
        self.counts["shown"].update(shown)
        return Objects(frame, reading.annotations + open_areas, shown)

    def log(self) -> None:
        """Say once what was guessed, and what was left out."""
        for kind, labels in self.notes.items():
            if (text := _NOTES.get(kind)) and (self.is_strict or kind not in _STRICT_NOTES):
                what = text.format(count=len(labels), first=labels[0])
                logger.info("%s", printable(f"{self.path}: {what}"))
        for sentence, count in Counter(self.notes.get("frame", ())).items():
            logger.info("%s", printable(f"{self.path}: {sentence}" + f" ({count} pictures)" * (count > 1)))
        if self.left_out:
            first = self.left_out[0]
            what = f"pictures not used for one of their classes: {len(self.left_out)}, the first "
            what += f"{first['image']}: {first['reason']}"
            logger.warning("%s", printable(f"{self.path}: {what}"))

    def check_classes(self, names: Mapping[int, str]) -> None:
        """Raise ValueError for a class (by id) that has boxes and no outline, or, if strict, crowds only."""
        for class_id, name in names.items():
            if self.counts["shown"][class_id]:
                continue
            where = f"{self.path}: class {shortened(name)!r}"
            if count := self.counts["box"][class_id]:
                fix = "" if self.is_strict else ", or choose other classes"
                raise ValueError(f"{where} has boxes ({count}) and no outline; {_SHAPELESS}{fix}")
            if self.is_strict and (count := self.counts["crowd"][class_id]):
                raise ValueError(
                    f"{where}: each outline ({count}) has iscrowd 1, which marks a crowd to ignore (CVAT "
                    "writes it for brush masks); set iscrowd to 0 if they are single objects"
                )

    def why_none(self) -> str:
        """Why nothing is shown, as far as it is known."""
        if self.left_out:
            return f"{self.left_out[0]['image']}: {self.left_out[0]['reason']}"
        crowds = sum(self.counts["crowd"].values())
        return f"each outline ({crowds}) is a crowd region (iscrowd 1)" if crowds else ""

    def _compared(
        self, image: Row, rows: Sequence[Row], frame: Frame, reading: _Reading
    ) -> tuple[Frame, _Reading]:
        """Choose between the upright and the stored frame of a picture with an EXIF orientation."""
        name = shortened(image["listed_as"])
        try:
            upright, stored, remark = framed_as(Path(image["file_name"]), frame)
        except (FileNotFoundError, ValueError) as error:
            if self.is_strict:
                raise ValueError(f"{self.path}: {error}") from error
            if not isinstance(error, FileNotFoundError):
                reading.faults += [(class_id, str(error)) for class_id in self._class_ids(rows)]
            return frame, reading
        other = next((f for f in (upright, stored) if f is not None and f != frame), None)
        if not reading.fits and other is not None and (turned := self._reading(rows, other)).fits:
            frame, reading = other, turned
            which = "stored" if other == stored else "upright"
            remark = (
                f"the outlines of {name} do not fit the size in the file, but the {which} picture; taken so"
            )
        if self.is_strict and reading.faults:
            reason = reading.faults[0][1]
            fix = "" if ";" in reason else "; correct or delete it"
            raise ValueError(f"{self.path}: {name}, {reason}{fix}")
        if remark:
            self.notes.setdefault("frame", []).append(remark)
        return frame, reading

    def _class_ids(self, rows: Sequence[Row]) -> set[int]:
        return {class_id for row in rows if (class_id := self.class_of[row["category_id"]]) is not None}

    def _reading(self, rows: Sequence[Row], frame: Frame) -> _Reading:
        reading = _Reading([], [], [])
        for row in rows:
            class_id, label = int(self.class_of[row["category_id"]] or 0), row["label"]
            try:
                outline, kind = self._outline(row, frame)
            except ValueError as error:
                reading.faults.append((class_id, f"annotation {label}: {error}"))
                continue
            is_open = kind in ("box", "crowd")
            reading.annotations.append(_annotation(class_id, outline, int(is_open), label))
            reach = overhang(outline, frame)
            reading.reach = max(reading.reach, reach)
            filled = self.is_strict and fills_holes(outline, frame)
            apart = self.is_strict and not is_open and not fits_box(outline, row.get("bbox"))
            notes = (kind, "cut" * (reach > _SLACK), "holes" * filled, "apart" * apart)
            reading.notes += [(what, class_id, label) for what in notes if what]
        return reading

    def _outline(self, row: Row, frame: Frame) -> tuple[Any, str]:
        """The checked outline of an annotation, and the kind of note on it; ValueError says what is wrong."""
        given, crowd = row.get("segmentation"), row.get("iscrowd")
        if isinstance(crowd, list | dict | float) or crowd not in _CROWD:
            raise ValueError(f"its iscrowd is {shortened(crowd)}; give 0 or 1")
        if not has_outline(given):
            if row.get("bbox") in (None, []):
                raise ValueError("it has neither an outline nor a box; add one")
            return box_outline(row["bbox"], frame), "box"
        outline = checked_outline(given, frame)
        if _CROWD[crowd]:
            return outline, "crowd"
        if (self.is_strict or isinstance(outline, Mapping)) and is_empty(outline):
            raise ValueError("its outline has no area; draw it again")
        if has_stray_parts(given, outline):
            return outline, "stray"
        return outline, "pairs" if outline is not given and isinstance(outline, list) else ""


_NOTES = {
    "box": "objects with a box and no outline: {count}, the first annotation {first}; the pixels in their "
    "boxes are ignored (255)",
    "crowd": "outlines with iscrowd 1: {count}, the first annotation {first}; their pixels are ignored (255)",
    "pairs": "outlines not written as [[x, y, x, y, ...]]: {count}, the first annotation {first}; their "
    "numbers are taken for the corners of polygons",
    "stray": "outlines with parts of fewer than 3 corners: {count}, the first annotation {first}; these "
    "parts are left out",
    "holes": "outlines whose polygons overlap: {count}, the first annotation {first}; all are filled, as "
    "COCO's polygons have no holes (run lengths do)",
    "apart": "outlines that do not fit their box (bbox): {count}, the first annotation {first}; the outlines "
    "are taken, look whether their numbers are pixels",
    "cut": "outlines that reach out of their picture: {count}, the first annotation {first}; they are cut at "
    "the border",
}
_STRICT_NOTES = ("crowd",)  # COCO's own files have thousands of crowds


def _annotation(class_id: int, outline: Any, iscrowd: int, label: int | str = "") -> dict[str, Any]:
    annotation = {"category_id": class_id, "segmentation": outline, "iscrowd": iscrowd}
    if label != "":
        annotation["id"] = label
    return annotation
