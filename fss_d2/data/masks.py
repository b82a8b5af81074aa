"""Read the image of a dataset dict and the mask of one class: 1 object, 0 rest, 255 ignored."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
from PIL import Image

from .images import open_image, orient, read_image

__all__ = [
    "IGNORE",
    "binary_mask",
    "check_shows",
    "class_of_map",
    "load_mask",
    "load_sample",
    "mask_source",
    "read_class_map",
    "upright_mask",
]

IGNORE = 255


def load_sample(record: Mapping[str, Any], class_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Read a dataset dict's image and its mask of one class, both upright.

    A mask of the size of the stored image, before its EXIF orientation is applied, is rotated with it; a
    mask that already has the upright size is taken as upright.

    Returns:
        Image (H, W, 3) uint8 RGB; mask (H, W) uint8 in {0, 1, 255}.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is broken, the sizes differ, or no pixel shows the class; names the file.
    """
    image, orientation = read_image(record["file_name"])
    mask = upright_mask(load_mask(record, class_id), image, orientation, record)
    check_shows(mask, record, class_id)
    return image, mask


def upright_mask(
    mask: np.ndarray, image: np.ndarray, orientation: int, record: Mapping[str, Any]
) -> np.ndarray:
    """Rotate a stored mask as its image (H, W, 3) was rotated, unless it already has the upright size.

    Raises:
        ValueError: neither the stored nor the rotated mask has the image's size; names the file.
    """
    if mask.shape != image.shape[:2]:
        rotated = orient(mask, orientation)
        if rotated.shape != image.shape[:2]:
            raise ValueError(
                f"{mask_source(record)}: the mask is {_size(mask)} pixels but its image "
                f"{record['file_name']} is {_size(image)}; make the two sizes equal"
            )
        mask = rotated
    return np.ascontiguousarray(mask)


def check_shows(mask: np.ndarray, record: Mapping[str, Any], class_id: int) -> None:
    """Raise ValueError, naming the file, if no pixel of the mask shows the class."""
    if not (mask == 1).any():
        raise ValueError(
            f"{mask_source(record)}: no pixel shows class {class_id}; "
            f"fix the mask or remove the class from image {record['image_id']!r}"
        )


def load_mask(record: Mapping[str, Any], class_id: int) -> np.ndarray:
    """Return the mask of one class as (H, W) uint8 in {0, 1, 255}, as stored (not upright yet).

    Raises:
        FileNotFoundError: the mask file is missing.
        ValueError: the mask is broken or does not follow its encoding; names the file.
    """
    if "annotations" in record:
        return _annotation_mask(record, class_id)
    path = record.get("sem_seg_file_name")
    if path is None:
        raise ValueError(
            f"image {record['file_name']} has neither sem_seg_file_name nor annotations: add one of them"
        )
    encoding = record.get("mask_encoding", "class_map")
    if encoding == "class_map":
        return class_of_map(read_class_map(path), class_id)
    pixels, _ = open_image(path, "mask")
    if encoding == "binary":
        return binary_mask(pixels).astype(np.uint8)
    if encoding == "trimap":
        values = _single_channel(pixels, path)
        odd = np.setdiff1d(np.unique(values), [0, 1, IGNORE])
        if odd.size:
            raise ValueError(f"mask file {path} has the value {odd[0]}; a trimap holds 0, 1 and 255 only")
        return values.astype(np.uint8)
    raise ValueError(f"{path}: unknown mask_encoding {encoding!r}; use class_map, binary or trimap")


def read_class_map(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a class map (H, W): 0 background, class id + 1, 255 ignored.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read or has several channels.
    """
    return _single_channel(open_image(path, "mask")[0], path)


def class_of_map(values: np.ndarray, class_id: int) -> np.ndarray:
    """Return the mask (H, W) uint8 in {0, 1, 255} of one class of a class map."""
    return np.select([values == class_id + 1, values == IGNORE], [1, IGNORE], 0).astype(np.uint8)


def mask_source(record: Mapping[str, Any]) -> str:
    """Name the file that a record's mask comes from, for messages."""
    if "annotations" in record:
        return f"annotations of {record['file_name']}"
    return f"mask file {record.get('sem_seg_file_name')}"


def binary_mask(image: Image.Image) -> np.ndarray:
    """Return the foreground (H, W) bool of a black-and-white mask in any Pillow mode.

    Foreground reaches half of the format's largest value (128 of 8 bits, 32768 of 16); in a file without
    such values, half of its own largest value, so that masks of 0 and 1 work. A colour counts by its
    strongest channel, transparent pixels are background, and masks drawn in the alpha channel alone or with
    palette entries of one colour are understood.
    """
    if image.mode == "1":
        return np.array(image)
    if image.mode in ("L", "F") or image.mode.startswith("I"):
        levels = np.asarray(image)
    else:
        levels = _strongest_channel(image)
    half = 32768 if image.mode.startswith("I") else 128
    top = levels.max()
    return levels >= half if top >= half else (levels > 0) & (2 * levels.astype(np.float64) >= top)


def _strongest_channel(image: Image.Image) -> np.ndarray:
    rgba = np.asarray(image.convert("RGBA"))
    color, alpha = rgba[..., :3].max(axis=2), rgba[..., 3]
    if color.min() < color.max():
        return np.where(alpha >= 128, color, 0)
    if alpha.min() < alpha.max():
        return alpha
    return np.asarray(image) if image.mode == "P" else color


def _single_channel(image: Image.Image, path: str | os.PathLike[str]) -> np.ndarray:
    values = np.asarray(image)  # of a palette image: the palette indices
    if values.ndim == 2 and image.mode != "F":
        return values
    if values.ndim == 3 and image.mode != "LA" and (values[..., :3] == values[..., :1]).all():
        return values[..., 0]
    if image.mode == "LA":
        return values[..., 0]
    raise ValueError(f"mask file {path} is a {image.mode} image; save the class numbers in a single channel")


def _annotation_mask(record: Mapping[str, Any], class_id: int) -> np.ndarray:
    """Return the union of the class's objects; its crowd regions without an object are 255."""
    shape = (record["height"], record["width"])
    mine = [a for a in record["annotations"] if a["category_id"] == class_id]
    objects = [a["segmentation"] for a in mine if not a.get("iscrowd", 0)]
    crowds = [a["segmentation"] for a in mine if a.get("iscrowd", 0)]
    try:
        mask = _union(crowds, shape) * np.uint8(IGNORE)
        mask[_union(objects, shape) > 0] = 1
    except (TypeError, ValueError, KeyError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{mask_source(record)}: class {class_id} cannot be drawn ({reason})") from error
    return mask


def _union(segmentations: Iterable[Any], shape: tuple[int, int]) -> np.ndarray:
    """Rasterise polygons and RLEs into one mask (H, W) uint8 in {0, 1}."""
    rles: list[Any] = []
    vertices: list[np.ndarray] = []
    for segmentation in segmentations:
        if isinstance(segmentation, Mapping):
            if list(segmentation["size"]) != list(shape):
                raise ValueError(f"RLE of size {segmentation['size']}, the image is {list(shape)}")
            compressed = isinstance(segmentation["counts"], (str, bytes))
            rles.append(segmentation if compressed else coco_mask.frPyObjects(segmentation, *shape))
        else:
            vertices += [np.asarray(p, dtype=np.float64).reshape(-1, 2) for p in segmentation]
            polygons = [p for p in segmentation if len(p) >= 6]
            rles += coco_mask.frPyObjects(polygons, *shape) if polygons else []
    union = coco_mask.decode(coco_mask.merge(rles)) if rles else np.zeros(shape, np.uint8)
    if vertices and not union.any():  # too thin for the rasteriser: the pixels under its corners
        x, y = np.concatenate(vertices).astype(int).T
        union[np.clip(y, 0, shape[0] - 1), np.clip(x, 0, shape[1] - 1)] = 1
    return union


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"
