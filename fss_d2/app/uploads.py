"""Uploaded pictures: what is allowed, how they are read, and the mask of the object in each support."""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from fss_d2.data.images import unreadable
from fss_d2.data.mask_values import MaskRule, UnclearMask, parse_mask_values
from fss_d2.inference.annotations import Box, read_annotation, read_picture

from .drawing import Point, painted_pixels

__all__ = ["LONGEST_NAME", "MEGA", "Filename", "Limits", "SupportList", "SupportPicture", "Upload"]
__all__ += ["check_total", "check_upload", "free_name", "open_upload", "read_upload"]

Filename = str | os.PathLike[str]

# Formats that cameras and scanners write. Pillow knows more, and runs other programs for some of these.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
MEGA = 1_000_000
LONGEST_NAME = 60  # of a class
_TILE = (322, 323)  # tags of TIFF: width and length of a tile
# A scan of a JPEG file may be a few bytes, and each goes over the whole picture. Encoders write about ten.
_SCAN, _MOST_SCANS = b"\xff\xda", 200


@dataclass(frozen=True)
class Limits:
    """What one session may hold; all limits are above 0."""

    upload_mb: int = 20  # megabytes of one file
    pictures: int = 20  # that show objects, and as many to search
    megapixels: float = 24  # of one picture
    total_megapixels: float = 96  # of all pictures; they and their scores stay in memory
    classes: int = 8
    disk_mb: int = 2000  # megabytes that a visitor uploads in an hour, and as many that are drawn

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:  # NaN, too
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
        return self.pixels.shape[0] * self.pixels.shape[1] / MEGA


def check_upload(path: Filename, limits: Limits, what: str = "image") -> None:
    """Check a file, an "image" or a "mask" (``what``), before its pixels are read.

    Raises:
        ValueError: it is too large, or not a picture; then with the words of `fss_d2.data.images.open_image`.
    """
    name = Path(path).name
    if os.path.getsize(path) > limits.upload_mb * MEGA:
        raise ValueError(f"{name} has more than {limits.upload_mb} MB: make it smaller")
    with open_upload(path, limits, name, what):
        pass


@contextmanager
def open_upload(
    source: Filename | BinaryIO, limits: Limits, name: str, what: str = "image"
) -> Iterator[Image.Image]:
    """Open a picture with an allowed format and size; its pixels are not read yet.

    ``name`` and ``what`` are for messages.

    Raises:
        ValueError: it is too large or not a picture, or the block cannot read it.
    """
    try:
        with Image.open(source, formats=_FORMATS) as image:
            width, height = _decoded_size(image)
            if width * height <= limits.megapixels * MEGA:
                yield image
                return
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if not isinstance(source, str | os.PathLike):
            raise ValueError(f"{name} cannot be read; paint again") from None
        raise unreadable(source, what, error) from None
    raise ValueError(f"{name} has {width}x{height} pixels: at most {limits.megapixels:g} million are allowed")


def _decoded_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of what a decoder holds at a time: the picture, or a tile that is larger.

    A JPEG file whose decoding takes hours raises ValueError.
    """
    if image.format == "TIFF":
        width, height = (int(image.tag_v2.get(tag, 1)) for tag in _TILE)
        return max((width, height), image.size, key=math.prod)
    if image.format in ("JPEG", "MPO"):
        image.fp.seek(0)
        if (scans := image.fp.read().count(_SCAN)) > _MOST_SCANS:
            raise ValueError(f"{scans} scans, more than {_MOST_SCANS}")
    return image.size


def read_upload(path: Filename, limits: Limits) -> Upload:
    """Read an uploaded picture; errors as `check_upload`."""
    check_upload(path, limits)
    pixels, orientation = read_picture(path)
    return Upload(Path(path).name, pixels, orientation)


def check_total(uploads: Iterable[Upload], limits: Limits) -> None:
    """Raise ValueError if pictures are too large together."""
    if sum(upload.megapixels for upload in uploads) > limits.total_megapixels:
        raise ValueError(
            f"your pictures have more than {limits.total_megapixels:g} million pixels together "
            "(--max-megapixels): remove some, or make them smaller"
        )


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
    """A picture with its class and, once it is marked, the mask (H, W) uint8 in {0, 1, 255}.

    ``negative``: what is marked does not show the object.
    """

    upload: Upload
    class_name: str = "object"
    mask: np.ndarray | None = None
    negative: bool = False

    @property
    def shows_object(self) -> bool:
        """Whether an object is marked in it."""
        return self.mask is not None and not self.negative


class SupportList:
    """The pictures of objects in the order of their upload; one of them is open for marking.

    Input that cannot be used raises ValueError.

    Attributes:
        current: index of the open picture; None if there are no pictures.
        corner: (x, y) of the first corner of a box in the open picture, in its pixels.
        unclear: an uploaded mask of the open picture whose values are not understood.
        revision: a number that grows with every change of the supports of any class.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.revision = 0
        self.clear()

    def clear(self) -> None:
        """Remove all pictures."""
        self.pictures: list[SupportPicture] = []
        self.class_names: list[str] = []  # of marked pictures, in the order in which they were first marked
        self.current: int | None = None
        self.corner: Point | None = None
        self.unclear: Filename | None = None
        self.revision += 1

    def add(
        self, paths: Sequence[Filename], class_name: str = "object", others: Sequence[Upload] = ()
    ) -> None:
        """Add uploaded pictures and open the first of them; after an error, none is added.

        ``others`` are pictures of the visitor that count for the limit of all pixels, too.
        """
        self._check_room(len(paths))
        uploads = [picture.upload for picture in self.pictures]
        added = []
        for path in paths:
            added.append(SupportPicture(read_upload(path, self._limits), class_name))
            check_total([*others, *uploads, *(picture.upload for picture in added)], self._limits)
        if added:
            self.pictures += added
            self.select(len(self.pictures) - len(added))

    def add_marked(self, upload: Upload, class_name: str, mask: np.ndarray) -> None:
        """Add and open a picture with the mask (H, W) bool of its object."""
        self._check_room(1)
        if not mask.any():
            raise ValueError(f"nothing is painted in {upload.name}: an example must show the object")
        self.pictures.append(SupportPicture(upload, class_name))
        self.select(len(self.pictures) - 1)
        self._set_mask(mask.astype(np.uint8))

    def _check_room(self, count: int) -> None:
        if len(self.pictures) + count > self._limits.pictures:
            raise ValueError(f"at most {self._limits.pictures} pictures can show objects: remove some first")

    def number_of(self, class_name: str) -> int:
        """The number of a class, from 0: its colour. A class that is not marked yet gets the next number."""
        names = self.class_names
        return names.index(class_name) if class_name in names else len(names)

    def select(self, number: int) -> None:
        """Open the picture with an index."""
        if not 0 <= number < len(self.pictures):
            raise ValueError(f"there is no picture number {number + 1}: choose one of the gallery")
        self.current, self.corner, self.unclear = number, None, None

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
        self.corner = self.unclear = None
        self._changed()

    def name_class(self, class_name: str) -> None:
        """Name the object of the open picture."""
        name = class_name.strip()
        if not name or not name.isprintable():
            raise ValueError("the object has no name: type one, like dog")
        if len(name) > LONGEST_NAME:
            raise ValueError(f"the name of the object has {len(name)} letters: give at most {LONGEST_NAME}")
        others = {p.class_name for p in self.pictures if p is not self.open and p.mask is not None}
        if len(others | {name}) > self._limits.classes:
            raise ValueError(f"at most {self._limits.classes} kinds of object: take one of {sorted(others)}")
        if name != self.open.class_name:
            self.open.class_name = name
            if self.open.mask is not None:
                self._changed()

    def paint(self, layers: Sequence[np.ndarray]) -> None:
        """Add painted pixels to the object of the open picture; unmarked pixels are background.

        Each layer (h, w, 4) uint8 has any size, and covers the whole picture.
        """
        painted = painted_pixels(layers, *self.open.upload.pixels.shape[:2])
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

    def read_mask(self, path: Filename, values: str = "") -> None:
        """Read an uploaded mask of the open picture; it replaces all earlier marks.

        ``values`` say what its values mean, see `fss_d2.data.mask_values`. Without them a mask may raise
        UnclearMask; then it is kept as `unclear`.
        """
        rules = parse_mask_values(values)
        rules.check_classes({picture.class_name for picture in self.pictures})
        check_upload(path, self._limits, "mask")
        try:
            mask = self._read(path, rules.of(self.open.class_name))
        except UnclearMask:
            self.unclear = path
            raise
        self._set_mask(mask)

    def unmark(self) -> None:
        """Remove the mask of the open picture."""
        self.open.negative = False
        self._set_mask(None)

    def mean_negative(self, negative: bool) -> None:
        """Whether what is marked in the open picture, now and later, does not show the object."""
        if negative != self.open.negative:
            self.open.negative = negative
            if self.open.mask is not None:
                self._changed()

    def mark_absent(self) -> None:
        """Mark that the whole open picture does not show the object."""
        self.open.negative = True
        self._set_mask(np.ones(self.open.upload.pixels.shape[:2], np.uint8))

    def classes(self) -> dict[str, tuple[list[np.ndarray], list[np.ndarray]]]:
        """Pictures and masks of each class, in the order of `class_names`."""
        found: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {n: ([], []) for n in self.class_names}
        for picture in self.pictures:
            if picture.shows_object:
                found[picture.class_name][0].append(picture.upload.pixels)
                found[picture.class_name][1].append(picture.mask)
        if not found:
            raise ValueError("no object is marked yet: add a picture and mark the object in it (step 1)")
        return found

    def negatives(self) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
        """Pictures and regions that do not show the object, by class; "" for one that nothing shows."""
        found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
        for picture in self.pictures:
            if picture.mask is not None and picture.negative:
                name = picture.class_name if picture.class_name in self.class_names else ""
                found.setdefault(name, []).append((picture.upload.pixels, picture.mask))
        return found

    def _read(self, annotation: Box | Filename, rule: MaskRule | None = None) -> np.ndarray:
        upload = self.open.upload
        options = {"name": f"box in {upload.name}", "image_name": upload.name, "rule": rule}
        return read_annotation(annotation, upload.pixels, orientation=upload.orientation, **options)

    def _add(self, marked: np.ndarray) -> None:
        """Mark pixels (H, W) bool of the open picture, in addition to earlier marks."""
        before = self.open.mask
        self._set_mask(np.where(marked, 1, 0 if before is None else before).astype(np.uint8))

    def _set_mask(self, mask: np.ndarray | None) -> None:
        self.open.mask, self.corner, self.unclear = mask, None, None
        self._changed()

    def _changed(self) -> None:
        self.revision += 1
        marked = [picture.class_name for picture in self.pictures if picture.shows_object]
        kept = [name for name in self.class_names if name in marked]
        self.class_names = list(dict.fromkeys([*kept, *marked]))
