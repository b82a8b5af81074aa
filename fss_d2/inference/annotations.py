"""Supports as users give them: a picture, and a mask, boxes or scribbles that mark the object in it."""

import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps

from fss_d2.data.images import eight_bits, keep_tags, read_image, to_rgb
from fss_d2.data.mask_decoding import decode_mask
from fss_d2.data.mask_files import Frame, read_mask_file, to_upright
from fss_d2.data.mask_values import MaskRule
from fss_d2.data.masks import IGNORE, upright_mask
from fss_d2.data.pairs import class_folders, find_pairs, listed_files, say_left_out
from fss_d2.data.picture_files import pictures_in
from fss_d2.io.files import expand_user

__all__ = ["Annotation", "Box", "Boxes", "Picture", "Scribble"]
__all__ += ["find_supports", "read_annotation", "read_picture", "read_support", "support_pairs"]

_EXIF_ORIENTATION = 0x0112
# Width of a stroke in pixels: the least as in `fss_d2.data.masks`, the most that OpenCV draws.
_LEAST_WIDTH, _MOST_WIDTH = 3, 32767
# Pixels: strokes with points farther away are cut before OpenCV draws them; then, refused.
_MOST_REACH, _FARTHEST = 2**20, 1e9


@dataclass(frozen=True)
class Box:
    """A box in pixels, x to the right and y down; the upper left corner of the image is (0, 0).

    Every pixel that it touches is object, the rest is background; ``Box(0, 0, 1, 1)`` covers one pixel. An
    empty box, or a side that is not a finite number, raises ValueError.
    """

    x0: float
    y0: float
    x1: float
    y1: float

    def __post_init__(self) -> None:
        x0, y0, x1, y1 = sides = (self.x0, self.y0, self.x1, self.y1)
        if not all(isinstance(s, Real) and math.isfinite(s) for s in sides) or x0 >= x1 or y0 >= y1:
            raise ValueError(f"box {sides}: give x0 y0 x1 y1 in pixels, x0 below x1 and y0 below y1")

    def mask(self, height: int, width: int) -> np.ndarray:
        """(height, width) uint8, 1 in the box, 0 elsewhere."""
        drawn = np.zeros((height, width), np.uint8)
        drawn[self.pixels()] = 1
        return drawn

    def pixels(self) -> tuple[slice, slice]:
        """Rows and columns that the box touches; parts left of or above the image are cut off."""
        top, left = max(math.floor(self.y0), 0), max(math.floor(self.x0), 0)
        return slice(top, max(math.ceil(self.y1), 0)), slice(left, max(math.ceil(self.x1), 0))


@dataclass(frozen=True)
class Boxes:
    """One or more boxes of one class, each a `Box` or (x0, y0, x1, y1)."""

    boxes: Sequence[Box | Sequence[float]]

    def __post_init__(self) -> None:
        try:
            boxes = tuple(box if isinstance(box, Box) else Box(*box) for box in self.boxes)
        except TypeError as error:
            raise ValueError(f"boxes {self.boxes}: give a list with x0 y0 x1 y1 of each") from error
        if not boxes:
            raise ValueError("an annotation of no boxes: give at least one, or leave the image out")
        object.__setattr__(self, "boxes", boxes)

    def mask(self, height: int, width: int) -> np.ndarray:
        """(height, width) uint8, 1 in any of the boxes, 0 elsewhere."""
        drawn = np.zeros((height, width), np.uint8)
        for box in self.boxes:
            drawn[box.pixels()] = 1
        return drawn


@dataclass(frozen=True)
class Scribble:
    """Strokes on the object and, recommended, on the background; all other pixels become 255 (ignored).

    Attributes:
        strokes: on the object; each is a sequence of points (x, y) in pixels. A single one needs no list.
        background: strokes on the background, in the same form.
        width: stroke width in pixels; None takes 1/100 of the longer side of the image, at least 3.
    """

    strokes: Sequence[Sequence[Sequence[float]]] | Sequence[Sequence[float]]
    background: Sequence[Sequence[Sequence[float]]] | Sequence[Sequence[float]] = ()
    width: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "strokes", _strokes(self.strokes))
        object.__setattr__(self, "background", _strokes(self.background))
        fits = isinstance(self.width, Integral) and 1 <= self.width <= _MOST_WIDTH
        if not self.strokes or (self.width is not None and not fits):
            raise ValueError(
                f"a scribble of {len(self.strokes)} strokes, {self.width!r} pixels wide: give at least one, "
                f"and a whole number from 1 to {_MOST_WIDTH} as width"
            )

    def mask(self, height: int, width: int) -> np.ndarray:
        """(height, width) uint8: 1 on strokes on the object, 0 on those on the background, 255 elsewhere."""
        thickness = self.width or max(_LEAST_WIDTH, round(max(height, width) / 100))
        drawn = np.full((height, width), IGNORE, np.uint8)
        for value, strokes in ((0, self.background), (1, self.strokes)):
            for stroke in strokes:
                for points in _within_reach(np.array(stroke), height, width, thickness):
                    if len(points) == 1:  # a line of one point is not drawn
                        cv2.circle(drawn, points[0].tolist(), thickness // 2, value, thickness=-1)
                    else:
                        cv2.polylines(drawn, [points], False, value, thickness)
        return drawn


Picture = str | os.PathLike[str] | Image.Image | np.ndarray
Annotation = Picture | Box | Boxes | Scribble


def read_picture(picture: Picture, name: str = "image") -> tuple[np.ndarray, int]:
    """Read a picture upright, as evaluation reads its files (`fss_d2.data.images.read_image`).

    Args:
        picture: a path; a Pillow image of any mode; or an array (H, W), (H, W, 3) or (H, W, 4), uint8 or
            uint16, RGB. Transparent pixels are blended with white; more than 8 bits are reduced to 8
            (`fss_d2.data.images.eight_bits`).
        name: for error messages, unless the picture is a path.

    Returns:
        (H, W, 3) uint8 RGB, and the EXIF orientation that was undone (1: none).
    """
    if isinstance(picture, str | os.PathLike):
        return read_image(expand_user(picture))
    image = _decoded(picture, name)[0] if isinstance(picture, Image.Image) else _from_array(picture, name)
    if image.mode == "F" or not all(image.size):
        raise ValueError(f"{name} is {image.size[0]}x{image.size[1]}, mode {image.mode}: give 8-bit pixels")
    return np.ascontiguousarray(to_rgb(image, name)), 1


def read_annotation(
    annotation: Annotation,
    image: np.ndarray,
    *,
    orientation: int = 1,
    name: str = "mask",
    image_name: str = "",
    rule: MaskRule | None = None,
) -> np.ndarray:
    """Convert an annotation of a support image to a mask (H, W) uint8 in {0, 1, 255}.

    Args:
        annotation: one of
            a path or a Pillow image, whose values are recognised (`fss_d2.data.mask_decoding`): black and
            white, 0 and 1, with 255 for pixels to ignore, a cut-out;
            an array (H, W): bool, or integers 1 object, 0 background, 255 ignored;
            `Box`, `Boxes`, `Scribble`.
        image: (H, W, 3), upright.
        orientation: EXIF orientation of the stored image. A path or Pillow image with one of its own
            follows that, one without is in the frame, upright or stored, whose size it has. An array is
            upright, or of the stored size and rotated with the image.
        name: of the annotation, for error messages, unless it is a path.
        image_name: of the image, for error messages.
        rule: what the values of a path or Pillow image mean (`fss_d2.data.mask_values`); None recognises it.

    Raises:
        FileNotFoundError, ValueError: it does not exist, cannot be read, differs in size, or marks no object.
    """
    frame = Frame(image.shape[:2], orientation, image_name)
    if isinstance(annotation, str | os.PathLike):
        name = f"mask file {annotation}"
        mask = read_mask_file(expand_user(annotation), frame, rule)
    elif isinstance(annotation, Image.Image):
        mask = _mask_of(annotation, name, frame, rule)
    elif isinstance(annotation, np.ndarray):
        mask = _checked_mask(annotation, name, rule)
    elif isinstance(annotation, Box | Boxes | Scribble):
        mask = annotation.mask(*image.shape[:2])
    else:
        raise ValueError(
            f"{name} is a {type(annotation).__name__}: give a path, a Pillow image, an array (H, W), Box, "
            "Boxes or Scribble"
        )
    names = {"sem_seg_file_name": name.removeprefix("mask ").removeprefix("file "), "file_name": image_name}
    mask = upright_mask(mask, image, orientation, names)
    if not (mask == 1).any():
        only_ignored = (mask == IGNORE).any() and isinstance(annotation, np.ndarray)
        fix = "mark it with 1; 255 means ignored" if only_ignored else "mark it"
        raise ValueError(f"{name}: no pixel of the image shows the object; {fix}")
    return mask


def read_support(
    picture: Picture, annotation: Annotation, name: str, rule: MaskRule | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Read a support image (H, W, 3) uint8 RGB and its mask (H, W) uint8 in {0, 1, 255}, both upright.

    ``name`` is the support's, for error messages; ``rule`` and errors as in `read_annotation`.
    """
    pixels, orientation = read_picture(picture, f"image of {name}")
    image_name = str(picture) if isinstance(picture, str | os.PathLike) else f"of {name}"
    names = {"name": f"mask of {name}", "image_name": image_name, "rule": rule}
    return pixels, read_annotation(annotation, pixels, orientation=orientation, **names)


def support_pairs(
    images: Picture | Sequence[Picture], masks: Annotation | Sequence[Annotation], name: str
) -> list[tuple[Picture, Annotation]]:
    """Pair the images of class ``name`` with their annotations; a single one needs no list."""
    pictures = _as_list(images, (str, os.PathLike, Image.Image), 4)
    annotations = _as_list(masks, (str, os.PathLike, Image.Image, Box, Boxes, Scribble), 3)
    if not pictures or len(pictures) != len(annotations):
        raise ValueError(
            f"{name}: {len(pictures)} support images and {len(annotations)} masks; give at least one image, "
            "each with its mask"
        )
    return list(zip(pictures, annotations, strict=True))


def _as_list(given: Any, single: tuple[type, ...], stacked: int) -> list[Any]:
    """One item or several, as a list; an array of ``stacked`` dimensions contains several."""
    if isinstance(given, single) or (isinstance(given, np.ndarray) and given.ndim < stacked):
        return [given]
    if not isinstance(given, Sequence | np.ndarray):
        raise ValueError(f"support of type {type(given).__name__}: give one path or array, or a list of them")
    return list(given)


def _strokes(given: Sequence) -> tuple[tuple[tuple[float, float], ...], ...]:
    """One stroke or several, as a tuple of strokes; each point is (x, y)."""
    try:
        several = [given] if len(given) and np.ndim(given[0][0]) == 0 else given
        strokes = tuple(tuple((float(x), float(y)) for x, y in stroke) for stroke in several)
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise ValueError(f"a scribble's strokes are sequences of points (x, y): {error}") from error
    if not all(stroke and np.isfinite(stroke).all() for stroke in strokes):
        raise ValueError(
            "a scribble has a stroke without points, or a point that is not a finite number: remove it"
        )
    if any(np.abs(stroke).max() > _FARTHEST for stroke in strokes):
        raise ValueError(
            f"a scribble has a point more than {_FARTHEST:g} pixels away: give pixels of the image"
        )
    return strokes


def _within_reach(stroke: np.ndarray, height: int, width: int, thickness: int) -> list[np.ndarray]:
    """The pixels (N, 2) int32 of a stroke (N, 2), in several pieces if it has points that OpenCV cannot draw.

    Those are far outside of the image. Each step to or from one is cut where it comes near the image.
    """
    if (np.abs(stroke) < _MOST_REACH).all():
        return [np.floor(stroke).astype(np.int32)]
    margin = max(height, width) + thickness
    low, high = np.array([-margin, -margin]), np.array([width + margin, height + margin])
    if len(stroke) == 1:
        return []
    pieces = []
    for start, end in itertools.pairwise(stroke):
        piece = _cut(start, end, low, high)
        if piece is not None:
            pieces.append(np.floor(piece).astype(np.int32))
    return pieces


def _cut(start: np.ndarray, end: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray | None:
    """The part (2, 2) of a line within a box, by Liang and Barsky (1984); None if there is none."""
    step, first, last = end - start, 0.0, 1.0
    for axis in (0, 1):
        limits = low[axis] - start[axis], high[axis] - start[axis]
        if step[axis]:
            near, far = sorted(limit / step[axis] for limit in limits)
            first, last = max(first, near), min(last, far)
        elif limits[0] > 0 or limits[1] < 0:
            return None
    return np.stack([start + first * step, start + last * step]) if first <= last else None


def _decoded(image: Image.Image, name: str) -> tuple[Image.Image, bool]:
    """The image upright, with all its pixels read, and whether it says how it is stored."""
    try:
        has_orientation = image.getexif().get(_EXIF_ORIENTATION) in range(1, 9)
        keep_tags(image)
        if image.format == "TIFF":  # mapped into memory by its name, Pillow misreads it if it is turned
            image.filename = ""
        upright = ImageOps.exif_transpose(image)  # reads the pixels; Pillow opens files lazily
        upright.format = image.format
        return upright, has_orientation
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{name} cannot be read ({' '.join(str(error).split())}); replace it") from error


def _from_array(array: np.ndarray, name: str) -> Image.Image:
    """A Pillow image from an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8 or uint16."""
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{name} is a {type(array).__name__}: give a path, a Pillow image or an array")
    if array.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"{name} holds {array.dtype}: give uint8 (0 to 255) or uint16")
    array = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))) or not array.size:
        raise ValueError(
            f"{name} has shape {array.shape}: give (H, W), (H, W, 3) or (H, W, 4), channels last, RGB"
        )
    if array.ndim == 3 and array.dtype == np.uint16:
        array = eight_bits(array, name)
    return Image.fromarray(np.ascontiguousarray(array))


def _mask_of(image: Image.Image, name: str, frame: Frame, rule: MaskRule | None) -> np.ndarray:
    """(H, W) uint8, upright, of a mask that is a Pillow image."""
    decoded, has_orientation = _decoded(image, name)
    mask, _ = decode_mask(decoded, name, rule)
    return to_upright(mask, 1 if has_orientation else None, frame, name, rule)


def _checked_mask(array: np.ndarray, name: str, rule: MaskRule | None) -> np.ndarray:
    if array.ndim != 2:
        raise ValueError(f"{name} has shape {array.shape}: give (H, W), one mask for each image")
    if array.dtype.kind not in "bui":
        raise ValueError(f"{name} holds {array.dtype}: give bool, or integers 0, 1 and 255")
    if rule is not None and rule.names_object:
        return decode_mask(Image.fromarray(array.astype(np.int32)), name, rule)[0]
    odd = (array != 0) & (array != 1) & (array != IGNORE)
    if odd.any():
        raise ValueError(
            f"{name} has the value {array[odd][0]}: give bool, or 0 background, 1 object, 255 ignored"
        )
    return array.astype(np.uint8)


def find_supports(folder: Path, name: str = "object") -> dict[str, tuple[list[Path], list[Path]]]:
    """Find the images of one or several classes and their masks (`fss_d2.data.pairs.find_pairs`), by name.

    Args:
        folder: has a folder per class, or the files of one class.
        name: of the class if there are no class folders.

    Raises:
        FileNotFoundError, ValueError: no folder, no image, images next to class folders, or as `find_pairs`.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"support folder {folder} does not exist; give one with <class>/<name>.jpg")
    classes = class_folders(folder)
    here, left_out = pictures_in(folder)
    if classes and here:
        raise ValueError(
            f"{folder} has the image {here[0].name} next to the class folder {classes[0].name}: move all "
            "images into class folders, or all out of them"
        )
    if classes:
        say_left_out(folder, left_out, has_classes=True)
    found = {}
    for path in classes or [folder]:
        pairs = find_pairs(path)
        if not pairs:
            _, left_out = pictures_in(path)
            lost = f" that can be read, {listed_files(left_out)}" if left_out else ""
            fix = "add images with their masks, or give another folder"
            raise ValueError(f"{path} holds no image{lost}: {fix}")
        found[path.name if classes else name] = ([i for i, _ in pairs], [m for _, m in pairs])
    return found
