"""Read image files of any Pillow mode, with their EXIF orientation; errors name the file."""

import os
import struct
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["image_header", "is_image_name", "open_image", "orient", "read_image", "to_rgb"]

_EXIF_ORIENTATION = 0x0112
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def is_image_name(path: str | os.PathLike[str]) -> bool:
    """Whether a file name ends in the suffix of a readable image format, in upper or lower case."""
    return Image.registered_extensions().get(Path(path).suffix.lower()) in Image.OPEN


def open_image(path: str | os.PathLike[str], what: str = "image") -> tuple[Image.Image, int]:
    """Decode an image or a mask (`what`) as stored; also return its EXIF orientation (1 to 8; 1 = upright).

    FileNotFoundError without a file, ValueError for one that is broken, truncated or no image.
    """
    try:
        with Image.open(path) as image:
            orientation = _orientation(image)
            image.load()
    except FileNotFoundError:
        raise FileNotFoundError(f"{what} file {path} does not exist; restore it or fix its path") from None
    except _DECODE_ERRORS as error:
        reason = "it is a folder" if Path(path).is_dir() else " ".join(str(error).split())
        raise ValueError(f"{what} file {path} cannot be read ({reason}); replace it") from error
    return image, orientation


def image_header(path: str | os.PathLike[str]) -> tuple[tuple[int, int], int]:
    """Read an image's (height, width) as stored and its EXIF orientation, without its pixels.

    Errors as `open_image`.
    """
    try:
        with Image.open(path) as image:
            return image.size[::-1], _orientation(image)
    except FileNotFoundError:
        raise FileNotFoundError(f"image file {path} does not exist; restore it or fix its path") from None
    except _DECODE_ERRORS as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"image file {path} cannot be read ({reason}); replace it") from error


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except _DECODE_ERRORS:
        return 1  # broken metadata does not make the pixels unreadable
    return value if value in range(1, 9) else 1


def orient(array: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation, 1 to 8, to an array (H, W, ...) as stored: return it upright."""
    if orientation >= 5:  # stored with rows and columns exchanged
        array = array.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return array


def read_image(path: str | os.PathLike[str]) -> tuple[np.ndarray, int]:
    """Read an image upright by `to_rgb`; also return the EXIF orientation that was applied.

    Errors as `open_image`; ValueError also for floating-point pixels.
    """
    image, orientation = open_image(path)
    if image.mode == "F":
        raise ValueError(f"image file {path} has floating-point pixels; save it with 8 bits per channel")
    return np.ascontiguousarray(orient(to_rgb(image), orientation)), orientation


def to_rgb(image: Image.Image) -> np.ndarray:
    """Convert a Pillow image of any mode except floating-point to (H, W, 3) uint8 RGB.

    Transparent parts become white; grey of more than 8 bits is scaled to 8 bits.
    """
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        if grey.max() > 255:
            grey = grey >> 8
        return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))
