"""Uploaded pictures: what is allowed, and reading them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from fss_d2.inference.annotations import read_picture

__all__ = ["Limits", "Upload", "check_upload", "free_name", "open_upload", "read_upload"]

# Formats that cameras and scanners write. Pillow knows more, and runs other programs for some of these.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
_MEGA = 1_000_000


@dataclass(frozen=True)
class Limits:
    """What one session may hold.

    Attributes:
        upload_mb: megabytes of one file.
        pictures: number of pictures that show objects, and as many to search.
        megapixels: of one picture.
        total_megapixels: of all pictures to search; their scores stay in memory.
        classes: number of objects.

    Raises:
        ValueError: one is not above 0.
    """

    upload_mb: int = 20
    pictures: int = 20
    megapixels: float = 24
    total_megapixels: float = 96
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


def check_upload(path: str | os.PathLike[str], limits: Limits) -> None:
    """Check the size of a file and of its picture, before the pixels are read.

    Raises:
        ValueError: it is too large, or not a picture; the message has the file's name without its folder.
    """
    name = Path(path).name
    if os.path.getsize(path) > limits.upload_mb * _MEGA:
        raise ValueError(f"{name} has more than {limits.upload_mb} MB: make it smaller")
    with open_upload(path, limits, name):
        pass


@contextmanager
def open_upload(
    source: str | os.PathLike[str] | BinaryIO, limits: Limits, name: str
) -> Iterator[Image.Image]:
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


def read_upload(path: str | os.PathLike[str], limits: Limits) -> Upload:
    """Read an uploaded picture.

    Raises:
        ValueError: as `check_upload`, or it cannot be read.
    """
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
