"""Pictures that do not show an object, as a command line names them."""

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from fss_d2.data.pairs import find_marked_masks
from fss_d2.data.picture_files import find_pictures_below, listed
from fss_d2.inference.annotations import read_picture, read_support
from fss_d2.inference.negatives import Negatives
from fss_d2.io.files import expand_user, printable, shortened

from .supports import Support

__all__ = ["as_pairs", "read_negatives"]

logger = logging.getLogger(__name__)

_MARK = "_mask"


def read_negatives(arguments: Sequence[str], class_names: Collection[str]) -> dict[str, list[Support]]:
    """Read negatives, by class or under "" for all classes; 1 in a mask is the region without the object.

    Args:
        arguments: "PATH" or "CLASS=PATH", of a picture, or of a folder with pictures and subfolders. In a
            folder, a mask ``<name>_mask.*`` next to a picture says which region of it is meant.
        class_names: of the supports.

    Raises:
        FileNotFoundError, ValueError: no such class or path, no picture, or one that cannot be read.
    """
    found: dict[str, list[Support]] = {}
    for argument in arguments:
        name, sign, path = argument.partition("=")
        if not sign or name not in class_names:
            name, path = "", argument
        found.setdefault(name, []).extend(_read(Path(expand_user(path)), class_names))
    return found


def as_pairs(negatives: Mapping[str, Sequence[Support]]) -> Negatives:
    """The negatives in the form that `FewShotPredictor` takes."""
    return {name: [(one.image, one.mask) for one in many] for name, many in negatives.items()}


def _read(path: Path, class_names: Collection[str]) -> list[Support]:
    if path.is_file():
        return [_negative(path, path.name, None)]
    if not path.is_dir():
        name, sign, _ = str(path).partition("=")
        classes = ", ".join(map(shortened, class_names))
        fix = (
            f"there is no class {shortened(name)} either ({classes})" if sign else "give a picture or folder"
        )
        raise FileNotFoundError(f"--negative {path} does not exist; {fix}")
    pictures = find_pictures_below(path)
    if lost := listed(list(pictures.left_out.items())):
        logger.warning("Left out in %s: %s", printable(path), printable(lost))
    regions = {mask.with_name(mask.stem[: -len(_MARK)]): mask for mask in find_marked_masks(path)}
    files = [path / name for name in pictures.names if path / name not in regions.values()]
    if not files:
        raise ValueError(f"--negative {path} holds no picture: give some that do not show the object")
    return [_negative(file, file.name, regions.get(file.with_suffix(""))) for file in files]


def _negative(file: Path, name: str, region: Path | None) -> Support:
    if region is not None:
        return Support(name, (file, region), *read_support(file, region, f"negative {name}"))
    image, _ = read_picture(file)
    return Support(name, (file,), image, np.ones(image.shape[:2], np.uint8))
