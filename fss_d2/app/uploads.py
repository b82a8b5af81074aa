"""Uploaded pictures: what is allowed, how they are read, and the mask of the object in each support."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image

from fss_d2.data.mask_values import UnclearMask
from fss_d2.inference.annotations import Box, read_annotation, read_picture

from .drawing import Point

__all__ = ["Filename", "Limits", "SupportList", "SupportPicture", "Upload"]
__all__ += ["check_upload", "free_name", "open_upload", "read_upload"]

Filename = str | os.PathLike[str]

# Formats that cameras and scanners write. Pillow knows more, and runs other programs for some of these.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
_MEGA = 1_000_000
_OPAQUE = 128  # least alpha of a painted pixel


@dataclass(frozen=True)
class Limits:
    """What one session may hold; all limits are above 0."""

    upload_mb: int = 20  # megabytes of one file
    pictures: int = 20  # that show objects, and as many to search
    megapixels: float = 24  # of one picture
    total_megapixels: float = 96  # of all pictures to search; their scores stay in memory
    classes: int = 8

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ValueError(f"limit {name} is {value}: give a number above 0")


@dataclass(frozen=True)
class Upload:
    """A picture (H, W, 3) uint8 RGB, upright, with its file name and the EXIF orientation that was undone."""

    name: str
    pixels: np.ndarray
    orientation: int = 1

    @property
    def megapixels(self) -> float:
        """Millions of pixels."""
        return self.pixels.shape[0] * self.pixels.shape[1] / _MEGA


def check_upload(path: Filename, limits: Limits) -> None:
    """Raise ValueError if a file is too large or not a picture, before its pixels are read.

    The message has the name of the file without its folder.
    """
    name = Path(path).name
    if os.path.getsize(path) > limits.upload_mb * _MEGA:
        raise ValueError(f"{name} has more than {limits.upload_mb} MB: make it smaller")
    with open_upload(path, limits, name):
        pass


@contextmanager
def open_upload(source: Filename | BinaryIO, limits: Limits, name: str) -> Iterator[Image.Image]:
    """Open a picture with an allowed format and size; its pixels are not read yet.

    Raises:
        ValueError: it is too large or not a picture, or the block cannot read it.
    """
    try:
        with Image.open(source, formats=_FORMATS) as image:
            width, height = image.size
            if width * height <= limits.megapixels * _MEGA:
                yield image
                return
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise ValueError(f"{name} is not a picture: give JPEG, PNG, WebP, TIFF, BMP or GIF") from None
    raise ValueError(f"{name} has {width}x{height} pixels: at most {limits.megapixels:g} million are allowed")


def read_upload(path: Filename, limits: Limits) -> Upload:
    """Read an uploaded picture; errors as `check_upload`."""
    check_upload(path, limits)
    pixels, orientation = read_picture(path)
    return Upload(Path(path).name, pixels, orientation)


def free_name(name: str, taken: set[str]) -> str:
    """The name, with a number before its ending if it is taken: "a.jpg", "a (2).jpg"."""
    stem, ending = os.path.splitext(name)
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{stem} ({number}){ending}"
    return free


@dataclass
class SupportPicture:
    """A picture with its class and, once it is marked, the mask (H, W) uint8 in {0, 1, 255}."""

    upload: Upload
    class_name: str = "object"
    mask: np.ndarray | None = None


class SupportList:
    """The pictures of objects in the order of their upload; one of them is open for marking.

    Input that cannot be used raises ValueError.

    Attributes:
        current: index of the open picture; None if there are no pictures.
        corner: (x, y) of the first corner of a box in the open picture, in its pixels.
        revision: a number that grows with every change of the supports of any class.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.revision = 0
        self.clear()

    def clear(self) -> None:
        """Remove all pictures."""
        self.pictures: list[SupportPicture] = []
        self.current: int | None = None
        self.corner: Point | None = None
        self.revision += 1

    def add(self, paths: Sequence[Filename], class_name: str = "object") -> None:
        """Add uploaded pictures and open the first of them; after an error, none is added."""
        if len(self.pictures) + len(paths) > self._limits.pictures:
            raise ValueError(f"at most {self._limits.pictures} pictures can show objects: remove some first")
        added = [SupportPicture(read_upload(path, self._limits), class_name) for path in paths]
        if added:
            self.pictures += added
            self.select(len(self.pictures) - len(added))

    def select(self, number: int) -> None:
        """Open the picture with an index."""
        if not 0 <= number < len(self.pictures):
            raise ValueError(f"there is no picture number {number + 1}: choose one of the gallery")
        self.current, self.corner = number, None

    def select_next(self) -> None:
        """Open the first picture that still has no mask, if there is one."""
        waiting = [i for i, picture in enumerate(self.pictures) if picture.mask is None]
        if waiting:
            self.select(waiting[0])

    @property
    def open(self) -> SupportPicture:
        """The picture that is open."""
        if self.current is None:
            raise ValueError("no picture of the object yet: add one first")
        return self.pictures[self.current]

    def remove(self) -> None:
        """Remove the open picture."""
        removed = self.open
        self.pictures = [picture for picture in self.pictures if picture is not removed]
        self.current = min(self.current or 0, len(self.pictures) - 1) if self.pictures else None
        self.corner = None
        self.revision += 1

    def name_class(self, class_name: str) -> None:
        """Name the object of the open picture."""
        name = class_name.strip()
        if not name or not name.isprintable():
            raise ValueError("the object has no name: type one, like dog")
        others = {p.class_name for p in self.pictures if p is not self.open and p.mask is not None}
        if len(others | {name}) > self._limits.classes:
            raise ValueError(f"at most {self._limits.classes} kinds of object: take one of {sorted(others)}")
        if name != self.open.class_name:
            self.open.class_name = name
            self.revision += self.open.mask is not None

    def paint(self, layers: Sequence[np.ndarray]) -> None:
        """Add painted pixels to the object of the open picture; unmarked pixels are background.

        Each layer (h, w, 4) uint8 has any size, and covers the whole picture.
        """
        height, width = self.open.upload.pixels.shape[:2]
        painted = np.zeros((height, width), bool)
        for layer in layers:
            alpha = np.ascontiguousarray(layer[:, :, 3])
            painted |= cv2.resize(alpha, (width, height), interpolation=cv2.INTER_NEAREST) >= _OPAQUE
        if not painted.any():
            raise ValueError("nothing is painted yet: draw over the object first")
        self._add(painted)

    def click(self, point: Point) -> None:
        """Set a corner (x, y) of a box in the open picture; the second corner completes the box."""
        if self.corner is None:
            self.corner = point
            return
        (x0, y0), (x1, y1) = self.corner, point
        self.corner = None
        self.add_box(Box(min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)))

    def add_box(self, box: Box) -> None:
        """Add a box to the object of the open picture."""
        self._add(self._read(box) == 1)

    def read_mask(self, path: Filename) -> None:
        """Read an uploaded mask of the open picture; it replaces all earlier marks."""
        check_upload(path, self._limits)
        self._set_mask(self._read(path))

    def unmark(self) -> None:
        """Remove the mask of the open picture."""
        self._set_mask(None)

    def classes(self) -> dict[str, tuple[list[np.ndarray], list[np.ndarray]]]:
        """Pictures and masks of each class; pictures without a mask are left out."""
        found: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {}
        for picture in self.pictures:
            if picture.mask is not None:
                pictures, masks = found.setdefault(picture.class_name, ([], []))
                pictures.append(picture.upload.pixels)
                masks.append(picture.mask)
        if not found:
            raise ValueError("no object is marked yet: add a picture and mark the object in it (step 1)")
        return found

    def _read(self, annotation: Box | Filename) -> np.ndarray:
        upload = self.open.upload
        names = {"name": f"box in {upload.name}", "image_name": upload.name}
        try:
            return read_annotation(annotation, upload.pixels, orientation=upload.orientation, **names)
        except UnclearMask as error:
            raise ValueError(error.in_files) from error

    def _add(self, marked: np.ndarray) -> None:
        """Mark pixels (H, W) bool of the open picture, in addition to earlier marks."""
        before = self.open.mask
        self._set_mask(np.where(marked, 1, 0 if before is None else before).astype(np.uint8))

    def _set_mask(self, mask: np.ndarray | None) -> None:
        self.open.mask, self.corner = mask, None
        self.revision += 1
