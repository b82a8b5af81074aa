"""What is known of a labelled image, as a file of its own: the journal that a run resumes from."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask

from fss_d2.files import write_atomic
from fss_d2.inference.prediction import Instance, Prediction

__all__ = ["ImageRecord", "Journal", "LabelledObject", "record_of"]


@dataclass(frozen=True)
class LabelledObject:
    """One connected object.

    Attributes:
        class_name: one of the supports' classes.
        counts: of COCO's compressed run-length encoding.
        area: pixels.
        bbox: x, y, width, height in pixels.
        score: mean probability of its class over its pixels.
    """

    class_name: str
    counts: str
    area: int
    bbox: tuple[int, int, int, int]
    score: float


@dataclass(frozen=True)
class ImageRecord:
    """The labels of one image, in its upright frame.

    Attributes:
        image: path relative to the folder of the images, with "/".
        height, width: pixels.
        confidence: see `record_of`.
        objects: none where nothing was found.
    """

    image: str
    height: int
    width: int
    confidence: float
    objects: tuple[LabelledObject, ...]

    def rle(self, item: LabelledObject) -> dict[str, Any]:
        """COCO's compressed RLE of an object, ready for JSON."""
        return {"size": [self.height, self.width], "counts": item.counts}

    def mask(self, item: LabelledObject) -> np.ndarray:
        """The mask (H, W) bool of an object."""
        return coco_mask.decode(self.rle(item)).astype(bool)

    def class_map(self, class_names: Sequence[str]) -> np.ndarray:
        """(H, W) uint8: 0 background, i + 1 the i-th class."""
        labels = np.zeros((self.height, self.width), np.uint8)
        for item in self.objects:
            labels[self.mask(item)] = class_names.index(item.class_name) + 1
        return labels

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes found, by name."""
        return tuple(sorted({item.class_name for item in self.objects}))


def record_of(image: str, prediction: Prediction, min_area: int | None) -> ImageRecord:
    """Keep what a prediction found.

    The confidence of a class is the mean of its probability over the pixels that were given to it; that of an
    image is its least sure class's. Where nothing is found (or nothing of ``min_area``), it is 1 minus the
    largest probability of any class anywhere, so that an image with a near miss asks for a look.

    Args:
        image: its name, see `ImageRecord`.
        min_area: pixels; smaller connected parts are background. None: see `Prediction.iter_instances`.
    """
    objects = []
    sums: dict[str, tuple[float, int]] = {}  # of each class: probability over its pixels, pixels
    for instance in prediction.iter_instances(min_area):
        objects.append(_labelled(instance))
        total, area = sums.get(instance.name, (0.0, 0))
        sums[instance.name] = total + instance.score * objects[-1].area, area + objects[-1].area
    sure = [total / area for total, area in sums.values()]
    confidence = min(sure) if sure else 1 - float(prediction.probability.max())
    height, width = prediction.labels.shape
    return ImageRecord(image, height, width, round(confidence, 6), tuple(objects))


def _labelled(instance: Instance) -> LabelledObject:
    rle = coco_mask.encode(np.asfortranarray(instance.mask, dtype=np.uint8))
    x, y, width, height = (int(v) for v in coco_mask.toBbox(rle))
    area = int(coco_mask.area(rle))
    counts = rle["counts"].decode("ascii")
    return LabelledObject(instance.name, counts, area, (x, y, width, height), round(instance.score, 6))


class Journal:
    """One JSON file for each finished image, in a folder that mirrors that of the images."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, record: ImageRecord, state: Sequence[int]) -> None:
        """Put an image down as finished, all or nothing.

        Args:
            state: of the image's file, by which `read` sees whether it was changed since.
        """
        content = {"state": list(state), **dataclasses.asdict(record)}
        write_atomic(self._file(record.image), (json.dumps(content, indent=1) + "\n").encode())

    def read(self, image: str, state: Sequence[int]) -> ImageRecord | None:
        """The record of an image, or None where it is not finished or the image's file was changed."""
        try:
            content = json.loads(self._file(image).read_bytes())
            return _parsed(content) if content["state"] == list(state) else None
        except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
            return None  # not there, or damaged: to be made anew

    def _file(self, image: str) -> Path:
        return self.folder / f"{image}.json"


def _parsed(content: Mapping[str, Any]) -> ImageRecord:
    objects = tuple(LabelledObject(**{**o, "bbox": tuple(o["bbox"])}) for o in content["objects"])
    fields = {k: content[k] for k in ("image", "height", "width", "confidence")}
    return ImageRecord(**fields, objects=objects)
