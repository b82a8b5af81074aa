"""LabelMe's JSON files, one for each picture, read into dataset dicts."""

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
from PIL import Image

from fss_d2.data.images import open_image

__all__ = ["labelme_records"]

_CIRCLE_CORNERS = 64
_IGNORE, _BACKGROUND = "__ignore__", "_background_"  # LabelMe's own names


def labelme_records(
    files: Iterable[tuple[Path, Mapping[str, Any]]],
) -> tuple[list[dict[str, Any]], list[str]]:
    """Turn parsed LabelMe files into dataset dicts.

    The classes are the labels, by name. Shapes are polygons, rectangles, circles and masks; what is labelled
    "__ignore__" is neither object nor background, and "_background_" says nothing.

    Args:
        files: each file's path and content. ``imagePath`` is relative to the file.

    Returns:
        Records (with "annotations"), image ids the files' names without ending; and the class names.

    Raises:
        FileNotFoundError: a picture is missing.
        ValueError: a file is not in LabelMe's format, or has a shape without an area; names file and shape.
    """
    files = list(files)
    for path, content in files:
        _check(path, content)
    labels = {str(shape["label"]) for _, content in files for shape in content["shapes"]}
    names = sorted(labels - {_IGNORE, _BACKGROUND})
    return [_record(path, content, names) for path, content in files], names


def _check(path: Path, content: Mapping[str, Any]) -> None:
    if not isinstance(content.get("shapes"), list) or not isinstance(content.get("imagePath"), str):
        raise ValueError(f"{path} is not in LabelMe's format: it needs a list 'shapes' and an 'imagePath'")
    for number, shape in enumerate(content["shapes"]):
        if not isinstance(shape, dict) or not {"label", "points"} <= shape.keys():
            raise ValueError(f"{path}: shapes[{number}] has no 'label' or no 'points'; add it")


def _record(path: Path, content: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
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
    return {
        "file_name": str(file),
        "image_id": path.stem,
        "height": int(height),
        "width": int(width),
        "classes": sorted({a["category_id"] for a in annotations if not a["iscrowd"]}),
        "annotations": annotations,
    }


def _segmentation(shape: Mapping[str, Any], height: int, width: int) -> Any:
    """A shape as COCO's polygons or RLE."""
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
