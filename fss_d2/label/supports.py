"""Annotated pictures as supports, read from folders, COCO JSON and LabelMe files."""

import base64
import io
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from fss_d2.data import register_coco_json, register_folder
from fss_d2.data.images import open_image
from fss_d2.data.mask_values import MaskRules, MaskValues, parse_mask_values
from fss_d2.data.masks import load_sample
from fss_d2.data.pairs import find_marked_masks
from fss_d2.files import expand_user, read_json_object
from fss_d2.inference.annotations import find_supports, read_support

__all__ = ["Support", "read_supports"]

_FORMS = (
    "give a folder with <class>/images/* and <class>/masks/<same name>.png or with <class>/<name>.jpg and "
    "<name>_mask.png, a COCO JSON file, or a folder of LabelMe JSON files"
)
_CIRCLE_CORNERS = 64
_IGNORE, _BACKGROUND = "__ignore__", "_background_"  # labels that LabelMe itself uses
_serial = itertools.count()

Records = tuple[list[dict[str, Any]], list[str]]  # dataset dicts, class names


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
) -> dict[str, list[Support]]:
    """Read annotated pictures; a picture that shows several classes is a support of each.

    Args:
        path: one of
            a folder with `<class>/images/*` and `<class>/masks/<same stem>.png`, or the folder of one class;
            a folder with each image next to its mask, see `find_supports`;
            a JSON file in COCO's format;
            a LabelMe JSON file, or a folder of them (subfolders too); each names its picture.
        image_root: what file names in a COCO JSON are relative to; None takes the folder of the JSON.
        class_name: of images next to their masks without class folders; "" takes the folder's name.
        mask_values: what the values of mask files mean, for all classes or by class
            (`fss_d2.data.mask_values`); None recognises it.

    Returns:
        The supports of each class that has any, ordered by class name, or by category id of a COCO JSON.

    Raises:
        FileNotFoundError: there is no such path, or a picture or mask is missing.
        ValueError: it has none of these forms, is broken, or annotates nothing.
    """
    path = Path(expand_user(path))
    if path.is_dir() and not any(path.glob("**/images")) and not any(path.rglob("[!.]*.json")):
        return _side_by_side(path, class_name or path.resolve().name, parse_mask_values(mask_values))
    root = Path(expand_user(image_root)) if image_root else path.parent
    records, names = _records(path, root, mask_values)
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


def _records(path: Path, image_root: Path, mask_values: MaskValues | None) -> Records:
    """Dataset dicts and class names of any other form."""
    if path.is_dir():
        of_masks = {"mask_values": mask_values}
        if (path / "images").is_dir() and (path / "masks").is_dir():
            folder = path.resolve()
            return _registered(path, register_folder, folder.parent, classes=[folder.name], **of_masks)
        if any(path.glob("[!.]*/images")):
            return _registered(path, register_folder, path, **of_masks)
    if mask_values is not None:
        raise ValueError(f"mask_values says how mask files are read, and {path} has none; leave it out")
    if path.is_dir():
        files = sorted(p for p in path.rglob("*.json") if not p.name.startswith("."))
        if not files:
            raise ValueError(f"{path} holds no annotated pictures; {_FORMS}")
        named = {file.with_suffix("") for file in files}
        if masks := [p for p in find_marked_masks(path) if p.with_suffix("") not in named]:
            fault = f"{path} has LabelMe files and a mask ({masks[0].name})"
            raise ValueError(f"{fault}: keep one kind, or divide them")
        return _labelme_records([(file, read_json_object(file, _FORMS)) for file in files])
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; {_FORMS}")
    content = read_json_object(path, _FORMS)
    if "shapes" in content:
        return _labelme_records([(path, content)])
    if "annotations" not in content:
        raise ValueError(f"{path} is in neither COCO's nor LabelMe's format; {_FORMS}")
    return _registered(path, register_coco_json, path, image_root)


def _registered(path: Path, register: Callable[..., None], *args: Any, **options: Any) -> Records:
    """Read through Detectron2's catalogs, and remove the entries again."""
    name = f"supports {next(_serial)} of {path}"
    register(name, *args, **options)
    try:
        records: Iterable[dict[str, Any]] = DatasetCatalog.get(name)
        return list(records), list(MetadataCatalog.get(name).stuff_classes)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def _labelme_records(files: Sequence[tuple[Path, Mapping[str, Any]]]) -> Records:
    """Dataset dicts of parsed LabelMe files, given as (path, content); the classes are the sorted labels.

    Shapes are polygons, rectangles, circles and masks. "__ignore__" labels pixels to ignore; "_background_"
    is skipped.
    """
    for path, content in files:
        _check_labelme(path, content)
    labels = {str(shape["label"]) for _, content in files for shape in content["shapes"]}
    names = sorted(labels - {_IGNORE, _BACKGROUND})
    return [_labelme_record(path, content, names) for path, content in files], names


def _check_labelme(path: Path, content: Mapping[str, Any]) -> None:
    if not isinstance(content.get("shapes"), list) or not isinstance(content.get("imagePath"), str):
        raise ValueError(f"{path} is not in LabelMe's format: it needs a list 'shapes' and an 'imagePath'")
    for number, shape in enumerate(content["shapes"]):
        if not isinstance(shape, dict) or not {"label", "points"} <= shape.keys():
            raise ValueError(f"{path}: shapes[{number}] has no 'label' or no 'points'; add it")


def _labelme_record(path: Path, content: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """A dataset dict; ``imagePath`` is relative to the file and may have Windows' separators."""
    file = path.parent / content["imagePath"].replace("\\", "/")
    height, width = content.get("imageHeight"), content.get("imageWidth")
    if not (height and width):
        image, orientation = open_image(file)
        width, height = image.size if orientation < 5 else image.size[::-1]
    annotations = []
    for number, shape in enumerate(content["shapes"]):
        label = str(shape["label"])
        if label == _BACKGROUND:
            continue
        try:
            segmentation = _segmentation(shape, int(height), int(width))
        except (ValueError, TypeError, KeyError, IndexError, OSError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{path}: shapes[{number}] ({label}) cannot be drawn: {reason}") from error
        ids = range(len(names)) if label == _IGNORE else [names.index(label)]
        annotations += [
            {"category_id": i, "segmentation": segmentation, "iscrowd": int(label == _IGNORE)} for i in ids
        ]
    classes = sorted({a["category_id"] for a in annotations if not a["iscrowd"]})
    size = {"height": int(height), "width": int(width)}
    picture = {"file_name": str(file), "image_id": path.stem, **size}
    return {**picture, "classes": classes, "annotations": annotations}


def _segmentation(shape: Mapping[str, Any], height: int, width: int) -> Any:
    """A LabelMe shape as COCO's polygons or RLE."""
    kind = shape.get("shape_type") or "polygon"
    points = np.asarray(shape["points"], dtype=np.float64).reshape(-1, 2)
    if kind == "polygon" and len(points) >= 3:
        corners = points
    elif kind == "rectangle" and len(points) >= 2:
        (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
        corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    elif kind == "circle" and len(points) == 2:
        angles = 2 * math.pi * np.arange(_CIRCLE_CORNERS) / _CIRCLE_CORNERS
        radius = np.linalg.norm(points[1] - points[0])
        corners = points[0] + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    elif kind == "mask" and len(points) == 2:
        return _pasted(shape["mask"], points, height, width)
    else:
        raise ValueError(f"a {kind} of {len(points)} points has no area; draw a polygon")
    return [corners.ravel().tolist()]


def _pasted(encoded: str, corners: np.ndarray, height: int, width: int) -> Any:
    """RLE of a base64 PNG whose first pixel lies at the first corner."""
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
        part = np.asarray(image) > 0
    full = np.zeros((height, width), np.uint8, order="F")
    left, top = (int(v) for v in corners[0])
    if left < 0 or top < 0:
        raise ValueError(f"its first corner {left}, {top} lies outside the picture")
    view = full[top : top + part.shape[0], left : left + part.shape[1]]
    view[:] = part[: view.shape[0], : view.shape[1]]
    return coco_mask.encode(full)
