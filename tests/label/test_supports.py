"""Annotations in all their forms."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from fss_d2.label.supports import read_supports
from tests.label.fakes import annotated_folder, picture, save

SQUARE = [[4, 6], [20, 6], [20, 30], [4, 30]]  # x, y


def square() -> np.ndarray:
    """The pixels (40, 50) of SQUARE."""
    mask = np.zeros((40, 50), np.uint8)
    mask[6:30, 4:20] = 1
    return mask


def labelme(root: Path, shapes: list[dict[str, Any]], name: str = "a", **more: Any) -> Path:
    """A picture and its LabelMe file."""
    save(root / "pictures" / f"{name}.png", picture({}))
    content = {
        "version": "5.4.1",
        "flags": {},
        "shapes": shapes,
        "imagePath": f"pictures\\{name}.png",  # as written on Windows
        "imageData": None,
        "imageHeight": 40,
        "imageWidth": 50,
    }
    path = root / f"{name}.json"
    path.write_text(json.dumps(content | more))
    return path


def shape(label: str, points: list[list[float]], kind: str = "polygon", **more: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, "flags": {}} | more


def test_class_folders(tmp_path: Path) -> None:
    before = DatasetCatalog.list()
    supports = read_supports(annotated_folder(tmp_path / "s", ("red", "blue"), 3))
    assert {name: len(many) for name, many in supports.items()} == {"blue": 3, "red": 3}
    first = supports["red"][0]
    assert first.name == "red/0" and first.image.shape == (40, 50, 3)
    assert first.files == (tmp_path / "s/red/images/0.png", tmp_path / "s/red/masks/0.png")
    assert first.mask[15, 20] == 1 and first.mask[0, 0] == 0
    assert DatasetCatalog.list() == before


def test_the_folder_of_one_class(tmp_path: Path) -> None:
    supports = read_supports(annotated_folder(tmp_path, ("red", "blue")) / "blue")
    assert list(supports) == ["blue"] and len(supports["blue"]) == 2


def test_images_beside_their_masks(tmp_path: Path) -> None:
    annotated_folder(tmp_path / "s", ("red", "blue"))
    for name in ("red", "blue"):
        (tmp_path / "t" / name).mkdir(parents=True)
        for i in range(2):
            (tmp_path / f"s/{name}/images/{i}.png").rename(tmp_path / f"t/{name}/{i}.png")
            (tmp_path / f"s/{name}/masks/{i}.png").rename(tmp_path / f"t/{name}/{i}_mask.png")
    supports = read_supports(tmp_path / "t")
    assert {name: [s.name for s in many] for name, many in supports.items()} == {
        "blue": ["blue/0", "blue/1"],
        "red": ["red/0", "red/1"],
    }
    first = supports["red"][0]
    assert first.files == (tmp_path / "t/red/0.png", tmp_path / "t/red/0_mask.png")
    assert first.image.shape == (40, 50, 3) and first.mask[15, 20] == 1 and first.mask[0, 0] == 0
    assert list(read_supports(tmp_path / "t/blue")) == ["blue"]


def test_coco(tmp_path: Path) -> None:
    save(tmp_path / "pictures/a.png", picture({}))
    outline = [value for corner in SQUARE for value in corner]
    content = {
        "images": [{"id": 7, "file_name": "a.png", "height": 40, "width": 50}],
        "categories": [{"id": 9, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 5, "name": "none"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 9, "segmentation": [outline], "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 3, "segmentation": [[30, 1, 40, 1, 40, 9, 30, 9]]},
        ],
    }
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(content))
    supports = read_supports(path, tmp_path / "pictures")
    assert list(supports) == ["cat", "dog"]  # one picture supports both
    np.testing.assert_array_equal(supports["dog"][0].mask, square())
    with pytest.raises(FileNotFoundError, match=r"a\.png does not exist"):
        read_supports(path)


def test_labelme_shapes(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 6), 255, np.uint8)).save(buffer, format="PNG")
    pasted = base64.b64encode(buffer.getvalue()).decode()
    labelme(
        tmp_path,
        [
            shape("_background_", SQUARE),  # no object is below it
            shape("polygon", SQUARE),
            shape("rectangle", [[20, 30], [4, 6]], "rectangle"),
            shape("circle", [[30, 20], [30, 30]], "circle"),
            shape("mask", [[44, 38], [50, 42]], "mask", mask=pasted),  # cut off at the lower edge
            shape("__ignore__", [[0, 0], [10, 0], [10, 10], [0, 10]]),
        ],
    )
    labelme(tmp_path, [shape("polygon", SQUARE)], "b", imageHeight=None, imageWidth=None)
    supports = read_supports(tmp_path)
    assert {name: len(many) for name, many in supports.items()} == {
        "circle": 1,
        "mask": 1,
        "polygon": 2,
        "rectangle": 1,
    }
    expected = square()
    expected[:10, :10] = 255  # painted last
    np.testing.assert_array_equal(supports["polygon"][0].mask, expected)
    np.testing.assert_array_equal(supports["rectangle"][0].mask, expected)
    np.testing.assert_array_equal(supports["polygon"][1].mask, square())
    assert (supports["circle"][0].mask == 1).sum() == pytest.approx(np.pi * 100, rel=0.03)
    assert np.argwhere(supports["mask"][0].mask == 1).min(axis=0).tolist() == [38, 44]
    assert (supports["mask"][0].mask == 1).sum() == 12


def test_a_single_labelme_file(tmp_path: Path) -> None:
    supports = read_supports(labelme(tmp_path, [shape("cat", SQUARE)]))
    np.testing.assert_array_equal(supports["cat"][0].mask, square())


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([shape("cat", [[1, 1]], "point")], r"shapes\[0\] \(cat\) cannot be drawn: a point of 1 points"),
        ([{"label": "cat"}], r"shapes\[0\] has no 'label' or no 'points'"),
        ([shape("cat", SQUARE, "mask")], "a mask of 4 points"),
        ([], "annotates no object"),
    ],
)
def test_what_is_wrong_in_labelme(tmp_path: Path, shapes: list[dict[str, Any]], message: str) -> None:
    labelme(tmp_path, shapes)
    with pytest.raises(ValueError, match=message):
        read_supports(tmp_path)


def test_what_is_no_annotation(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist; give a folder"):
        read_supports(tmp_path / "gone")
    with pytest.raises(ValueError, match="holds no image: add images with their masks"):
        read_supports(tmp_path)
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match=r"x\.json is not valid JSON"):
        read_supports(tmp_path)
    for content, message in (
        ("[]", "holds a JSON list, not an object"),
        ("{}", "neither COCO's nor LabelMe's"),
    ):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(ValueError, match=rf"x\.json .*{message}.*give a folder with"):
            read_supports(tmp_path / "x.json")
