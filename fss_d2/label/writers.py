"""Label files in the formats of other programs; each writer yields (name, content)."""

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
import yaml
from PIL import Image

from fss_d2.io.files import shortened

from .output import ImageRecord, OutputFile, json_bytes

__all__ = ["FORMATS", "LabelSet", "check_class_names", "class_list", "file_stems", "first_alike"]
__all__ += ["format_problem", "mask_polygons", "one_stem"]

# Added to polygon corners, which are whole pixels: rounding and truncation then both return the same pixel.
_INSIDE = 0.25
# How far a simplified LabelMe outline may be off: a share of the square root of the area, within two limits
# in pixels.
_LABELME_TOLERANCE, _LEAST_TOLERANCE, _MOST_TOLERANCE = 0.005, 0.5, 1.5
_LABELME_VERSION = "5.4.1"
# YOLO takes an image without a label file for one without objects.
_YOLO_NOTE = """\
# Copy or link the folder of photographs to the folder images next to this file. images.txt lists those that
# have labels: the supports, and images that were left out, have none.
"""


@dataclass(frozen=True)
class LabelSet:
    """What the writers write."""

    class_names: tuple[str, ...]  # in the order of the class numbers
    records: tuple[ImageRecord, ...]  # in the order of the image names
    images: Path  # the folder that image names are relative to
    output: Path  # the folder that the files are written to


def file_stems(images: Sequence[str]) -> dict[str, str]:
    """Image names without their ending, for files about the images; two equal stems both keep the ending.

    "a.jpg" and "b.png" become "a" and "b"; "a.jpg" next to "a.png" stays "a.jpg". Stems that differ in case
    only are equal, because the files of both may go to a file system that ignores case.
    """
    stems = {image: _stem(image) for image in images}
    count, taken = Counter(map(_alike, stems.values())), set(map(_alike, images))
    return {
        image: stem if count[_alike(stem)] == 1 and _alike(stem) not in taken else image
        for image, stem in stems.items()
    }


def first_alike(names: Iterable[str]) -> tuple[str, str] | None:
    """The first two names that are one on a file system that ignores case; None if there are none."""
    return _first_pair(names, _alike)


def format_problem(file_format: str, images: Sequence[str]) -> str:
    """Why a format cannot be written for images, with the fix; "" if it can.

    YOLO lists images one per line. It finds the labels of an image by its path, in which the last folder
    "images" becomes "labels", without the ending, so that two images of a folder may share one file.
    """
    if file_format != "yolo":
        return ""
    if broken := next((image for image in images if len(image.splitlines()) > 1), None):
        return f"YOLO lists images one per line, and the name {shortened(broken)} has a line break: rename it"
    if inside := next((image for image in images if "images" in PurePosixPath(image).parts[:-1]), None):
        what = f"{shortened(inside)} lies in a folder named images"
        return f"{what}, so that YOLO looks for its labels in a folder labels next to that: rename the folder"
    if pair := one_stem(images):
        both = " and ".join(map(shortened, pair))
        return f"{both} would share the label file {shortened(_stem(pair[0]))}.txt: rename one of them"
    return ""


def one_stem(images: Iterable[str]) -> tuple[str, str] | None:
    """The first two images that differ only in their ending; None if there are none."""
    return _first_pair(images, _stem)


def _first_pair(names: Iterable[str], key: Callable[[str], str]) -> tuple[str, str] | None:
    """The first two names with one key."""
    seen: dict[str, str] = {}
    for name in names:
        if (other := seen.setdefault(key(name), name)) is not name:
            return other, name
    return None


def check_class_names(class_names: Sequence[str]) -> None:
    """Raise ValueError for a class that lists of classes cannot hold: no name, or the name of another one."""
    seen: dict[str, str] = {}
    for name in class_names:
        line = _one_line(name)
        if not line.strip():
            raise ValueError(f"a class has the name {name!r}, which shows nothing: rename it in the supports")
        if (other := seen.setdefault(line, name)) is not name:
            pair = f"{shortened(repr(other))} and {shortened(repr(name))}"
            raise ValueError(f"the classes {pair} are one name in a list of classes: rename one of them")


def class_list(class_names: Sequence[str]) -> bytes:
    """The class names, one per line, in the order of their numbers; line breaks in names become spaces."""
    return b"".join(os.fsencode(_one_line(name) + "\n") for name in class_names)


def _one_line(name: str) -> str:
    return " ".join(name.splitlines())


def _stem(image: str) -> str:
    return str(PurePosixPath(image).with_suffix(""))


def _alike(name: str) -> str:
    """The same for names that some file systems do not distinguish: by case, or by how an accent is coded."""
    return unicodedata.normalize("NFC", name).casefold()


def _coco(labels: LabelSet) -> Iterator[OutputFile]:
    """COCO's instance format: one annotation per object, masks as compressed RLE, ids from 1."""
    images, annotations = [], []
    category = {name: number for number, name in enumerate(labels.class_names, start=1)}
    for image_id, record in enumerate(labels.records, start=1):
        size = {"height": record.height, "width": record.width}
        known = {"expected_iou": record.lowest_iou, "presence": dict(record.presence)}
        images.append({"id": image_id, "file_name": record.image, **size, **known})
        for item in record.objects:
            ids = {"id": len(annotations) + 1, "image_id": image_id, "category_id": category[item.class_name]}
            box = {"area": item.area, "bbox": list(item.bbox), "iscrowd": 0, "score": item.score}
            annotations.append({**ids, "segmentation": record.rle(item), **box})
    categories = [{"id": number, "name": name, "supercategory": ""} for name, number in category.items()]
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations}
    yield "coco/annotations.json", json_bytes({**content, "categories": categories})


def _png(labels: LabelSet) -> Iterator[OutputFile]:
    """A single-channel class map per image: 0 background, i + 1 the class on line i of classes.txt."""
    yield "png/classes.txt", class_list(labels.class_names)
    stems = file_stems([record.image for record in labels.records])
    for record in labels.records:
        buffer = BytesIO()
        Image.fromarray(record.class_map(labels.class_names)).save(buffer, format="PNG")
        yield f"png/{stems[record.image]}.png", buffer.getvalue()


def _yolo(labels: LabelSet) -> Iterator[OutputFile]:
    """YOLO-seg: a line "class x y x y ..." per object, coordinates as shares of the width and the height.

    Outlines are exact: rounded or truncated to pixels and filled by `cv2.fillPoly`, as YOLO's own programs
    do, each line gives back the mask of its object. COCO's rasteriser takes corners for pixel edges and loses
    up to one pixel of the rim. The format has no holes; `mask_polygons` joins them to the outline. An image
    without objects has an empty file. The labels of images/a.jpg are in labels/a.txt, as YOLO expects; images
    for which that cannot be (`format_problem`) raise ValueError. Without "path", Ultralytics starts at the
    folder of data.yaml.
    """
    images = [record.image for record in labels.records]
    if problem := format_problem("yolo", images):
        raise ValueError(f"yolo: {problem}")
    names = dict(enumerate(labels.class_names))
    listing = yaml.safe_dump({"train": "images.txt", "val": "images.txt", "names": names}, sort_keys=False)
    yield "yolo/data.yaml", (_YOLO_NOTE + listing).encode()
    yield "yolo/images.txt", b"".join(os.fsencode(f"./images/{image}\n") for image in images)
    for record in labels.records:
        lines = []
        for item in record.objects:
            for polygon in mask_polygons(record.mask(item)):
                shares = (polygon + _INSIDE) / (record.width, record.height)
                corners = " ".join(f"{value:.7f}" for value in shares.ravel())
                lines.append(f"{labels.class_names.index(item.class_name)} {corners}\n")
        yield f"yolo/labels/{_stem(record.image)}.txt", "".join(lines).encode()


def _labelme(labels: LabelSet) -> Iterator[OutputFile]:
    """LabelMe: a JSON file per image, a polygon per object, simplified so that it can be edited by hand.

    ``imagePath`` leads from the file to the image; the image itself is not copied into it.
    """
    stems = file_stems([record.image for record in labels.records])
    for record in labels.records:
        name = f"labelme/{stems[record.image]}.json"
        path = os.path.relpath(labels.images / record.image, (labels.output / name).parent)
        content = {"version": _LABELME_VERSION, "flags": {}, "shapes": list(_labelme_shapes(record))}
        content |= {"imagePath": path.replace(os.sep, "/"), "imageData": None}
        yield name, json_bytes({**content, "imageHeight": record.height, "imageWidth": record.width})


def _labelme_shapes(record: ImageRecord) -> Iterator[dict[str, Any]]:
    for item in record.objects:
        tolerance = max(_LEAST_TOLERANCE, min(_MOST_TOLERANCE, _LABELME_TOLERANCE * item.area**0.5))
        for polygon in mask_polygons(record.mask(item), tolerance):
            points = (polygon.astype(np.float64) + _INSIDE).tolist()
            shape = {"label": item.class_name, "points": points, "group_id": None}
            text = f"expected IoU {record.expected_iou[item.class_name]:.3f}"
            shape |= {"description": text, "shape_type": "polygon", "flags": {}}
            yield shape


Writer = Callable[[LabelSet], Iterator[OutputFile]]
FORMATS: Mapping[str, Writer] = {"coco": _coco, "png": _png, "yolo": _yolo, "labelme": _labelme}


def mask_polygons(mask: np.ndarray, tolerance: float = 0.0) -> list[np.ndarray]:
    """Trace a mask (H, W) bool: one closed polygon per 8-connected component, in linear time.

    Corners are pixels of the mask, as OpenCV traces and fills them: with ``tolerance`` 0, `cv2.fillPoly` of
    all polygons gives the mask back. A hole is joined to the outline on its left by a bridge (the same edge
    forth and back), so that one polygon holds it all under the even-odd and the non-zero rule alike.

    Returns:
        (N, 2) int64 corners x, y per component; simplified outlines are off by ``tolerance`` pixels at most.
        N is at least 3; corners repeat where a component is thinner.
    """
    image = mask.astype(np.uint8)
    left, top, width, height = cv2.boundingRect(image)
    if not width:
        return []
    image = image[top : top + height, left : left + width]
    contours, tree = cv2.findContours(image, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    outlines = [contour[:, 0].astype(np.int64) for contour in contours]  # (N, 2)
    parents: list[int] = tree[0, :, 3].tolist()  # -1 for an outer outline, the outer one's index for a hole
    polygons = _join_holes(outlines, parents, image) if max(parents) >= 0 else outlines
    return [_simplified(polygon, tolerance) + np.array([left, top]) for polygon in polygons]


def _join_holes(
    outlines: Sequence[np.ndarray], parents: Sequence[int], image: np.ndarray
) -> list[np.ndarray]:
    """The outer outlines (N, 2) with the outlines of their holes joined in by bridges.

    All corners are nodes of rings that are linked lists. A bridge between two rings swaps the successors of
    its two ends; each end is visited twice, so that it gets a second node.
    """
    points = np.concatenate(outlines)
    first = np.cumsum([0, *map(len, outlines)]).tolist()  # index in `points` of each outline's first corner
    ring_of = np.repeat(np.arange(len(outlines)), np.diff(first))
    nodes = {key: i for i, key in enumerate(zip(ring_of.tolist(), *points.T.tolist(), strict=True))}
    following = list(range(1, len(points) + 1))
    for index, outline in enumerate(outlines):
        following[first[index] + len(outline) - 1] = first[index]
    places = list(range(len(points)))  # of each node, its index in `points`
    for corner, other in _bridges(outlines, parents, image):
        here, there = nodes[corner], nodes[other]
        following += [following[here], following[there]]
        places += [here, there]
        following[here], following[there] = len(places) - 1, len(places) - 2
    joined = []
    for start in (first[index] for index, parent in enumerate(parents) if parent < 0):
        ring = [start]
        while (node := following[ring[-1]]) != start:
            ring.append(node)
        joined.append(points[np.take(places, ring)])
    return joined


def _bridges(
    outlines: Sequence[np.ndarray], parents: Sequence[int], image: np.ndarray
) -> Iterator[tuple[tuple[int, int, int], tuple[int, int, int]]]:
    """For each hole the two ends of its bridge, as (outline, x, y); the hole's own end comes second.

    A bridge runs to the left from the hole's leftmost corner, over pixels of the mask, up to the background.
    That is outside of the component, or a hole further left, so that the bridges form a tree.
    """
    holes = [index for index, parent in enumerate(parents) if parent >= 0]
    x, y = np.array([outlines[hole][outlines[hole][:, 0].argmin()] for hole in holes]).T
    _, regions = cv2.connectedComponents(1 - image, connectivity=4)  # of the background
    hole_of = dict(zip(regions[y, x + 1].tolist(), holes, strict=True))
    after_background = np.where(image, 0, np.arange(1, image.shape[1] + 1))
    ends = np.maximum.accumulate(after_background, axis=1)[y, x]
    beyond = np.where(ends > 0, regions[y, ends - 1], 0)  # 0: the picture's edge
    ways = (x.tolist(), y.tolist(), ends.tolist(), beyond.tolist())
    for hole, start, row, end, region in zip(holes, *ways, strict=True):
        target = hole_of.get(region, -1)
        if target < 0 or parents[target] != parents[hole]:
            target = parents[hole]
        yield (target, end, row), (hole, start, row)


def _simplified(outline: np.ndarray, tolerance: float) -> np.ndarray:
    """Drop corners on straight lines, or all that ``tolerance`` allows; keep at least 3."""
    if tolerance > 0:
        kept = cv2.approxPolyDP(outline.astype(np.int32)[:, None], tolerance, closed=True)[:, 0]
        if len(kept) >= 3:
            return kept.astype(np.int64)
    # A step leads to a neighbour or along a row: equal signs mean one direction. Turning back keeps a corner.
    before = np.sign(outline - np.roll(outline, 1, axis=0))
    after = np.sign(np.roll(outline, -1, axis=0) - outline)
    kept = outline[(before != after).any(axis=1) | (outline == outline[0]).all(axis=1)]
    return kept if len(kept) >= 3 else np.resize(kept, (3, 2))
