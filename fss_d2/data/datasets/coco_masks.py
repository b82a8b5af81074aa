"""Masks of COCO images: flattened class maps, and one RLE per class that keeps overlaps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from pycocotools import mask as rle

from .coco20i import CATEGORY_IDS, CLASS_NAMES

__all__ = ["ImageTask", "draw_class_map", "index_row"]

_MIN_POLYGON = 6  # numbers: three corners


class ImageTask(NamedTuple):
    """One image's entry of the instances JSON, its annotations in file order, and a class map to write."""

    image: Mapping[str, Any]
    annotations: Sequence[Mapping[str, Any]]
    class_map: Path | None = None


def draw_class_map(
    height: int, width: int, annotations: Sequence[Mapping[str, Any]], where: str = ""
) -> np.ndarray:
    """Flatten annotations into one (height, width) uint8 map: 0 background, class id + 1.

    Later annotations overwrite earlier ones, crowd regions are left out, and polygons are filled by
    OpenCV, border included, with their corners truncated to whole pixels. With the 2048-pixel rule
    this gives the membership in HSNet's published lists on every photograph of the sample it was
    found on; pycocotools' thinner rendering does not (datasets/README.md).
    """
    canvas = np.zeros((height, width), dtype=np.uint8)
    for annotation in annotations:
        if annotation.get("iscrowd"):
            continue
        value = CATEGORY_IDS[annotation["category_id"]] + 1
        shape = annotation["segmentation"]
        if isinstance(shape, list):
            for polygon in _polygons(shape):
                cv2.fillPoly(canvas, [np.asarray(polygon).reshape(-1, 2).astype(np.int32)], value)
        else:
            canvas[rle.decode(_to_rle(annotation, height, width, where)) > 0] = value
    return canvas


def index_row(task: ImageTask) -> dict[str, Any]:
    """Summarise one image: per class the union of its objects (RLE, pixels), crowd regions apart.

    ``area`` counts the union, ``flat_area`` what the flattened class map leaves of it.

    Raises:
        ValueError: an annotation cannot be read; the message names its id.
    """
    image = task.image
    height, width = image["height"], image["width"]
    regions: tuple[dict[int, list[Any]], dict[int, list[Any]]] = ({}, {})  # objects, crowds
    for annotation in task.annotations:
        class_id = CATEGORY_IDS[annotation["category_id"]]
        mask = _to_rle(annotation, height, width, image["file_name"])
        regions[bool(annotation.get("iscrowd"))].setdefault(class_id, []).append(mask)
    flat = draw_class_map(height, width, task.annotations, image["file_name"])
    pixels = np.bincount(flat.ravel(), minlength=len(CLASS_NAMES) + 1)
    objects = [
        _region(c, masks) | {"flat_area": int(pixels[c + 1])} for c, masks in sorted(regions[0].items())
    ]
    crowds = [_region(c, masks) for c, masks in sorted(regions[1].items())]
    return {
        "image_id": image["id"],
        "file_name": image["file_name"],
        "height": height,
        "width": width,
        "objects": objects,
        "crowds": crowds,
    }


def _region(class_id: int, masks: list[Any]) -> dict[str, Any]:
    union = rle.merge(masks)
    return {"class": class_id, "area": int(rle.area(union)), "rle": union["counts"].decode("ascii")}


def _polygons(shape: Sequence[Sequence[float]]) -> list[Sequence[float]]:
    return [p for p in shape if len(p) >= _MIN_POLYGON and len(p) % 2 == 0]


def _to_rle(annotation: Mapping[str, Any], height: int, width: int, where: str) -> Any:
    """Compressed RLE of one annotation: the union of its polygons, or its RLE, compressed if it is not."""
    shape = annotation["segmentation"]
    try:
        if isinstance(shape, list):
            polygons = _polygons(shape) or [[0.0] * _MIN_POLYGON]  # no polygon at all: an empty mask
            return rle.merge(rle.frPyObjects(polygons, height, width))
        if list(shape["size"]) != [height, width]:
            raise ValueError(f"its size is {shape['size']}, the image's {[height, width]}")
        return rle.frPyObjects(shape, height, width) if isinstance(shape["counts"], list) else shape
    except (KeyError, TypeError, ValueError, IndexError) as error:
        name = f"{where}: annotation {annotation['id']}"
        raise ValueError(f"{name} has neither polygons nor an RLE of the image's size: {error}") from error
