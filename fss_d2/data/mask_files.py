"""Read a mask file of one object upright, for every entry point; say what its values were taken for."""

import logging
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from torch.utils.data import get_worker_info

from fss_d2.io.files import printable

from .images import decode_file, image_header, orient
from .mask_decoding import decode_mask
from .mask_values import MaskRule, UnclearMask

__all__ = ["Frame", "read_mask_file", "to_upright"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Frame:
    """The picture that a mask belongs to: its upright (height, width), EXIF orientation, and name."""

    shape: tuple[int, int]
    orientation: int = 1
    name: str = ""

    @classmethod
    def of_file(cls, path: str | os.PathLike[str]) -> "Frame":
        """Of an image file, by its header; errors as `image_header`."""
        stored, orientation = image_header(path)
        return cls(stored[::-1] if orientation >= 5 else stored, orientation, os.fspath(path))


def read_mask_file(path: str | os.PathLike[str], frame: Frame, rule: MaskRule | None = None) -> np.ndarray:
    """Read a mask file upright, (H, W) uint8: 1 object, 0 background, 255 ignored.

    What the file was taken for is logged once per folder.

    Args:
        path: of the mask.
        frame: the picture, whose size the mask must have.
        rule: what its values mean; None, or a rule without values, recognises them (`decode_mask`).

    Raises:
        FileNotFoundError, ValueError: it does not exist, cannot be read, or its meaning is not certain.
    """
    image, own = decode_file(path, "mask")
    mask, meaning = decode_mask(image, f"mask file {path}", rule)
    if get_worker_info() is None:  # each worker of a loader would say it again
        _log_once(str(Path(path).parent), meaning)
        if not (rule and rule.names_object) and _may_be_inverted(mask):
            _warn_once(Path(path).parent, Path(path).name)
    return to_upright(mask, own, frame, f"mask file {path}", rule)


@lru_cache(maxsize=1024)
def _log_once(folder: str, meaning: str) -> None:
    logger.info("Masks in %s: %s", printable(folder), meaning)


def _may_be_inverted(mask: np.ndarray) -> bool:
    """Whether all of the border is object, and something within is not."""
    border = (mask[0], mask[-1], mask[:, 0], mask[:, -1])
    return all((side == 1).all() for side in border) and bool((mask == 0).any())


_warned: set[Path] = set()  # folders


def _warn_once(folder: Path, name: str) -> None:
    if folder not in _warned:
        _warned.add(folder)
        what = f"Masks in {folder}: the object of {name} fills the whole border of the picture"
        logger.warning("%s; if it is black on white, give mask_values (--mask-values) dark", printable(what))


def to_upright(
    mask: np.ndarray, own: int | None, frame: Frame, name: str, rule: MaskRule | None = None
) -> np.ndarray:
    """Turn a stored mask (H, W) upright.

    A mask with an EXIF orientation of its own (``own``) follows that. One without is in the frame of its
    picture that has its size, upright or stored; where both have, ``rule`` must say which, unless both give
    the same mask.

    Raises:
        UnclearMask: both frames have its size.
        ValueError: neither has.
    """
    said = rule.frame if rule else ""
    turned = orient(mask, frame.orientation)
    if own not in (None, 1):
        upright = orient(mask, own)
    elif mask.shape != frame.shape:
        upright = turned
    elif own == 1 or said == "upright" or frame.orientation == 1:
        upright = mask
    elif said == "stored" or turned.shape != frame.shape or np.array_equal(turned, mask):
        upright = turned if turned.shape == frame.shape else mask
    else:
        raise UnclearMask(
            f"{name} does not say whether it is upright, and its image {frame.name} is stored turned (EXIF "
            f"orientation {frame.orientation})",
            "give mask_values (--mask-values)",
            "frame=upright or frame=stored",
        )
    if upright.shape != frame.shape:
        raise ValueError(
            f"{name}: the mask is {_size(mask.shape)} pixels but its image {frame.name} is "
            f"{_size(frame.shape)}; make the two sizes equal"
        )
    return np.ascontiguousarray(upright)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
