"""The labels of a folder in other programs' formats; each writer yields files as (name, content)."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml
from PIL import Image

from .polygons import mask_polygons
from .records import ImageRecord

__all__ = ["FORMATS", "LabelSet", "OutputFile", "class_list", "file_stems", "json_bytes"]

OutputFile = tuple[str, bytes]  # name relative to the output folder, with "/"; content

# Of corners, off the upper left edge of their pixel: both rounding and truncation then give the pixel.
_INSIDE = 0.25
# Of LabelMe's outlines, which are there to be dragged by hand: pixels, by the root of the area.
_LABELME_TOLERANCE, _LEAST_TOLERANCE, _MOST_TOLERANCE = 0.005, 0.5, 1.5
_LABELME_VERSION = "5.4.1"


@dataclass(frozen=True)
class LabelSet:
    """What the writers write.

    Attributes:
        class_names: in the order of their numbers.
        records: in the order of their names.
        images: the folder that the records' names start from.
        output: the folder that files will lie in.
    """

    class_names: tuple[str, ...]
    records: tuple[ImageRecord, ...]
    images: Path
    output: Path


def file_stems(images: Sequence[str]) -> dict[str, str]:
    """Names without ending for files about images; where two would share one, both keep their ending.

    "a.jpg" and "b.png" become "a" and "b"; "a.jpg" beside "a.png" stays "a.jpg".
    """
    stems = {image: str(PurePosixPath(image).with_suffix("")) for image in images}
    count = Counter(stems.values())
    return {image: stem if count[stem] == 1 and stem not in stems else image for image, stem in stems.items()}


def json_bytes(content: Any) -> bytes:
    """JSON in ASCII, so that any file name survives any reader."""
    return (json.dumps(content, indent=1) + "\n").encode("ascii")


def class_list(class_names: Sequence[str]) -> bytes:
    """The classes, one a line, in the order of their numbers; a line break within a name becomes a blank."""
    return b"".join(os.fsencode(" ".join(name.splitlines()) + "\n") for name in class_names)


def _coco(labels: LabelSet) -> Iterator[OutputFile]:
    """COCO's instance format: an annotation for each object, masks as compressed RLE; ids count from 1."""
    images, annotations = [], []
    category = {name: number for number, name in enumerate(labels.class_names, start=1)}
    for image_id, record in enumerate(labels.records, start=1):
        size = {"height": record.height, "width": record.width}
        images.append({"id": image_id, "file_name": record.image, **size, "confidence": record.confidence})
        for item in record.objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category[item.class_name],
                    "segmentation": record.rle(item),
                    "area": item.area,
                    "bbox": list(item.bbox),
                    "iscrowd": 0,
                    "score": item.score,
                }
            )
    categories = [{"id": number, "name": name, "supercategory": ""} for name, number in category.items()]
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations}
    yield "coco/annotations.json", json_bytes({**content, "categories": categories})


def _png(labels: LabelSet) -> Iterator[OutputFile]:
    """A single-channel class map for each image: 0 background, i + 1 the class on line i of classes.txt."""
    yield "png/classes.txt", class_list(labels.class_names)
    stems = file_stems([record.image for record in labels.records])
    for record in labels.records:
        buffer = BytesIO()
        Image.fromarray(record.class_map(labels.class_names)).save(buffer, format="PNG")
        yield f"png/{stems[record.image]}.png", buffer.getvalue()


def _yolo(labels: LabelSet) -> Iterator[OutputFile]:
    """YOLO-seg: a line "class x y x y ..." for each object, as shares of the width and the height.

    Outlines are exact: truncated or rounded to pixels and filled by `cv2.fillPoly`, as YOLO's own programs
    do, they are the masks, each object a line by itself. COCO's rasteriser, which takes corners for edges of
    pixels, loses up to a pixel of the rim. The format knows no holes; they are joined to the outline, see
    `mask_polygons`. An image without objects has an empty file.
    """
    names = dict(enumerate(labels.class_names))
    listing = yaml.safe_dump({"path": ".", "train": "images", "val": "images", "names": names})
    yield "yolo/data.yaml", listing.encode()
    stems = file_stems([record.image for record in labels.records])
    for record in labels.records:
        lines = []
        for item in record.objects:
            for polygon in mask_polygons(record.mask(item)):
                shares = (polygon + _INSIDE) / (record.width, record.height)
                corners = " ".join(f"{value:.7f}" for value in shares.ravel())
                lines.append(f"{labels.class_names.index(item.class_name)} {corners}\n")
        yield f"yolo/labels/{stems[record.image]}.txt", "".join(lines).encode()


def _labelme(labels: LabelSet) -> Iterator[OutputFile]:
    """LabelMe: a JSON file for each image, a polygon for each object, simplified so that it can be edited.

    ``imagePath`` leads from the file to the image, whose pixels are not repeated in it.
    """
    stems = file_stems([record.image for record in labels.records])
    for record in labels.records:
        name = f"labelme/{stems[record.image]}.json"
        path = os.path.relpath(labels.images / record.image, (labels.output / name).parent)
        content = {
            "version": _LABELME_VERSION,
            "flags": {},
            "shapes": list(_labelme_shapes(record)),
            "imagePath": path.replace(os.sep, "/"),
            "imageData": None,
            "imageHeight": record.height,
            "imageWidth": record.width,
        }
        yield name, json_bytes(content)


def _labelme_shapes(record: ImageRecord) -> Iterator[dict[str, Any]]:
    for item in record.objects:
        tolerance = max(_LEAST_TOLERANCE, min(_MOST_TOLERANCE, _LABELME_TOLERANCE * item.area**0.5))
        for polygon in mask_polygons(record.mask(item), tolerance):
            yield {
                "label": item.class_name,
                "points": (polygon.astype(np.float64) + _INSIDE).tolist(),
                "group_id": None,
                "description": f"confidence {item.score:.3f}",
                "shape_type": "polygon",
                "flags": {},
            }


FORMATS: Mapping[str, Callable[[LabelSet], Iterator[OutputFile]]] = {
    "coco": _coco,
    "png": _png,
    "yolo": _yolo,
    "labelme": _labelme,
}
