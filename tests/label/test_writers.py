"""Each format, read back by its own tool."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw
from pycocotools.coco import COCO

from fss_d2.inference.prediction import Prediction
from fss_d2.label.output import ImageRecord, record_of
from fss_d2.label.writers import (
    FORMATS,
    LabelSet,
    check_class_names,
    file_stems,
    first_alike,
    format_problem,
)
from tests.label.fakes import disc

NAMES = ("cat", "übergroßer Hund")
SIZE = (90, 120)


def record(image: str, *masks: np.ndarray) -> ImageRecord:
    """A record with one mask (H, W) per class."""
    shape = masks[0].shape if masks else SIZE
    full = [masks[i] if i < len(masks) else np.zeros(shape, bool) for i in range(2)]
    probability = np.stack(full).astype(np.float32) * 0.8 + 0.1
    labels = np.select(full, [1, 2], 0).astype(np.uint8)
    return record_of(image, Prediction(NAMES, probability, labels), 0)


CAT = disc(SIZE, (30, 35), 25)
CAT_PIECES = CAT | disc(SIZE, (70, 100), 12)
DOG = disc(SIZE, (60, 80), 20) & ~disc(SIZE, (60, 80), 8) & ~CAT


@pytest.fixture
def labels(tmp_path: Path) -> LabelSet:
    """Two objects of a class, one with a hole; an empty image; equal names in subfolders; a stem twice."""
    records = (
        record("a/photo.jpg", CAT_PIECES, DOG & ~CAT_PIECES),
        record("b/photo.jpg"),
        record("b/photo.png", DOG),
        record("日本 é.jpg", CAT),
    )
    return LabelSet(NAMES, records, tmp_path / "images", tmp_path / "out")


@pytest.fixture
def out(labels: LabelSet) -> Path:
    """All formats, written."""
    for name, write in FORMATS.items():
        for file, content in write(yolo_labels(labels) if name == "yolo" else labels):
            assert file.startswith(f"{name}/")
            path = labels.output / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return labels.output


def yolo_labels(labels: LabelSet) -> LabelSet:
    """Without the image whose label file would be that of another one."""
    return replace(labels, records=tuple(r for r in labels.records if r.image != "b/photo.png"))


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


def test_coco_by_pycocotools(labels: LabelSet, out: Path) -> None:
    coco = COCO(out / "coco/annotations.json")
    assert {i["file_name"]: (i["height"], i["width"]) for i in coco.loadImgs(coco.getImgIds())} == {
        r.image: SIZE for r in labels.records
    }
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(NAMES)
    for image_id, item in zip(coco.getImgIds(), labels.records, strict=True):
        class_map = item.class_map(NAMES)
        for category in (1, 2):
            annotations = coco.loadAnns(coco.getAnnIds(imgIds=image_id, catIds=category))
            union = np.zeros(SIZE, bool)
            for annotation in annotations:
                mask = coco.annToMask(annotation).astype(bool)
                assert annotation["area"] == mask.sum()
                ys, xs = np.nonzero(mask)
                width, height = np.ptp(xs) + 1, np.ptp(ys) + 1
                assert annotation["bbox"] == [xs.min(), ys.min(), width, height]
                assert annotation["score"] == pytest.approx(0.9, abs=1e-6)
                union |= mask
            np.testing.assert_array_equal(union, class_map == category)
    assert len(coco.getAnnIds(imgIds=1, catIds=1)) == 2  # an annotation for each object
    assert coco.getAnnIds(imgIds=2) == []


def test_png_by_pillow_and_opencv(labels: LabelSet, out: Path) -> None:
    assert (out / "png/classes.txt").read_text(encoding="utf-8").splitlines() == list(NAMES)
    expected = {"a/photo": 0, "b/photo.jpg": 1, "b/photo.png": 2, "日本 é": 3}
    assert {p.relative_to(out / "png").as_posix() for p in out.glob("png/**/*.png")} == {
        f"{stem}.png" for stem in expected
    }
    for stem, number in expected.items():
        file = out / f"png/{stem}.png"
        np.testing.assert_array_equal(np.asarray(Image.open(file)), labels.records[number].class_map(NAMES))
        raw = cv2.imdecode(np.fromfile(file, np.uint8), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(raw, labels.records[number].class_map(NAMES))
    values = labels.records[0].class_map(NAMES)
    np.testing.assert_array_equal(values == 1, CAT_PIECES)


def yolo_label_file(image: str) -> str:
    """Where YOLO looks for the labels of an image (`img2label_paths` of Ultralytics)."""
    labels = "/labels/".join(f"/yolo/{image}".rsplit("/images/", 1)).rsplit(".", 1)[0] + ".txt"
    return labels.removeprefix("/yolo/")


@pytest.mark.parametrize("to_pixels", [np.trunc, np.rint])
def test_yolo_by_opencv(labels: LabelSet, out: Path, to_pixels: np.ufunc) -> None:
    """Filling line by line gives the masks back, holes included."""
    listing = yaml.safe_load((out / "yolo/data.yaml").read_text(encoding="utf-8"))
    assert listing["names"] == dict(enumerate(NAMES))
    records = yolo_labels(labels).records
    assert listing["train"] == listing["val"] == "images.txt" and "path" not in listing
    listed = (out / "yolo/images.txt").read_text(encoding="utf-8").splitlines()
    assert listed == [f"./images/{item.image}" for item in records]
    for item in records:
        filled = np.zeros((2, *SIZE), np.uint8)
        lines = (out / "yolo" / yolo_label_file(f"images/{item.image}")).read_text().splitlines()
        assert len(lines) == len(item.objects)
        for line in lines:
            class_id, *shares = line.split()
            corners = np.array(shares, np.float64).reshape(-1, 2)
            assert len(corners) >= 3 and corners.min() >= 0 and corners.max() <= 1
            pixels = to_pixels(corners * (SIZE[1], SIZE[0])).astype(np.int32)
            cv2.fillPoly(filled[int(class_id)], [pixels], 1)
        for class_id in range(2):
            np.testing.assert_array_equal(filled[class_id] == 1, item.class_map(NAMES) == class_id + 1)


# Fields of LabelMe 5: (type or types, required).
_FILE_FIELDS: dict[str, Any] = {
    "version": str,
    "flags": dict,
    "shapes": list,
    "imagePath": str,
    "imageData": (str, type(None)),
    "imageHeight": int,
    "imageWidth": int,
}
_SHAPE_FIELDS: dict[str, Any] = {
    "label": str,
    "points": list,
    "group_id": (int, type(None)),
    "description": (str, type(None)),
    "shape_type": str,
    "flags": dict,
}


def check_fields(content: dict[str, Any], fields: dict[str, Any]) -> None:
    assert content.keys() == fields.keys()
    for name, kind in fields.items():
        assert isinstance(content[name], kind), name


def test_labelme_by_its_schema_and_its_own_drawing(labels: LabelSet, out: Path) -> None:
    """LabelMe draws polygons with Pillow; the file leads to its image."""
    stems = file_stems([r.image for r in labels.records])
    for item in labels.records:
        path = out / f"labelme/{stems[item.image]}.json"
        content = json.loads(path.read_bytes())
        check_fields(content, _FILE_FIELDS)
        assert (path.parent / content["imagePath"]).resolve() == (labels.images / item.image).resolve()
        assert (content["imageHeight"], content["imageWidth"]) == SIZE
        drawn = {name: Image.new("1", SIZE[::-1]) for name in NAMES}
        for shape in content["shapes"]:
            check_fields(shape, _SHAPE_FIELDS)
            assert shape["shape_type"] == "polygon" and len(shape["points"]) >= 3
            assert all(0 <= x <= SIZE[1] and 0 <= y <= SIZE[0] for x, y in shape["points"])
            points = [tuple(point) for point in shape["points"]]
            ImageDraw.Draw(drawn[shape["label"]]).polygon(points, outline=1, fill=1)
        assert len(content["shapes"]) == len(item.objects)
        for number, name in enumerate(NAMES, start=1):
            truth = item.class_map(NAMES) == number
            assert not truth.any() or overlap(np.array(drawn[name]), truth) > 0.99


def test_labelme_outline_of_a_large_object_is_close(tmp_path: Path) -> None:
    mask = disc((600, 600), (300, 300), 250)
    labels = LabelSet(NAMES, (record("x.jpg", mask),), tmp_path, tmp_path / "out")
    ((_, content),) = FORMATS["labelme"](labels)
    (shape,) = json.loads(content)["shapes"]
    drawn = Image.new("1", (600, 600))
    ImageDraw.Draw(drawn).polygon([tuple(point) for point in shape["points"]], outline=1, fill=1)
    assert overlap(np.array(drawn), mask) > 0.99


@pytest.mark.parametrize(
    ("images", "problem"),
    [
        (["p.jpg", "sub/p.png", "P.png", "q.jpg"], ""),
        (["p.v1.jpg", "p.v2.jpg"], ""),
        (["p.jpg", "p.png"], "p.jpg and p.png would share the label file p.txt: rename one of them"),
        (
            ["a/b.bmp", "a/b.JPG"],
            "a/b.bmp and a/b.JPG would share the label file a/b.txt: rename one of them",
        ),
        (["my images/a.jpg", "Images/b.jpg", "images.jpg"], ""),
        (
            ["a.jpg", "b/images/c.jpg"],
            "b/images/c.jpg lies in a folder named images, so that YOLO looks for its labels in a folder "
            "labels next to that: rename the folder",
        ),
        (
            ["a.jpg", "b\nc.jpg"],
            r"YOLO lists images one per line, and the name b\nc.jpg has a line break: rename it",
        ),
    ],
)
def test_what_yolo_cannot_hold(images: list[str], problem: str, tmp_path: Path) -> None:
    assert format_problem("yolo", images) == problem
    assert [format_problem(name, images) for name in FORMATS if name != "yolo"] == [""] * 3
    labels = LabelSet(NAMES, tuple(record(image) for image in images), tmp_path, tmp_path / "out")
    if problem:
        with pytest.raises(ValueError) as error:
            list(FORMATS["yolo"](labels))
        assert str(error.value) == f"yolo: {problem}"
    else:
        files = dict(FORMATS["yolo"](labels))
        assert {f"yolo/{yolo_label_file(f'images/{image}')}" for image in images} < files.keys()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a b", "a\nb"], r"the classes 'a b' and 'a\\nb' are one name in a list of classes: rename one"),
        (["cat", " "], "a class has the name ' ', which shows nothing: rename it in the supports"),
        (["cat", "\n"], r"a class has the name '\\n', which shows nothing"),
    ],
)
def test_class_names_that_a_list_cannot_hold(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_class_names(names)
    check_class_names(["cat", "Cat", ".cat", "a/b", os.fsdecode(b"bad\xff")])


def test_names_that_are_one_where_case_does_not_count() -> None:
    assert first_alike(["a.jpg", "b.jpg", "A.JPG"]) == ("a.jpg", "A.JPG")
    assert first_alike(["e\u0301.jpg", "\xe9.jpg"]) == ("e\u0301.jpg", "\xe9.jpg")
    assert first_alike(["a.jpg", "a.png"]) is None
    stems = file_stems(["a.jpg", "A.png", "b.jpg"])
    assert list(stems.values()) == ["a.jpg", "A.png", "b"]


def test_stems_are_unique() -> None:
    names = ["a.jpg", "a.png", "a.jpg.png", "b.jpg", "sub/a.jpg"]
    stems = file_stems(names)
    assert stems["b.jpg"] == "b" and stems["sub/a.jpg"] == "sub/a"
    assert stems["a.jpg"] == "a.jpg" and stems["a.png"] == "a.png"
    assert len(set(stems.values())) == len(names)


def test_an_image_counts_by_the_worst_of_its_classes() -> None:
    probability = np.full((2, 4, 4), 0.1, np.float32)
    probability[0, 0, :2] = 0.9, 0.7  # cat: mean 0.8
    probability[1, 2, :3] = 0.6, 0.6, 0.9  # dog: mean 0.7
    labels = np.zeros((4, 4), np.uint8)
    labels[0, :2], labels[2, :3] = 1, 2
    presence = {NAMES[0]: 0.1, NAMES[1]: 0.8}
    prediction = Prediction(NAMES, probability, labels, {NAMES[0]: 0.3, NAMES[1]: 0.75}, presence)
    both = record_of("x", prediction, 0)
    assert both.expected_iou == pytest.approx({NAMES[0]: 0.03, NAMES[1]: 0.6}) and both.lowest_iou == 0.03
    one = record_of("x", prediction, 3)  # the cat is too small, and is probably not there
    assert one.class_names == (NAMES[1],)
    assert one.expected_iou == pytest.approx({NAMES[0]: 0.9, NAMES[1]: 0.6}) and one.lowest_iou == 0.6
    nothing = record_of("x", prediction, 4)  # too small, and probably there: the image needs a review
    assert nothing.objects == () and nothing.lowest_iou == pytest.approx(0.2)
    empty = Prediction(
        NAMES, np.full((2, 4, 4), 0.2, np.float32), np.zeros((4, 4), np.uint8), {}, dict.fromkeys(NAMES, 0.3)
    )
    assert record_of("x", empty, 0).lowest_iou == pytest.approx(0.7)
    # Without an estimate, how well mask and probability agree: 1.6 of 2 + 14 * 0.1, 2.1 of 3 + 13 * 0.1.
    plain = record_of("x", Prediction(NAMES, probability, labels), 0)
    assert plain.expected_iou == pytest.approx({NAMES[0]: 1.6 / 3.4, NAMES[1]: 2.1 / 4.3}, abs=1e-6)


def test_the_check_shifts_what_was_found_only() -> None:
    found = record("x", CAT)
    up = found.shifted({NAMES[0]: 1.0})
    odds = found.lowest_iou / (1 - found.lowest_iou)
    assert up.lowest_iou == pytest.approx(odds * np.e / (1 + odds * np.e), abs=1e-6)
    assert found.shifted({}) == found.shifted({NAMES[1]: 1.0}) == found
    nothing = record("x")
    assert nothing.shifted({NAMES[0]: 1.0}) == nothing
