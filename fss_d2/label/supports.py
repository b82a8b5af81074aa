"""Annotated pictures in the forms that people have them in: mask folders, COCO JSON, LabelMe JSON."""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from fss_d2.data import register_coco_json, register_folder
from fss_d2.data.masks import load_sample
from fss_d2.files import read_json_object
from fss_d2.inference.annotations import read_support
from fss_d2.inference.support_folder import find_supports

from .labelme import labelme_records

__all__ = ["Support", "read_supports"]

_FORMS = (
    "give a folder with <class>/images/* and <class>/masks/<same name>.png or with <class>/<name>.jpg and "
    "<name>_mask.png, a COCO JSON file, or a folder of LabelMe JSON files"
)
_serial = itertools.count()

Records = tuple[list[dict[str, Any]], list[str]]  # dataset dicts, class names


@dataclass(frozen=True)
class Support:
    """One annotated picture of one class.

    Attributes:
        name: of the picture, for people.
        files: the picture's file and, where there is one, that of its mask.
        image: (H, W, 3) uint8 RGB, upright.
        mask: (H, W) uint8: 1 object, 0 background, 255 neither.
    """

    name: str
    files: tuple[Path, ...]
    image: np.ndarray
    mask: np.ndarray


def read_supports(
    path: str | Path, image_root: str | Path | None = None, *, class_name: str = ""
) -> dict[str, list[Support]]:
    """Read annotated pictures; a picture that shows several classes is a support of each.

    Args:
        path: one of
            a folder with `<class>/images/*` and `<class>/masks/<same stem>.png`, or the folder of one class;
            a folder where each image lies beside its mask, see `find_supports`;
            a JSON file in COCO's format;
            a LabelMe JSON file, or a folder of them (subfolders too), each with its picture where it says.
        image_root: where the file names of a COCO JSON start; None takes the JSON's folder.
        class_name: of images beside their masks without folders of classes; "" takes the folder's name.

    Returns:
        The supports of each class that has any. Classes come in the order of their names, or of the
        category ids of a COCO JSON.

    Raises:
        FileNotFoundError: there is no such path, or a picture or mask is missing.
        ValueError: it has none of these forms, is broken, or annotates nothing; names the file.
    """
    path = Path(path)
    if path.is_dir() and not any(path.glob("**/images")) and not any(path.rglob("[!.]*.json")):
        return _side_by_side(path, class_name or path.resolve().name)
    records, names = _records(path, Path(image_root) if image_root else path.parent)
    supports: dict[str, list[Support]] = {name: [] for name in names}
    for record in records:
        for class_id in record["classes"]:
            image, mask = load_sample(record, class_id)
            files = [record["file_name"], record.get("sem_seg_file_name")]
            supports[names[class_id]].append(
                Support(str(record["image_id"]), tuple(Path(f) for f in files if f), image, mask)
            )
    found = {name: of_class for name, of_class in supports.items() if of_class}
    if not found:
        raise ValueError(f"{path} annotates no object; {_FORMS}")
    return found


def _side_by_side(folder: Path, class_name: str) -> dict[str, list[Support]]:
    """Images that lie beside their masks."""
    supports = {}
    for name, pairs in find_supports(folder, class_name).items():
        supports[name] = [
            Support(f"{name}/{image.stem}", (image, mask), *read_support(image, mask, f"{name}/{image.stem}"))
            for image, mask in zip(*pairs, strict=True)
        ]
    return supports


def _records(path: Path, image_root: Path) -> Records:
    """Dataset dicts and class names, whatever the form."""
    if path.is_dir():
        if (path / "images").is_dir() and (path / "masks").is_dir():
            folder = path.resolve()
            return _registered(path, register_folder, folder.parent, classes=[folder.name])
        if any(path.glob("[!.]*/images")):
            return _registered(path, register_folder, path)
        files = sorted(p for p in path.rglob("*.json") if not p.name.startswith("."))
        if not files:
            raise ValueError(f"{path} holds no annotated pictures; {_FORMS}")
        return labelme_records((file, read_json_object(file, _FORMS)) for file in files)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; {_FORMS}")
    content = read_json_object(path, _FORMS)
    if "shapes" in content:
        return labelme_records([(path, content)])
    if "annotations" not in content:
        raise ValueError(f"{path} is in neither COCO's nor LabelMe's format; {_FORMS}")
    return _registered(path, register_coco_json, path, image_root)


def _registered(path: Path, register: Callable[..., None], *args: Any, **options: Any) -> Records:
    """Read by way of Detectron2's catalogs, and leave nothing there."""
    name = f"supports {next(_serial)} of {path}"
    register(name, *args, **options)
    try:
        records: Iterable[dict[str, Any]] = DatasetCatalog.get(name)
        return list(records), list(MetadataCatalog.get(name).stuff_classes)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
