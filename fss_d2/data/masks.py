"""Masks of one class, (H, W) uint8 (1 object, 0 rest, 255 ignored): read, or reduced to boxes and strokes."""

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from detectron2.config import CfgNode
from PIL import Image

from .images import decode_file, image_header, open_image, orient, read_image
from .mask_files import Frame, read_mask_file, to_upright
from .mask_values import parse_mask_values
from .outlines import checked_frame, checked_outline, draw_outlines

__all__ = [
    "ANNOTATIONS",
    "IGNORE",
    "annotate",
    "binary_mask",
    "boxes_of",
    "check_shows",
    "class_map_of",
    "class_of_map",
    "components",
    "load_mask",
    "load_sample",
    "mask_source",
    "read_class_map",
    "scribble_of",
    "shows_class",
    "support_annotation",
    "upright_mask",
]

ReadImage = Callable[[str], tuple[np.ndarray, int]]  # as `read_image`

IGNORE = 255
_LARGE = 2**26  # pixels from which on a frame is compared with the file before masks of its size are made
ANNOTATIONS = ("mask", "box", "scribble")  # of supports


def load_sample(
    record: Mapping[str, Any], class_id: int, read: ReadImage = read_image, *, must_show: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Read a dataset dict's image (H, W, 3) uint8 RGB and its mask of one class, both upright.

    ``read`` may leave the pixels out, see `fss_d2.data.samples.blank_image`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is broken, the sizes differ, or no pixel shows a class that it must show; names the
            file.
    """
    image, orientation = read(record["file_name"])
    mask = upright_mask(load_mask(record, class_id), image, orientation, record)
    if must_show:
        check_shows(mask, record, class_id)
    return image, mask


def upright_mask(
    mask: np.ndarray, image: np.ndarray, orientation: int, record: Mapping[str, Any]
) -> np.ndarray:
    """Rotate a stored mask by the EXIF orientation of its image, unless it already has the upright size."""
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


def shows_class(record: Mapping[str, Any], class_id: int) -> bool:
    """Whether an image shows a class at all, also where it is too small to be one of its "classes"."""
    if class_id in record["classes"] or class_id in record.get("query_classes", ()):
        return True
    if "annotations" in record:
        return any(annotation["category_id"] == class_id for annotation in record["annotations"])
    if record.get("mask_encoding", "class_map") == "class_map":
        return bool((load_mask(record, class_id) == 1).any())
    return False


def load_mask(record: Mapping[str, Any], class_id: int) -> np.ndarray:
    """Return the mask of one class; errors as `load_sample`.

    Class maps and those of "threshold" are as stored (not upright yet), the others upright.
    """
    if "annotations" in record:
        return _annotation_mask(record, class_id)
    path = record.get("sem_seg_file_name")
    if path is None:
        fault = f"image {record['file_name']} has neither sem_seg_file_name nor annotations: add one of them"
        raise ValueError(fault)
    encoding = record.get("mask_encoding", "class_map")
    if encoding == "class_map":
        return class_of_map(class_map_of(record), class_id)
    if encoding == "threshold":
        return binary_mask(open_image(path, "mask")[0]).astype(np.uint8)
    if encoding not in ("binary", "trimap"):
        fault = f"unknown mask_encoding {encoding!r}; use class_map, binary, trimap or threshold"
        raise ValueError(f"{path}: {fault}")
    frame = Frame.of_file(record["file_name"])
    rule = parse_mask_values(record.get("mask_values")).of()
    if encoding == "binary":
        return read_mask_file(path, frame, rule)
    image, own = decode_file(path, "mask")
    values = _single_channel(image, path)
    odd = np.setdiff1d(np.unique(values), [0, 1, IGNORE])
    if odd.size:
        raise ValueError(f"mask file {path} has the value {odd[0]}; a trimap holds 0, 1 and 255 only")
    return to_upright(values.astype(np.uint8), own, frame, f"mask file {path}", rule)


def class_map_of(record: Mapping[str, Any]) -> np.ndarray:
    """Read a record's class map (H, W): 0 background, class id + 1, 255 ignored; errors as `load_sample`.

    The record's "map_classes" are the class ids of the values 1, 2, ... of the file, if they are others.
    """
    values = read_class_map(record["sem_seg_file_name"])
    if "map_classes" not in record:
        return values
    table = np.full(IGNORE + 1, IGNORE, np.uint8)
    table[0], table[1 : len(record["map_classes"]) + 1] = 0, np.add(record["map_classes"], 1)
    return table[values]


def read_class_map(path: str | os.PathLike[str]) -> np.ndarray:
    """Read the values (H, W) of a class map as they are stored; errors as `load_sample`."""
    return _single_channel(open_image(path, "mask")[0], path)


def class_of_map(values: np.ndarray, class_id: int) -> np.ndarray:
    """Return the mask of one class of a class map."""
    return np.select([values == class_id + 1, values == IGNORE], [1, IGNORE], 0).astype(np.uint8)


def mask_source(record: Mapping[str, Any]) -> str:
    """Name the file that a record's mask comes from, for messages."""
    if "annotations" in record:
        return f"annotations of {record['file_name']}"
    return f"mask file {record.get('sem_seg_file_name')}"


def binary_mask(image: Image.Image) -> np.ndarray:
    """Return the foreground (H, W) bool of a published black-and-white mask in any Pillow mode.

    For data sets whose masks are known to be black and white (FSS-1000), whatever their levels;
    `fss_d2.data.mask_files` reads masks of users.

    Foreground reaches half of the format's largest value (128 of 8 bits, 32768 of 16); in a file without
    such values, half of its own largest value, so that masks of 0 and 1 work. A colour counts by its
    strongest channel, transparent pixels are background, and masks drawn in the alpha channel alone or with
    palette entries of one colour are understood.
    """
    if image.mode == "1":
        return np.array(image)
    is_grey = image.mode in ("L", "F") or image.mode.startswith("I")
    levels = np.asarray(image) if is_grey else _strongest_channel(image)
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
    if values.ndim == 3 and (image.mode == "LA" or (values[..., :3] == values[..., :1]).all()):
        return values[..., 0]
    raise ValueError(f"mask file {path} is a {image.mode} image; save the class numbers in a single channel")


def _annotation_mask(record: Mapping[str, Any], class_id: int) -> np.ndarray:
    """Return the union of the class's objects; its crowd regions without an object are 255."""
    mine = [a for a in record["annotations"] if a["category_id"] == class_id]
    try:
        frame = _annotated_frame(record)
        outlines = [_outline_of(annotation, frame) for annotation in mine]
        crowds = [bool(annotation.get("iscrowd", 0)) for annotation in mine]
    except (TypeError, ValueError, KeyError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{mask_source(record)}: class {class_id} cannot be drawn ({reason})") from error
    objects = [outline for outline, is_crowd in zip(outlines, crowds, strict=True) if not is_crowd]
    mask = draw_outlines(objects, frame)
    if any(crowds):
        ignored = draw_outlines(itertools.compress(outlines, crowds), frame)
        mask[(ignored > 0) & (mask == 0)] = IGNORE
    return mask


def _annotated_frame(record: Mapping[str, Any]) -> tuple[int, int]:
    """Return the (height, width) that a record gives; one of a large picture must be that of its file."""
    frame = checked_frame(record["height"], record["width"])
    if frame[0] * frame[1] > _LARGE:
        stored, _ = image_header(record["file_name"])
        if sorted(stored) != sorted(frame):
            raise ValueError(f"the picture is {stored[1]}x{stored[0]}, not {frame[1]}x{frame[0]} pixels")
    return frame


def _outline_of(annotation: Mapping[str, Any], frame: tuple[int, int]) -> Any:
    try:
        return checked_outline(annotation["segmentation"], frame)
    except ValueError as error:
        if "id" not in annotation:
            raise
        raise ValueError(f"annotation {annotation['id']}: {error}") from error


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"


Seed = int | Sequence[int]  # of numpy's default generator

# Uniform ranges of a stroke: its length over the longer side of the component's box, its width over the
# square root of the component's area.
_LENGTH = (0.4, 0.8)
_WIDTH = (0.02, 0.05)
_LEAST_WIDTH = 3  # pixels, so that the stroke survives the resize to the network's size
_CORNERS = 8  # of the line, at most
_DEPTH = 0.8  # least distance of a corner from the edge, over that of the deepest pixel in its column
_SMALL = 0.1  # components with less than this share of the largest area get no stroke


def boxes_of(mask: np.ndarray) -> np.ndarray:
    """Fill the exact box of each 8-connected component of the object with 1; the rest is unchanged."""
    boxed = mask.copy()
    for box, _ in components(mask == 1):
        boxed[box] = 1
    return boxed


def scribble_of(mask: np.ndarray, seed: Seed) -> np.ndarray:
    """Replace the mask by hand-like strokes: one per large component of the object, one in the background.

    A stroke follows the middle of its component along a random part of the longer side, slightly unsteady and
    never outside the component. Every object gets a stroke of at least a pixel; a mask without any 0 gets no
    background stroke. The rest is 255.
    """
    rng, scribble = np.random.default_rng(seed), np.full_like(mask, IGNORE)
    objects, background = components(mask == 1), components(mask == 0)
    for box, component in objects:
        if np.count_nonzero(component) >= _SMALL * np.count_nonzero(objects[0][1]):
            scribble[box][_stroke(component, rng)] = 1
    for box, component in background[:1]:
        scribble[box][_stroke(component, rng)] = 0
    return scribble


def annotate(mask: np.ndarray, kind: str, seed: Seed) -> np.ndarray:
    """Reduce a mask to a kind of `ANNOTATIONS`; the seed is for scribbles."""
    _check(kind, "SUPPORT_ANNOTATION")
    if kind == "mask":
        return mask
    return boxes_of(mask) if kind == "box" else scribble_of(mask, seed)


def support_annotation(cfg: CfgNode, is_train: bool) -> str:
    """Return FEW_SHOT.TRAIN or .TEST.SUPPORT_ANNOTATION; ValueError if either is unknown."""
    kinds = {name: cfg.FEW_SHOT[name].SUPPORT_ANNOTATION for name in ("TRAIN", "TEST")}
    for name, kind in kinds.items():
        _check(kind, f"FEW_SHOT.{name}.SUPPORT_ANNOTATION")
    return kinds["TRAIN" if is_train else "TEST"]


def _check(kind: str, key: str) -> None:
    if kind not in ANNOTATIONS:
        raise ValueError(f"unknown {key} {kind!r}; choose one of {', '.join(ANNOTATIONS)}")


def components(region: np.ndarray) -> list[tuple[tuple[slice, slice], np.ndarray]]:
    """Return the box and the pixels (h, w) bool of each 8-connected component, the largest first."""
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(region.astype(np.uint8), connectivity=8)
    found = []
    for label in 1 + np.argsort(-statistics[1:, cv2.CC_STAT_AREA], kind="stable"):
        left, top, width, height, _ = statistics[label]
        box = slice(top, top + height), slice(left, left + width)
        found.append((box, labels[box] == label))
    return found


def _stroke(component: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a line of at least one pixel inside a component (h, w) bool; return its pixels (h, w) bool."""
    height, width = component.shape
    if height > width:
        return _stroke(component.T, rng).T
    length = rng.uniform(*_LENGTH) * (width - 1)
    start = rng.uniform(0, width - 1 - length)
    x = np.unique(np.linspace(start, start + length, _CORNERS).astype(int))
    # A connected component has a pixel in every column of its box. The box's edge counts as the component's.
    depth = cv2.distanceTransform(np.pad(component, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)[1:-1]
    deep = [np.flatnonzero(column >= _DEPTH * column.max()) for column in depth[:, 1:-1].T[x]]
    y = np.array([rng.choice(rows) for rows in deep])
    stroke = np.zeros(component.shape, np.uint8)
    thickness = max(round(rng.uniform(*_WIDTH) * np.count_nonzero(component) ** 0.5), _LEAST_WIDTH)
    cv2.polylines(stroke, [np.stack([x, y], axis=1).astype(np.int32)], False, 1, thickness)
    stroke[y, x] = 1  # polylines draws nothing for a single corner
    return (stroke == 1) & component
