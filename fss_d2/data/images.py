"""Read image files of any Pillow mode, with their EXIF orientation; errors name the file."""

import logging
import os
import re
import struct
import zlib
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageCms

from fss_d2.io.files import printable

__all__ = ["decode_file", "eight_bits", "image_header", "is_image_name", "open_image", "orient", "read_image"]
__all__ += ["to_rgb", "unreadable"]

logger = logging.getLogger(__name__)

_EXIF_ORIENTATION = 0x0112
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_BITS, _TIFF_MEANING = 256, 257, 258, 262
_TAGS = "tiff_tags"  # in `info`, which copies of an image keep
_DECODE_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError),
    # of broken headers
    *(RuntimeError, IndexError, KeyError, TypeError, AttributeError, OverflowError, MemoryError),
)
# How an image is turned back to what is stored, after Pillow has turned it upright.
_STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
_OPEN_FILE = re.compile(r"<_io\.BufferedReader name=(.*?)>")  # in messages of Pillow
_DEPTHS = (8, 10, 12, 14, 16)  # bits that cameras and scanners fill in a 16-bit file


def is_image_name(path: str | os.PathLike[str]) -> bool:
    """Whether a file name ends in the suffix of a readable image format, in upper or lower case."""
    return Image.registered_extensions().get(Path(path).suffix.lower()) in Image.OPEN


def open_image(path: str | os.PathLike[str], what: str = "image") -> tuple[Image.Image, int]:
    """Decode an image or a mask (`what`) as stored; also return its EXIF orientation (1 to 8; 1 = upright).

    FileNotFoundError without a file, ValueError for one that is broken, truncated or no image.
    """
    image, orientation = decode_file(path, what)
    return image, orientation or 1


def decode_file(path: str | os.PathLike[str], what: str = "image") -> tuple[Image.Image, int | None]:
    """As `open_image`, but the orientation is None if the file does not say it."""
    try:
        # An open file, as Pillow maps files given by name into memory and then misreads TIFF that is turned.
        with open(path, "rb") as file, Image.open(file) as image:
            orientation = _orientation(image)
            frames = _frames(image)
            keep_tags(image)
            image.load()
            if orientation in _STORED and image.format == "TIFF":  # the one format that `load` turns upright
                image = image.transpose(_STORED[orientation])
                image.format = "TIFF"
    except _DECODE_ERRORS as error:
        raise unreadable(path, what, error) from error
    if frames > 1:
        _log_once(str(Path(path).parent), "of files with several pages or frames, the first is read")
    return image, orientation


def keep_tags(image: Image.Image) -> None:
    """Note in ``info`` what the tags of a TIFF file say about its pixels; copies of an image lose tags."""
    tags = getattr(image, "tag_v2", None)
    if tags is not None:
        image.info[_TAGS] = {number: tags.get(number) for number in (_TIFF_BITS, _TIFF_MEANING)}


def _frames(image: Image.Image) -> int:
    """Pages of a document or frames of an animation; MPO's further pictures are previews and depth."""
    try:
        return getattr(image, "n_frames", 1) if image.format in ("TIFF", "GIF", "WEBP", "PNG") else 1
    except _DECODE_ERRORS:
        return 1  # a broken later frame does not make the first unreadable


def _orientation(image: Image.Image) -> int | None:
    try:
        value = image.getexif().get(_EXIF_ORIENTATION)
    except _DECODE_ERRORS:
        return None  # broken metadata does not make the pixels unreadable
    return value if value in range(1, 9) else None


def image_header(path: str | os.PathLike[str]) -> tuple[tuple[int, int], int]:
    """Read an image's (height, width) as stored and its EXIF orientation, without its pixels.

    Errors as `open_image`.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            if image.format == "TIFF":  # whose `size` some versions of Pillow turn upright
                width, height = image.tag_v2[_TIFF_WIDTH], image.tag_v2[_TIFF_HEIGHT]
            return (height, width), _orientation(image) or 1
    except _DECODE_ERRORS as error:
        raise unreadable(path, "image", error) from error


def unreadable(path: str | os.PathLike[str], what: str, error: Exception) -> Exception:
    """The error of a file that Pillow cannot open or decode."""
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(f"{what} file {path} does not exist; restore it or fix its path")
    said = _OPEN_FILE.sub(r"\1", " ".join(str(error).split()))[:200] or type(error).__name__
    reason = "it is a folder" if Path(path).is_dir() else said
    return ValueError(f"{what} file {path} cannot be read ({reason}); replace it")


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

    Errors as `open_image`; ValueError also for floating-point pixels and whole numbers beyond 16 bits.
    """
    image, orientation = open_image(path)
    name = f"image file {path}"
    pixels = _deep_colors(path, name) if _is_deep_color(path, image) else to_rgb(image, name)
    return np.ascontiguousarray(orient(pixels, orientation)), orientation


def to_rgb(image: Image.Image, name: str = "image") -> np.ndarray:
    """Convert a Pillow image of any mode except floating-point to (H, W, 3) uint8 RGB.

    Transparent parts become white; grey of more than 8 bits is scaled to 8 bits (`eight_bits`). ``name`` is
    for the ValueError if the pixels cannot be converted.
    """
    if image.mode == "F":
        raise ValueError(f"{name} has floating-point pixels; save it with 8 bits per channel")
    if image.mode.startswith("I"):
        tags = image.info.get(_TAGS, {})
        grey = eight_bits(np.asarray(image), name, _stated_bits(tags.get(_TIFF_BITS)))
        if tags.get(_TIFF_MEANING) == 0:  # white is zero, which Pillow reads for up to 8 bits only
            grey = 255 - grey
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    if image.mode == "La":  # Pillow converts it to LA only
        image = image.convert("LA")
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def eight_bits(values: np.ndarray, name: str, bits: int | None = None) -> np.ndarray:
    """Scale whole numbers of 8, 10, 12, 14 or 16 bits to uint8, by the highest 8 bits of the depth.

    The depth is ``bits``, what the file states, or else the least one that holds the largest value. So it is
    the same for all pictures of a camera but those whose brightest pixel is below a quarter of white; a
    folder that shows two depths is named in the log.

    Raises:
        ValueError: a value is negative or has more than 16 bits.
    """
    values = values.astype(np.int64)
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    if low < 0 or high > 65535:
        raise ValueError(f"{name} has values from {low} to {high}; save it with 8 or 16 bits per channel")
    needed = next(depth for depth in _DEPTHS if high < 1 << depth)
    depth = bits if bits and high < 1 << bits else needed
    if depth > 8:
        _log_depth(name, depth)
    return (values >> (depth - 8)).astype(np.uint8)


def _stated_bits(tag: int | tuple[int, ...] | None) -> int | None:
    """The bits per channel that a TIFF file states, if they are fewer than those that it is read as."""
    bits = tag[0] if isinstance(tag, tuple) else tag
    return bits if bits in (10, 12, 14) else None


def _is_deep_color(path: str | os.PathLike[str], image: Image.Image) -> bool:
    """Whether a colour file of 16 bits per channel keeps its picture in the lower ones.

    Pillow reads the upper 8 bits alone. They are right if they reach a quarter of white.
    """
    if image.format not in ("PNG", "TIFF") or image.mode not in ("RGB", "RGBA", "LA"):
        return False
    color = np.asarray(image)[..., : 1 if image.mode == "LA" else 3]
    if color.max(initial=0) >= 64:
        return False
    with Image.open(path) as header:
        return any(";16" in str(tile[3]) for tile in header.tile)


def _deep_colors(path: str | os.PathLike[str], name: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB, as stored, of a colour file of 16 bits per channel; transparency becomes white."""
    try:
        decoded = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        decoded = None
    if decoded is None or decoded.dtype != np.uint16:
        raise ValueError(f"{name} is almost black with 16 bits per channel; save it with 8 bits per channel")
    if decoded.ndim == 2:
        return np.repeat(eight_bits(decoded, name)[:, :, None], 3, axis=2)
    rgb = eight_bits(decoded[:, :, :3], name)[:, :, ::-1]
    if decoded.shape[2] == 4:
        alpha = decoded[:, :, 3:].astype(np.float64) / 65535
        rgb = (rgb * alpha + 255 * (1 - alpha)).round().astype(np.uint8)
    return rgb


_depths: dict[str, int] = {}  # of the pictures of each folder


def _log_depth(name: str, depth: int) -> None:
    """Say once per folder how many bits count, and again where a picture has others."""
    folder = str(Path(name).parent)
    if _depths.get(folder) != depth:
        before = f", others there as {_depths[folder]} bits" if folder in _depths else ""
        logger.info("%s is read as %d bits per channel, scaled to 8%s", printable(name), depth, before)
        _depths[folder] = depth


@lru_cache(maxsize=1024)
def _log_once(folder: str, text: str) -> None:
    logger.info("Pictures in %s: %s", printable(folder), text)
