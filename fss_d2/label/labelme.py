"""LabelMe files (versions 4 to 6, also as X-AnyLabeling writes them): shapes are painted in their order."""

import base64
import io
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fss_d2.data.datasets.listed_pictures import PictureFinder, framed_as
from fss_d2.data.images import read_image
from fss_d2.data.masks import IGNORE, upright_mask
from fss_d2.data.outlines import checked_frame, checked_outline, disc, draw_outlines, is_empty, overhang
from fss_d2.io.files import printable, shortened

__all__ = ["LabelmePicture", "read_labelme"]

logger = logging.getLogger(__name__)

Frame = tuple[int, int]  # (height, width)
Content = Mapping[str, Any]
Notes = dict[str, list[str]]  # what is to be logged, by its kind

_IGNORE, _BACKGROUND = "__ignore__", "_background_"  # labels that LabelMe itself uses
_POLYGONS = {"polygon": None, "rotation": 4, "oriented_rectangle": 4, "quadrilateral": 4}  # and their corners
_NO_AREA = ("point", "points", "line", "linestrip", "mask", "circle", "rectangle")  # of so many points
_SLACK = 2  # pixels by which shapes of the right frame reach out of it, by rounding
_ERRORS = (ValueError, TypeError, KeyError, IndexError, OSError, SyntaxError, OverflowError)


@dataclass(frozen=True)
class LabelmePicture:
    """What one file annotates."""

    picture: Path
    image: np.ndarray  # (H, W, 3) uint8 RGB, upright
    masks: dict[str, np.ndarray]  # by label: (H, W) uint8, 1 object, 0 background, 255 ignored


def read_labelme(
    files: Sequence[tuple[Path, Content]], root: Path | None, option: str
) -> list[LabelmePicture]:
    """Read parsed LabelMe files, given as (path, content).

    Shapes are painted one after the other, as LabelMe's own export does: "_background_" makes background of
    what earlier shapes marked, and "__ignore__" makes it 255. Shapes of other classes erase nothing.

    Args:
        files: the files.
        root: folder that pictures are relative to; None searches near each file.
        option: the program's option for the root, for messages; "" if it has none.

    Raises:
        FileNotFoundError, ValueError: no picture, or a shape that cannot be drawn; names file and shape.
    """
    notes: Notes = {}
    checked = [(path, content, _checked_shapes(path, content)) for path, content in files]
    pictures = [
        _picture(path, content, PictureFinder(path, root, option), notes)
        for path, content, shapes in checked
        if any(shape["label"] not in (_IGNORE, _BACKGROUND) for shape in shapes)
    ]
    for first, *others in notes.values():
        more = f" ({len(others)} more like this)" if others else ""
        logger.info("%s", printable(first + more))
    return pictures


def _picture(path: Path, content: Content, finder: PictureFinder, notes: Notes) -> LabelmePicture:
    shapes, picture = content["shapes"], finder.require(content["imagePath"])
    image, orientation = read_image(picture)
    height, width = content.get("imageHeight"), content.get("imageWidth")
    upright = image.shape[:2]
    try:
        frame = checked_frame(height, width) if height and width else upright
        _, stored, remark = framed_as(picture, frame)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    other = upright if frame == stored else stored
    if other and not _fit(shapes, frame) and _fit(shapes, other):
        frame, size = other, f"{other[1]}x{other[0]}"
        remark = f"the shapes do not fit imageHeight and imageWidth; they are taken as drawn on {size} pixels"
    for kind, note in (("frame", remark and f"{path}: {remark}"), ("picture", finder.remark())):
        if note:
            notes.setdefault(kind, []).append(note)
    masks = _painted(path, shapes, frame, notes)
    names = {"sem_seg_file_name": path, "file_name": picture}
    upright_masks = {k: upright_mask(mask, image, orientation, names) for k, mask in masks.items()}
    return LabelmePicture(picture, image, upright_masks)


def _checked_shapes(path: Path, content: Content) -> list[Content]:
    shapes = content.get("shapes")
    if not isinstance(shapes, list) or not isinstance(content.get("imagePath"), str):
        raise ValueError(f"{path} is not in LabelMe's format: it needs a list 'shapes' and an 'imagePath'")
    for number, shape in enumerate(shapes):
        if not isinstance(shape, dict) or not {"label", "points"} <= shape.keys():
            raise ValueError(f"{path}: shapes[{number}] has no 'label' or no 'points'; add it")
        if not isinstance(shape["label"], str) or not shape["label"].strip():
            label = shortened(shape["label"])
            raise ValueError(f"{path}: shapes[{number}] has the label {label!r}; give the name of its class")
    return shapes


def _fit(shapes: Sequence[Content], frame: Frame) -> bool:
    """Whether all shapes can be drawn in a frame and lie within it."""
    try:
        return all(_region(shape, frame)[1] <= _SLACK for shape in shapes)
    except _ERRORS:
        return False


def _painted(path: Path, shapes: Sequence[Content], frame: Frame, notes: Notes) -> dict[str, np.ndarray]:
    """The mask (H, W) uint8 of each label that marks an object."""
    labels = sorted({shape["label"] for shape in shapes} - {_IGNORE, _BACKGROUND})
    masks = {label: np.zeros(frame, np.uint8) for label in labels}
    for number, shape in enumerate(shapes):
        label = shape["label"]
        where = f"{path}: shapes[{number}] ({shortened(label)})"
        try:
            region, reach = _region(shape, frame)
        except _ERRORS as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{where} cannot be drawn: {reason}") from error
        if reach > _SLACK:
            notes.setdefault("cut", []).append(f"{where} reaches out of its picture and is cut at the border")
        if label in masks:
            masks[label][region] = 1
        else:
            for mask in masks.values():
                mask[region] = IGNORE if label == _IGNORE else 0
    for label, mask in masks.items():
        if not (mask == 1).any():
            cover = f"later shapes {_BACKGROUND} or {_IGNORE} cover all of {shortened(label)!r}"
            raise ValueError(f"{path}: {cover}; change the order of the shapes")
    return masks


def _region(shape: Content, frame: Frame) -> tuple[np.ndarray, float]:
    """The pixels (H, W) bool of a shape, and by how many pixels it reaches out of the frame."""
    kind = shape.get("shape_type") or "polygon"
    points = _corners(shape["points"])
    if not isinstance(kind, str):
        raise ValueError(f"the shape_type is {shortened(kind)}; give its name")
    if kind == "mask" and len(points) == 2:
        return _pasted(shape.get("mask"), points, frame)
    if kind == "circle" and len(points) == 2:
        (x, y), (end_x, end_y) = points
        radius = math.hypot(end_x - x, end_y - y)
        over = max(radius - x, radius - y, x + radius - frame[1], y + radius - frame[0], 0.0)
        return disc((x, y), radius, frame), over
    if kind == "rectangle" and len(points) in (2, 4):
        points = _rectangle(points)
    elif (
        kind in _NO_AREA or kind in ("mask", "circle", "rectangle") or (kind == "polygon" and len(points) < 3)
    ):
        raise ValueError(f"a {kind} of {len(points)} points has no area; draw a polygon")
    elif kind not in _POLYGONS:
        raise ValueError(f"the shape_type {shortened(kind)!r} is not known; draw a polygon")
    elif _POLYGONS[kind] not in (None, len(points)):
        raise ValueError(f"a {kind} has {_POLYGONS[kind]} points, not {len(points)}; draw it again")
    outline = checked_outline([[value for point in points for value in point]], frame)
    if is_empty(outline):
        raise ValueError(f"its {kind} has no area; draw it again")
    return draw_outlines([outline], frame) > 0, overhang(outline, frame)


def _corners(points: Any) -> list[tuple[float, float]]:
    if not isinstance(points, list):
        raise ValueError(f"its points are {shortened(points)}; give [[x, y], ...]")
    corners = []
    for number, point in enumerate(points):
        pair = [point.get("x"), point.get("y")] if isinstance(point, dict) else point
        numbers = pair if isinstance(pair, list) and len(pair) == 2 else [None]
        if any(
            isinstance(v, bool) or not isinstance(v, int | float) or not math.isfinite(v) for v in numbers
        ):
            raise ValueError(f"points[{number}] is {shortened(point)}; give [x, y] in pixels")
        corners.append((numbers[0], numbers[1]))
    return corners


def _rectangle(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The four corners, in their order round the rectangle; a turned one is kept as it is given."""
    if len(points) == 4 and len({x for x, _ in points}) > 2:
        return list(points)
    (x0, x1), (y0, y1) = ((min(v), max(v)) for v in zip(*points, strict=True))
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def _pasted(encoded: Any, corners: Sequence[tuple[float, float]], frame: Frame) -> tuple[np.ndarray, float]:
    """A mask of base64 PNG between two corners, of which the first is its first pixel."""
    try:
        image = Image.open(io.BytesIO(base64.b64decode(encoded, validate=True)))
    except _ERRORS as error:
        raise ValueError("its mask is not a picture in base64; draw it again") from error
    (x0, y0), (x1, y1) = corners
    left, top = math.floor(x0), math.floor(y0)
    with image:
        width, height = image.size
        across, down = math.floor(x1) - left + 1, math.floor(y1) - top + 1
        if abs(across - width) > 1 or abs(down - height) > 1:
            raise ValueError(f"its mask is {width}x{height} pixels, but its points span {across}x{down}")
        if image.mode not in ("1", "L"):
            raise ValueError(f"its mask is a {image.mode} image; save it in black and white")
        right, bottom = min(left + width, frame[1]), min(top + height, frame[0])
        if right <= max(left, 0) or bottom <= max(top, 0):
            raise ValueError(f"it lies outside the picture ({frame[1]}x{frame[0]} pixels)")
        if width * height > 4 * frame[0] * frame[1]:
            raise ValueError(f"its mask of {width}x{height} pixels is larger than its picture")
        part = np.asarray(image) > 0  # (h, w)
    region = np.zeros(frame, bool)
    inside = part[max(-top, 0) : bottom - top, max(-left, 0) : right - left]
    region[max(top, 0) : bottom, max(left, 0) : right] = inside
    if not region.any():
        raise ValueError("its mask marks no pixel of the picture; draw it again")
    return region, float(max(-left, -top, left + width - frame[1], top + height - frame[0], 0))
