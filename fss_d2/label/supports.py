"""Annotated pictures as supports: read them."""

import itertools
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from fss_d2.data import register_folder
from fss_d2.data.datasets.coco_json import CocoSettings, read_coco_records
from fss_d2.data.datasets.splits import ClassDivision
from fss_d2.data.images import read_image
from fss_d2.data.mask_values import MaskRules, MaskValues, parse_mask_values
from fss_d2.data.masks import check_shows, load_mask, load_sample, upright_mask
from fss_d2.data.pairs import find_marked_masks
from fss_d2.inference.annotations import find_supports, read_support
from fss_d2.io.files import expand_user, printable, read_json_object, shortened

from .labelme import read_labelme

__all__ = ["Support", "read_supports"]

_FORMS = (
    "give a folder with <class>/images/* and <class>/masks/<same name>.png or with <class>/<name>.jpg and "
    "<name>_mask.png, a COCO JSON file, or a folder of LabelMe JSON files"
)
_serial = itertools.count()

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Support:
    """One annotated picture of one class."""

    name: str  # of the picture, for messages
    files: tuple[Path, ...]  # of the picture and, if there is one, of the mask
    image: np.ndarray  # (H, W, 3) uint8 RGB, upright
    mask: np.ndarray  # (H, W) uint8: 1 object, 0 background, 255 ignored


def read_supports(
    path: str | Path,
    image_root: str | Path | None = None,
    *,
    class_name: str = "",
    mask_values: MaskValues | None = None,
    image_option: str = "image_root",
) -> dict[str, list[Support]]:
    """Read annotated pictures; a picture that shows several classes is a support of each.

    Args:
        path: one of
            a folder with `<class>/images/*` and `<class>/masks/<same stem>.png`, or the folder of one class;
            a folder with each image next to its mask, see `find_supports`;
            a JSON file in COCO's format, or a folder with one such file;
            a LabelMe JSON file, or a folder of them (subfolders too); each names its picture.
        image_root: what file names in a JSON are relative to; None searches near the JSON file.
        class_name: of images next to their masks without class folders; "" takes the folder's name.
        mask_values: what the values of mask files mean, for all classes or by class
            (`fss_d2.data.mask_values`); None recognises it.
        image_option: what the calling program calls `image_root`, for messages; "" if it has no such option.

    Returns:
        The supports of each class that has any, ordered by class name, or by category id of a COCO JSON.

    Raises:
        FileNotFoundError: there is no such path, or a picture or mask is missing.
        ValueError: it has none of these forms, is broken, or annotates nothing; or an object cannot be read.
    """
    path, root = Path(expand_user(path)), Path(expand_user(image_root)) if image_root else None
    if path.is_dir():
        supports = _of_folder(path, root, class_name, mask_values, image_option)
    elif path.is_file():
        _check_no_masks(path, mask_values)
        content = read_json_object(path, _FORMS, any_number=True)
        if not _is_coco(content) and "shapes" not in content:
            raise ValueError(f"{path} is in neither COCO's nor LabelMe's format; {_FORMS}")
        if _is_coco(content):
            supports = _of_coco(path, root, image_option)
        else:
            supports = _of_labelme([(path, content)], root, image_option)
    else:
        raise FileNotFoundError(f"{path} does not exist; {_FORMS}")
    found = {name: of_class for name, of_class in supports.items() if of_class}
    if not found:
        raise ValueError(f"{path} annotates no object; {_FORMS}")
    _check_names(path, list(found))
    return found


def _check_no_masks(path: Path, mask_values: MaskValues | None) -> None:
    if mask_values is not None:
        raise ValueError(f"mask_values says how mask files are read, and {path} has none; leave it out")


def _of_folder(
    path: Path, root: Path | None, class_name: str, mask_values: MaskValues | None, image_option: str
) -> dict[str, list[Support]]:
    class_folders = [folder.parent for folder in path.glob("[!.]*/images")]
    files = sorted(p for p in path.rglob("*.json") if not p.name.startswith("."))
    if (path / "images").is_dir() and (path / "masks").is_dir():
        folder = path.resolve()
        return _registered(path, folder.parent, classes=[folder.name], mask_values=mask_values)
    if any((folder / "masks").is_dir() for folder in class_folders) or (class_folders and not files):
        return _registered(path, path, mask_values=mask_values)
    contents = [(file, read_json_object(file, _FORMS, any_number=True)) for file in files]
    coco = [file for file, content in contents if _is_coco(content)]
    labelme = [file for file, content in contents if "shapes" in content]
    named = {file.with_suffix("") for file in files}
    masks = [mask for mask in find_marked_masks(path) if mask.with_suffix("") not in named]
    if (masks and not coco and not labelme) or not (files or any(path.glob("**/images"))):
        if files:
            logger.info("%s is not used: it is in neither COCO's nor LabelMe's format", printable(files[0]))
        return _side_by_side(path, class_name or path.resolve().name, parse_mask_values(mask_values))
    _check_no_masks(path, mask_values)
    if not files:
        raise ValueError(f"{path} holds no annotated pictures; {_FORMS}")
    if len(coco) > 1:
        raise ValueError(f"{path} holds {len(coco)} COCO files, {coco[0]} and {coco[1]} among them; give one")
    if not coco:
        if masks:
            fault = f"{path} has LabelMe files and a mask ({masks[0].name})"
            raise ValueError(f"{fault}: keep one kind, or divide them")
        return _of_labelme(contents, root, image_option)
    if labelme:
        raise ValueError(f"{path} holds {coco[0]} in COCO's format and {labelme[0]} in LabelMe's; give one")
    logger.info("%s holds the COCO file %s; it is read", printable(path), printable(coco[0]))
    return _of_coco(coco[0], root, image_option)


def _of_labelme(
    files: Sequence[tuple[Path, Mapping[str, Any]]], root: Path | None, image_option: str
) -> dict[str, list[Support]]:
    pictures = read_labelme(files, root, image_option)
    names = _picture_names([picture.picture for picture in pictures])
    supports: dict[str, list[Support]] = {}
    for name, picture in zip(names, pictures, strict=True):
        for label, mask in picture.masks.items():
            support = Support(name, (picture.picture,), picture.image, mask)
            supports.setdefault(label, []).append(support)
    return dict(sorted(supports.items()))


def _is_coco(content: Mapping[str, Any]) -> bool:
    return "annotations" in content and "shapes" not in content


def _of_coco(path: Path, root: Path | None, image_option: str) -> dict[str, list[Support]]:
    division = ClassDivision(f"supports {path}")
    strict = {"is_strict": True, "root_option": image_option}
    records, metadata = read_coco_records(CocoSettings(path, root, None, 0, False, 0.0, division, **strict))
    class_names = metadata["stuff_classes"]
    names = _picture_names([Path(record["file_name"]) for record in records])
    supports: dict[str, list[Support]] = {name: [] for name in class_names}
    for name, record in zip(names, records, strict=True):
        image, orientation = read_image(record["file_name"])
        for class_id in record["classes"]:
            mask = upright_mask(load_mask(record, class_id), image, orientation, record)
            check_shows(mask, record, class_id)
            supports[class_names[class_id]].append(Support(name, (Path(record["file_name"]),), image, mask))
    return supports


def _picture_names(files: Sequence[Path]) -> list[str]:
    """The file names; those of equal names start with the folders in which they differ."""
    count = Counter(file.name for file in files)
    common = os.path.commonpath([file.parent.absolute() for file in files]) if files else ""
    return [
        file.name if count[file.name] == 1 else Path(os.path.relpath(file, common)).as_posix()
        for file in files
    ]


def _check_names(path: Path, names: Sequence[str]) -> None:
    """Raise ValueError for two names that are one with a slip: they differ in case or spaces only."""
    seen: dict[str, str] = {}
    for name in names:
        same = seen.setdefault(" ".join(name.casefold().split()), name)
        if same != name:
            pair = f"{shortened(same)!r} and {shortened(name)!r}"
            raise ValueError(f"{path}: the classes {pair} differ in case or spaces only; give them one name")


def _side_by_side(folder: Path, class_name: str, rules: MaskRules) -> dict[str, list[Support]]:
    found = find_supports(folder, class_name)
    rules.check_classes(found)
    supports: dict[str, list[Support]] = {name: [] for name in found}
    for name, pairs in found.items():
        for image, mask in zip(*pairs, strict=True):
            label = f"{name}/{image.stem}"
            pixels = read_support(image, mask, label, rules.of(name))
            supports[name].append(Support(label, (image, mask), *pixels))
    return supports


def _registered(path: Path, *args: Any, **options: Any) -> dict[str, list[Support]]:
    """Read class folders through Detectron2's catalogs, and remove the entries again."""
    dataset = f"supports {next(_serial)} of {path}"
    register_folder(dataset, *args, **options)
    try:
        records: Iterable[dict[str, Any]] = DatasetCatalog.get(dataset)
        names = list(MetadataCatalog.get(dataset).stuff_classes)
    finally:
        DatasetCatalog.remove(dataset)
        MetadataCatalog.remove(dataset)
    supports: dict[str, list[Support]] = {name: [] for name in names}
    for record in records:
        for class_id in record["classes"]:
            files = (Path(record["file_name"]), Path(record["sem_seg_file_name"]))
            image, mask = load_sample(record, class_id)
            supports[names[class_id]].append(Support(str(record["image_id"]), files, image, mask))
    return supports
