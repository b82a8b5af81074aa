"""An image with all its masks: read from a dataset dict, then brought to the network's size."""

import random
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from detectron2.data import transforms as T
from torch import Tensor
from torch.utils.data import Dataset

from .images import image_header, read_image
from .masks import IGNORE, ReadImage, check_shows, class_map_of, class_of_map, load_mask, upright_mask

__all__ = [
    "BACKGROUND",
    "BaseInstances",
    "BlankImage",
    "Instances",
    "Sample",
    "Segment",
    "blank_image",
    "load_segments",
    "seeded",
    "transform_sample",
    "union_mask",
]

BACKGROUND = 0  # label of the background; a class has its id + 1


@dataclass(frozen=True)
class Segment:
    """A labelled mask."""

    label: int  # 0 background, class id + 1
    mask: np.ndarray  # (H, W) uint8: 1 the segment, 255 ignored for its class, 0 rest


@dataclass(frozen=True)
class Sample:
    """A transformed image with its masks."""

    image: Tensor  # (3, H, W) uint8 RGB
    mask: Tensor  # (H, W) uint8 in {0, 1, 255}
    valid_size: tuple[int, int] | None = None  # (height, width), top left, of what is not padding
    segments: tuple[Segment, ...] = ()  # all that were loaded, transformed; a mask may be empty
    transform: T.Transform | None = None  # of a `BlankImage`: what would have been done to its pixels

    def shows(self, pixels: int) -> bool:
        """Whether the mask has at least this number of object pixels."""
        return int((self.mask == 1).sum()) >= pixels

    def shown_classes(self, pixels: int) -> list[int]:
        """Return the ids, rising, of the classes whose segments together have at least so many pixels."""
        count: Counter[int] = Counter()
        for segment in self.segments:
            count[segment.label] += np.count_nonzero(segment.mask == 1)
        return sorted(label - 1 for label, n in count.items() if label != BACKGROUND and n >= pixels)

    def of_class(self, class_id: int) -> "Sample":
        """Return the same image with the mask of another class, the union of its segments."""
        mask = union_mask([s.mask for s in self.segments if s.label == class_id + 1])
        return replace(self, mask=torch.from_numpy(mask))


class BlankImage(np.ndarray):
    """An image (H, W, 3) uint8 of which only the shape counts; it takes one byte."""


def blank_image(path: str) -> tuple[BlankImage, int]:
    """As `read_image`, but only the header of the file is read."""
    size, orientation = image_header(path)
    return _blank(size if orientation < 5 else size[::-1]), orientation


def _blank(size: Sequence[int]) -> BlankImage:
    return np.broadcast_to(np.zeros(1, np.uint8), (*size, 3)).view(BlankImage)


class _MasksAlone(T.AugInput):
    """Transforms the mask; of the image, its size follows."""

    def transform(self, tfm: T.Transform) -> None:
        self.sem_seg = tfm.apply_segmentation(self.sem_seg)
        self.image = _blank(self.sem_seg.shape)


def transform_sample(
    augmentation: T.Augmentation, image: np.ndarray, mask: np.ndarray, segments: Sequence[Segment] = ()
) -> Sample:
    """Apply one augmentation to an image (H, W, 3) uint8, its mask (H, W) uint8 and its segments.

    The augmentation may look at the mask (to keep the object in a crop), not at the segments. Of a
    `BlankImage`, the result has zeros without memory of their own, and the transform.
    """
    is_blank = isinstance(image, BlankImage)
    inputs = (_MasksAlone if is_blank else T.AugInput)(image, sem_seg=mask)
    transform = augmentation(inputs)
    return Sample(
        torch.zeros(1, dtype=torch.uint8).expand(3, *inputs.sem_seg.shape)
        if is_blank
        else torch.from_numpy(inputs.image.transpose(2, 0, 1).copy()),  # (3, H, W)
        torch.from_numpy(inputs.sem_seg.copy()),
        getattr(transform, "valid_size", None),
        tuple(Segment(s.label, transform.apply_segmentation(s.mask).copy()) for s in segments),
        transform if is_blank else None,
    )


@contextmanager
def seeded(seed: tuple[int, int]) -> Iterator[None]:
    """Seed numpy's and Python's global generators, which Detectron2's augmentations use, within a block."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    number = int(np.random.SeedSequence(seed).generate_state(1)[0])
    np.random.seed(number)
    random.seed(number)
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def load_segments(
    record: Mapping[str, Any],
    class_id: int,
    class_ids: Collection[int],
    kind: str,
    read: ReadImage = read_image,
    *,
    must_show: bool = True,
) -> tuple[np.ndarray, np.ndarray, list[Segment]]:
    """Read a dataset dict's image, its mask of one class and its segments, all upright.

    The segments, those with a pixel, are of the class and of `class_ids`; pixels of other classes belong to
    no segment and are not background either. A mask file is read once. `kind` is one of

    - "semantic": one mask per class, and the background, which is what no class covers and no crowd region or
      ignore label hides;
    - "instance": one mask per object, without crowds and background;
    - "objects": as "instance" if the record separates objects, else "semantic" without background.

    ``read`` and errors as for `load_sample`; ValueError also if `kind` is "instance" for a record without
    annotations.
    """
    if kind == "instance" and not _has_objects(record):
        raise ValueError(
            f"image {record['file_name']} has no 'annotations' that separate its objects; set "
            "INPUT.SEGMENTS semantic, or register a COCO JSON in DATASETS.COCO_JSON"
        )
    wanted = {class_id, *class_ids}
    image, orientation = read(record["file_name"])
    masks = _class_masks(record)
    if _has_objects(record) and kind != "semantic":
        stored = _objects(record, wanted)
    else:
        stored = _regions(masks, wanted, background=kind == "semantic")
    mask = masks.get(class_id, np.zeros(image.shape[:2], np.uint8))
    if must_show:
        check_shows(mask, record, class_id)
    mask = upright_mask(mask, image, orientation, record)
    return image, mask, [Segment(s.label, upright_mask(s.mask, image, orientation, record)) for s in stored]


def union_mask(masks: Sequence[np.ndarray]) -> np.ndarray:
    """Return the union (H, W) uint8 of one or more masks in {0, 1, 255}: 1 wins over 255, 255 over 0."""
    stack = np.stack(masks)
    return np.select([(stack == 1).any(0), (stack == IGNORE).any(0)], [1, IGNORE], 0).astype(np.uint8)


def _has_objects(record: Mapping[str, Any]) -> bool:
    """Whether annotations separate the objects of a class (prepared COCO-20i joins them)."""
    return "annotations" in record and not record.get("objects_joined", False)


def _regions(masks: Mapping[int, np.ndarray], class_ids: Collection[int], background: bool) -> list[Segment]:
    """Return one mask per class, as the dataset stores it (not upright yet)."""
    segments = [Segment(c + 1, masks[c]) for c in sorted(masks) if c in class_ids]
    if background and masks:
        shown = union_mask(list(masks.values()))
        rest = np.select([shown == 0, shown == IGNORE], [1, IGNORE], 0).astype(np.uint8)
        segments.insert(0, Segment(BACKGROUND, rest))
    return _shown(segments)


def _class_masks(record: Mapping[str, Any]) -> dict[int, np.ndarray]:
    """Return the masks of all classes in a record."""
    if "annotations" in record:
        return {c: load_mask(record, c) for c in {a["category_id"] for a in record["annotations"]}}
    path = record.get("sem_seg_file_name")
    if path is not None and record.get("mask_encoding", "class_map") == "class_map":
        values = class_map_of(record)
        shown = np.flatnonzero(np.bincount(values.ravel(), minlength=IGNORE + 1))
        return {int(v) - 1: class_of_map(values, int(v) - 1) for v in shown if v not in (BACKGROUND, IGNORE)}
    return {c: load_mask(record, c) for c in record["classes"][:1]}  # a file of one class


def _objects(record: Mapping[str, Any], class_ids: Collection[int]) -> list[Segment]:
    """Return one mask per object; crowd regions of its class are 255."""
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


@dataclass(frozen=True)
class Instances:
    """An image with the masks of the base classes that it shows."""

    image: Tensor  # (3, H, W) uint8 RGB
    masks: Tensor  # (N, H, W) uint8 in {0, 1, 255}
    classes: Tensor  # (N,) int64, places in the list of base classes


class BaseInstances(Dataset[Instances]):
    """The images of a training set as in evaluation, with the masks of its base classes only.

    Instances with fewer than `min_pixels` in the original mask are left out.
    """

    def __init__(
        self,
        records: Sequence[Mapping[str, Any]],
        class_ids: Sequence[int],
        resize: T.Augmentation,
        min_pixels: int,
    ) -> None:
        self.place = {class_id: i for i, class_id in enumerate(class_ids)}
        self.records = [r for r in records if not self.place.keys().isdisjoint(r["classes"])]
        self.resize, self.min_pixels = resize, min_pixels

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Instances:
        record = self.records[index]
        image, orientation = read_image(record["file_name"])
        found = []
        for class_id in sorted(self.place.keys() & set(record["classes"])):
            mask = upright_mask(load_mask(record, class_id), image, orientation, record)
            if np.count_nonzero(mask == 1) >= max(self.min_pixels, 1):
                found.append(Segment(self.place[class_id], mask))
        sample = transform_sample(self.resize, image, np.zeros(image.shape[:2], np.uint8), found)
        masks = [torch.from_numpy(segment.mask) for segment in sample.segments]
        return Instances(
            sample.image,
            torch.stack(masks) if masks else sample.mask[None][:0],
            torch.tensor([segment.label for segment in sample.segments], dtype=torch.int64),
        )
