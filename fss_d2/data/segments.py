"""From a dataset dict to all its masks: every class and the background, or every object."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .images import read_image
from .masks import IGNORE, check_shows, class_of_map, load_mask, read_class_map, upright_mask

__all__ = ["BACKGROUND", "Segment", "load_segments", "union_mask"]

BACKGROUND = 0  # label of the background; a class has its id + 1


@dataclass(frozen=True)
class Segment:
    """A labelled mask.

    Attributes:
        label: 0 background, class id + 1.
        mask: (H, W) uint8: 1 the segment, 255 ignored for its class, 0 rest.
    """

    label: int
    mask: np.ndarray


def load_segments(
    record: Mapping[str, Any], class_id: int, class_ids: Collection[int], kind: str
) -> tuple[np.ndarray, np.ndarray, list[Segment]]:
    """Read a dataset dict's image, its mask of one class and its segments, all upright.

    A mask file is read once. Pixels of classes that are not asked for belong to no segment, and are not
    background either.

    Args:
        record: dataset dict.
        class_id: the class of the mask; its segments are wanted, too.
        class_ids: further classes whose segments are wanted.
        kind: "semantic": one mask each class, and the background, which is what no class covers and no crowd
            region or ignore label hides; "instance": one mask each object, crowds left out, no background;
            "objects": as "instance" where the record tells objects apart, else "semantic" without background.

    Returns:
        Image (H, W, 3) uint8 RGB; mask (H, W) uint8 in {0, 1, 255}; the segments that have a pixel.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is broken, the sizes differ, no pixel shows the class, or "instance" is asked of a
            record without annotations; names the file.
    """
    if kind == "instance" and not _has_objects(record):
        raise ValueError(
            f"image {record['file_name']} has no 'annotations' that tell its objects apart; set "
            "INPUT.SEGMENTS semantic, or register a COCO JSON in DATASETS.COCO_JSON"
        )
    wanted = {class_id, *class_ids}
    image, orientation = read_image(record["file_name"])
    masks = _class_masks(record)
    if _has_objects(record) and kind != "semantic":
        stored = _objects(record, wanted)
    else:
        stored = _regions(masks, wanted, background=kind == "semantic")
    mask = masks.get(class_id, np.zeros(image.shape[:2], np.uint8))
    check_shows(mask, record, class_id)
    mask = upright_mask(mask, image, orientation, record)
    return image, mask, [Segment(s.label, upright_mask(s.mask, image, orientation, record)) for s in stored]


def union_mask(masks: Sequence[np.ndarray]) -> np.ndarray:
    """Return the union (H, W) uint8 of one or more masks in {0, 1, 255}: 1 goes before 255 before 0."""
    stack = np.stack(masks)
    return np.select([(stack == 1).any(0), (stack == IGNORE).any(0)], [1, IGNORE], 0).astype(np.uint8)


def _has_objects(record: Mapping[str, Any]) -> bool:
    """Whether annotations tell the objects of a class apart (prepared COCO-20i joins them)."""
    return "annotations" in record and not record.get("objects_joined", False)


def _regions(masks: Mapping[int, np.ndarray], class_ids: Collection[int], background: bool) -> list[Segment]:
    """One mask each class, in the frame the dataset stores it in."""
    segments = [Segment(c + 1, masks[c]) for c in sorted(masks) if c in class_ids]
    if background and masks:
        shown = union_mask(list(masks.values()))
        rest = np.select([shown == 0, shown == IGNORE], [1, IGNORE], 0).astype(np.uint8)
        segments.insert(0, Segment(BACKGROUND, rest))
    return _shown(segments)


def _class_masks(record: Mapping[str, Any]) -> dict[int, np.ndarray]:
    """Masks of all classes that a record knows of."""
    if "annotations" in record:
        return {c: load_mask(record, c) for c in {a["category_id"] for a in record["annotations"]}}
    path = record.get("sem_seg_file_name")
    if path is not None and record.get("mask_encoding", "class_map") == "class_map":
        values = read_class_map(path)
        shown = np.flatnonzero(np.bincount(values.ravel(), minlength=IGNORE + 1))
        return {int(v) - 1: class_of_map(values, int(v) - 1) for v in shown if v not in (BACKGROUND, IGNORE)}
    return {c: load_mask(record, c) for c in record["classes"][:1]}  # a file of one class


def _objects(record: Mapping[str, Any], class_ids: Collection[int]) -> list[Segment]:
    """One mask each object; crowd regions of its class are 255."""
    annotations = record["annotations"]
    segments = []
    for one in annotations:
        class_id = one["category_id"]
        if class_id in class_ids and not one.get("iscrowd", 0):
            crowds = [a for a in annotations if a["category_id"] == class_id and a.get("iscrowd", 0)]
            mask = load_mask({**record, "annotations": [one, *crowds]}, class_id)
            segments.append(Segment(class_id + 1, mask))
    return _shown(segments)


def _shown(segments: Sequence[Segment]) -> list[Segment]:
    return [segment for segment in segments if (segment.mask == 1).any()]
