"""Miniature archives in the layout of the official ones."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from scipy.io import savemat

from fss_d2.data.datasets import coco20i

SIZE = (60, 80)  # height, width of every PASCAL image
AEROPLANE, BICYCLE, BUS = 1, 2, 6  # 1-based


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Modification time and content of every file under a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes()) for p in files}


def blocks(*rectangles: tuple[int, int, int]) -> np.ndarray:
    """A label of SIZE painted with (value, first row, rows): full-width stripes of 80 pixels a row."""
    label = np.zeros(SIZE, dtype=np.uint8)
    for value, first, rows in rectangles:
        label[first : first + rows] = value
    return label


# Image -> label. 26 rows are 2080 pixels (counted), 25 rows 2000 (too small).
VOC_TRAIN = {
    "2007_000001": blocks((AEROPLANE, 0, 26), (255, 26, 2), (BUS, 30, 25)),
    "2007_000002": blocks((BUS, 0, 30), (BICYCLE, 40, 1)),
}
VOC_VAL = {
    "2007_000003": blocks((AEROPLANE, 0, 26), (BUS, 26, 26), (255, 55, 5)),
    "2007_000004": blocks((BICYCLE, 0, 25)),
}
# 2007_000001 is VOC's too and says another thing here; 2007_000003 is in VOC's val.
SBD_TRAIN = {"2007_000001": blocks((BICYCLE, 0, 60)), "2008_000005": blocks((BUS, 0, 40))}
SBD_VAL = {"2007_000003": blocks((BUS, 0, 60)), "2008_000006": blocks((BICYCLE, 0, 50))}


def write_voc(root: Path) -> None:
    """VOC 2012 and SBD: six images; VOC's main task has 2008_000006 in its val."""
    voc = root / "VOCdevkit/VOC2012"
    sbd = root / "SBD/benchmark_RELEASE/dataset"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation", "ImageSets/Main"):
        (voc / folder).mkdir(parents=True)
    (sbd / "cls").mkdir(parents=True)
    for image_id in {**VOC_TRAIN, **VOC_VAL, **SBD_TRAIN, **SBD_VAL}:
        Image.new("RGB", SIZE[::-1], (90, 60, 30)).save(voc / "JPEGImages" / f"{image_id}.jpg")
    for split, labels in (("train", VOC_TRAIN), ("val", VOC_VAL)):
        (voc / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(labels) + "\n")
        for image_id, label in labels.items():
            image = Image.fromarray(label).convert("P")
            image.putpalette([(7 * i) % 256 for i in range(768)])
            image.save(voc / "SegmentationClass" / f"{image_id}.png")
    for split, labels in (("train", SBD_TRAIN), ("val", SBD_VAL)):
        (sbd / f"{split}.txt").write_text("\n".join(labels) + "\n")
        for image_id, label in labels.items():
            savemat(sbd / "cls" / f"{image_id}.mat", {"GTcls": {"Segmentation": label}})
    (voc / "ImageSets/Main/val.txt").write_text("2007_000003\n2007_000004\n2008_000006\n")


def box(left: float, top: float, width: float, height: float) -> list[float]:
    """A rectangle as a COCO polygon."""
    return [left, top, left + width, top, left + width, top + height, left, top + height]


def write_instances(root: Path, image_set: str, annotations: list[dict[str, Any]], images: list[int]) -> None:
    """An instances JSON of COCO's 80 categories, and its images (100 x 120) with empty ones among them."""
    names = {c: coco20i.CLASS_NAMES[i] for c, i in coco20i.CATEGORY_IDS.items()}
    is_2014 = image_set.endswith("2014")
    entries = [
        {
            "id": i,
            "file_name": f"COCO_{image_set}_{i:012d}.jpg" if is_2014 else f"{i:012d}.jpg",
            "height": 100,
            "width": 120,
        }
        for i in images
    ]
    content = {
        "images": entries,
        "annotations": [{"id": n, "iscrowd": 0, **a} for n, a in enumerate(annotations, start=1)],
        "categories": [{"id": i, "name": name} for i, name in names.items()],
    }
    path = root / "coco/annotations" / f"instances_{image_set}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    (root / "coco" / image_set).mkdir(parents=True, exist_ok=True)
    for entry in entries:
        cv2.imwrite(str(root / "coco" / image_set / entry["file_name"]), np.full((100, 120, 3), 99, np.uint8))


def crowd_rle(rows: int) -> dict[str, Any]:
    """Uncompressed RLE of the first ``rows`` rows of a 100 x 120 image."""
    return {"size": [100, 120], "counts": [0] + [rows, 100 - rows] * 120}


# COCO's category ids 1 person, 2 bicycle, 3 car (our classes 0, 1, 2; interleaved folds 0, 1, 2).
COCO_TRAIN = [
    {"image_id": 9, "category_id": 1, "segmentation": [box(0, 0, 60, 60)]},
    {"image_id": 9, "category_id": 2, "segmentation": [box(0, 0, 50, 50)]},
    {"image_id": 9, "category_id": 2, "segmentation": [box(90, 80, 10, 10)]},
    {"image_id": 9, "category_id": 3, "segmentation": crowd_rle(90), "iscrowd": 1},
    {"image_id": 4, "category_id": 3, "segmentation": [box(10, 10, 45, 45)]},
]
COCO_VAL = [
    {"image_id": 11, "category_id": 1, "segmentation": [box(0, 0, 50, 50)]},
    {"image_id": 12, "category_id": 1, "segmentation": [box(0, 0, 70, 40)]},
    {"image_id": 12, "category_id": 2, "segmentation": [box(0, 50, 70, 40)]},
    {"image_id": 13, "category_id": 2, "segmentation": [box(0, 0, 40, 40)]},
]


def write_coco(root: Path) -> None:
    """COCO 2014: images 4, 9 (overlap, crowd) and 5 (empty) to train; 11, 12, 13 to validate."""
    write_instances(root, "train2014", COCO_TRAIN, [9, 5, 4])
    write_instances(root, "val2014", COCO_VAL, [13, 12, 11])


def write_coco_2017(root: Path) -> None:
    """The same images and objects as COCO 2017."""
    write_instances(root, "train2017", COCO_TRAIN, [9, 5, 4])
    write_instances(root, "val2017", COCO_VAL, [13, 12, 11])


def write_fss(root: Path) -> None:
    """Seven classes of three 4 x 1 images; ``names/`` splits them into 3, 2 and 2."""
    splits = {"trn": ["zebra", "kite", "pin"], "val": ["lamp", "oak"], "test": ["pear", "apple"]}
    (root / "names").mkdir()
    for split, classes in splits.items():
        (root / "names" / f"{split}.txt").write_text("\n".join(classes) + "\n")
        for name in classes:
            folder = root / "fss1000" / name
            folder.mkdir(parents=True)
            for number in (1, 2, 10):
                Image.new("RGB", (4, 1), (200, 10, 10)).save(folder / f"{number}.jpg")
                grey = np.array([[0, 127, 128, 255]], np.uint8)
                Image.fromarray(grey).convert("RGB").save(folder / f"{number}.png")
