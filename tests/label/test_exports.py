"""COCO files as annotation programs export them, read as supports."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fss_d2.label.supports import Support, read_supports

SIZE = (48, 64)
SQUARE = [20, 10, 40, 10, 40, 30, 20, 30]  # 400 pixels
OTHER = [45, 10, 60, 10, 60, 25, 45, 25]  # 225 pixels

Row = dict[str, Any]


def photo(path: Path, size: tuple[int, int] = SIZE, orientation: int = 1) -> Path:
    """A grey picture; size is (height, width) as stored."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size[::-1], "grey").save(path, exif=exif)
    return path


def entry(name: str = "a.jpg", image_id: Any = 1, size: tuple[Any, Any] = SIZE) -> Row:
    return {"id": image_id, "file_name": name, "height": size[0], "width": size[1]}


def annotation(segmentation: Any = None, **more: Any) -> Row:
    row = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": segmentation or [SQUARE], "iscrowd": 0}
    return row | more


def write(path: Path, images: list[Row], annotations: list[Row], categories: list[Row] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"images": images, "annotations": annotations}
    path.write_text(json.dumps(content | {"categories": categories or [{"id": 1, "name": "cup"}]}))
    return path


def pixels(supports: dict[str, list[Support]]) -> dict[str, list[int]]:
    return {name: [int((s.mask == 1).sum()) for s in many] for name, many in supports.items()}


@pytest.mark.parametrize(
    ("json_file", "picture", "name"),
    [
        ("annotations/instances_default.json", "images/a.jpg", "a.jpg"),  # CVAT
        ("annotations/instances_default.json", "images/default/a.jpg", "a.jpg"),
        ("annotations/instances_train2017.json", "train2017/a.jpg", "a.jpg"),  # COCO
        ("result.json", "images/a.jpg", "images\\a.jpg"),  # Label Studio on Windows
        ("result.json", "images/a.jpg", "../../label-studio/data/media/upload/1/a.jpg"),
        ("result.json", "images/b c.jpg", "/data/local-files/?d=photos%5Cb%20c.jpg"),
        ("_annotations.coco.json", "a.jpg", "a.jpg"),  # Roboflow
        ("c.json", "a b.jpg", "a%20b.jpg"),
        ("c.json", "a%20b.jpg", "a%20b.jpg"),
        ("c.json", "photos/a.jpg", "D:\\me\\photos\\a.jpg"),
        ("c.json", "a.jpg", "/home/me/photos/a.jpg"),
        ("c.json", "a.jpg", "file:///home/me/a.jpg"),
        ("c.json", "a.jpg", "https://example.com/bucket/a.jpg?token=1"),
    ],
)
def test_pictures_of_exports_are_found(tmp_path: Path, json_file: str, picture: str, name: str) -> None:
    photo(tmp_path / picture)
    supports = read_supports(write(tmp_path / json_file, [entry(name)], [annotation()]))
    assert pixels(supports) == {"cup": [400]}
    (support,) = supports["cup"]
    assert support.name == Path(picture).name
    assert support.files[0].samefile(tmp_path / picture)


@pytest.mark.parametrize(
    "json_file", ["_annotations.coco.json", "result.json", "annotations/instances_default.json"]
)
def test_a_folder_with_a_coco_file(tmp_path: Path, json_file: str, caplog: pytest.LogCaptureFixture) -> None:
    photo(tmp_path / ("images/a.jpg" if "result" not in json_file else "a.jpg"))
    path = write(tmp_path / json_file, [entry()], [annotation()])
    with caplog.at_level(logging.INFO):
        assert pixels(read_supports(tmp_path)) == {"cup": [400]}
    assert f"{tmp_path} holds the COCO file {path}; it is read" in caplog.text
    write(tmp_path / "more" / "b.json", [entry()], [annotation()])
    with pytest.raises(ValueError, match=r"holds 2 COCO files, .* among them; give one"):
        read_supports(tmp_path)


def test_pictures_in_another_place_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photo(tmp_path / "images/a.jpg")
    photo(tmp_path / "b.jpg")
    images = [entry("D:\\x\\a.jpg"), entry("/y/b.jpg", 2)]
    path = write(tmp_path / "c.json", images, [annotation(), annotation(image_id=2)])
    with caplog.at_level(logging.INFO):
        assert [s.name for s in read_supports(path)["cup"]] == ["a.jpg", "b.jpg"]
    (message,) = caplog.messages
    found = f"as {tmp_path / 'images/a.jpg'}"
    assert message == f"{path}: found 2 pictures in another place than it gives: 'D:\\\\x\\\\a.jpg' {found}"


@pytest.mark.parametrize(
    ("root", "option", "fix"),
    [
        (None, "--support-images", "or give their folder with --support-images"),
        (None, "image_root", "or give their folder with image_root"),
        (None, "", "put the pictures next to the JSON file, or into the folder 'images' there"),
        ("photos", "--support-images", "correct --support-images"),
    ],
)
def test_missing_pictures_name_the_option(tmp_path: Path, root: str | None, option: str, fix: str) -> None:
    path = write(tmp_path / "c.json", [entry()], [annotation()])
    with pytest.raises(FileNotFoundError, match=r"c\.json: image .*a\.jpg does not exist; .*" + fix + "$"):
        read_supports(path, root and tmp_path / root, image_option=option)


def test_equal_names_in_several_folders(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        photo(tmp_path / "images" / folder / "a.jpg")
    path = write(tmp_path / "c.json", [entry()], [annotation()])
    with pytest.raises(ValueError, match=r"image 'a\.jpg' could be .*a\.jpg or .*a\.jpg; put the pictures"):
        read_supports(path)
    images = [entry("x/a.jpg"), entry("y/a.jpg", 2)]
    path = write(tmp_path / "c.json", images, [annotation(), annotation(image_id=2)])
    assert [s.name for s in read_supports(path)["cup"]] == ["x/a.jpg", "y/a.jpg"]


def test_two_names_that_would_be_one_picture(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    images = [entry("x/a.jpg"), entry("y/a.jpg", 2)]
    path = write(tmp_path / "c.json", images, [annotation(), annotation(image_id=2)])
    with pytest.raises(ValueError, match=r"pictures 'x/a\.jpg' and 'y/a\.jpg' would both be"):
        read_supports(path)


@pytest.mark.parametrize("missing", [None, [], [[]], "None", "delete"])
def test_boxes_without_outline_are_open(
    tmp_path: Path, missing: Any, caplog: pytest.LogCaptureFixture
) -> None:
    photo(tmp_path / "a.jpg")
    box = annotation(id=2, bbox=[45, 10, 15, 15]) | {"segmentation": missing}
    if missing == "delete":
        del box["segmentation"]
    path = write(tmp_path / "c.json", [entry()], [annotation(), box])
    with caplog.at_level(logging.INFO):
        (support,) = read_supports(path)["cup"]
    expected = np.zeros(SIZE, np.uint8)
    expected[10:30, 20:40], expected[10:25, 45:60] = 1, 255
    np.testing.assert_array_equal(support.mask, expected)
    assert caplog.messages == [
        f"{path}: objects with a box and no outline: 1, the first annotation 2; the pixels in their boxes "
        "are ignored (255)"
    ]
    write(path, [entry()], [box])
    with pytest.raises(ValueError, match=r"class 'cup' has boxes \(1\) and no outline; export outlines"):
        read_supports(path)


def test_one_file_under_two_ids(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photo(tmp_path / "a.jpg")
    images = [entry(), entry(image_id=2), entry("./a.jpg", image_id=3)]
    rows = [annotation(), annotation([OTHER], id=2, image_id=2)]
    path = write(tmp_path / "c.json", images, rows)
    with caplog.at_level(logging.INFO):
        assert pixels(read_supports(path)) == {"cup": [625]}
    assert "the first a.jpg under 1 and 2; their annotations are joined" in caplog.text
    write(path, [entry(), entry(image_id=2, size=(24, 32))], rows)
    with pytest.raises(ValueError, match=r"a\.jpg has the ids 1 and 2 with different sizes; keep the one"):
        read_supports(path)


def test_crowds_only(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    for crowd in (1, True, "1"):
        path = write(tmp_path / "c.json", [entry()], [annotation(iscrowd=crowd)])
        with pytest.raises(
            ValueError, match=r"class 'cup': each outline \(1\) has iscrowd 1, .*set iscrowd to 0"
        ):
            read_supports(path)
    write(path, [entry()], [annotation(iscrowd=None)])
    assert pixels(read_supports(path)) == {"cup": [400]}
    write(path, [entry()], [annotation(iscrowd="yes")])
    with pytest.raises(ValueError, match="annotation 1: its iscrowd is yes; give 0 or 1"):
        read_supports(path)


def test_an_unused_root_category(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photo(tmp_path / "a.jpg")
    categories = [{"id": 0, "name": "cup", "supercategory": "none"}, {"id": 1, "name": "cup"}]
    path = write(tmp_path / "c.json", [entry()], [annotation()], categories)
    with caplog.at_level(logging.INFO):
        assert pixels(read_supports(path)) == {"cup": [400]}
    assert (
        "category 'cup' is listed 2 times and used under one id; the other entries are left out"
        in caplog.text
    )
    write(path, [entry()], [annotation(), annotation(category_id=0)], categories)
    with pytest.raises(ValueError, match="two categories have the name 'cup'; rename one"):
        read_supports(path)


def test_classes_that_differ_in_case(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    categories = [{"id": 1, "name": "cup"}, {"id": 2, "name": "Cup "}]
    path = write(
        tmp_path / "c.json", [entry()], [annotation(), annotation([OTHER], category_id=2)], categories
    )
    with pytest.raises(ValueError, match="the classes 'cup' and 'Cup ' differ in case or spaces only"):
        read_supports(path)


@pytest.mark.parametrize(("image_id", "given"), [(7, "7"), ("7", 7)])
def test_ids_as_texts_and_numbers(
    tmp_path: Path, image_id: Any, given: Any, caplog: pytest.LogCaptureFixture
) -> None:
    photo(tmp_path / "a.jpg")
    rows = [annotation(image_id=given, category_id=1.0)]
    path = write(tmp_path / "c.json", [entry(image_id=image_id)], rows)
    with caplog.at_level(logging.INFO):
        assert pixels(read_supports(path)) == {"cup": [400]}
    assert f"{path} writes ids as numbers and as texts; they are taken as equal" in caplog.messages


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [annotation([[1, 2, 3, 4]], id=9)],
            r"c\.json: a\.jpg, annotation 9: its outline has fewer than 3 corners",
        ),
        (
            [annotation([[70, 50, 80, 50, 80, 60]])],
            r"a\.jpg, annotation 1: .* lies outside .*; correct or delete",
        ),
        ([annotation([[20, 10, 40, 10, 30, 10]])], "annotation 1: its outline has no area; draw it again"),
        ([annotation({"size": [48, 64], "counts": [3072]})], "annotation 1: its outline has no area"),
        (
            [annotation(), annotation({"size": [48, 64], "counts": [3]}, id=2)],
            "annotation 2: its run lengths add",
        ),
        ([annotation() | {"segmentation": []}], "annotation 1: it has neither an outline nor a box"),
        ([annotation(bbox=[1, 2]) | {"segmentation": []}], r"annotation 1: its box is \[1, 2\]"),
        ([annotation(image_id=5)], "annotation 1 is of image 5, not in 'images'"),
        ([annotation(image_id=[5])], r"annotation 1 is of image \[5\], not in 'images'"),
        ([annotation(category_id=None)], "annotation 1 has category None, not in 'categories'"),
        ([{"image_id": 1, "segmentation": []}], r"annotations\[0\] has no 'category_id'"),
        ([annotation(id=None, image_id=5)], "annotation number 0 is of image 5"),
        ([7], r"annotations\[0\] is 7, not an object"),
        ([], "annotates no object"),
    ],
)
def test_wrong_annotations_are_named(tmp_path: Path, rows: list[Any], message: str) -> None:
    photo(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match=message) as error:
        read_supports(write(tmp_path / "c.json", [entry()], rows))
    assert "c.json" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (entry(size=(None, 64)), r"images\[0\] \(a\.jpg\): its height is None; give the picture's height"),
        (entry(size=("48", 64)), r"its height is '48'"),
        (entry(size=(48, 10**9)), r"its width is 1000000000"),
        (
            entry(size=(96, 128)),
            r"a\.jpg is 64x48, but annotated as 128x96: give the picture that was annotated",
        ),
        (entry(size=(64, 48)), r"a\.jpg is 64x48, but annotated as 48x64"),
        (entry(name=""), r"images\[0\] has the file_name ''"),
        (entry(name=None), r"images\[0\] has the file_name 'None'"),
        (entry(image_id=None), r"images\[0\] has the id None"),
    ],
)
def test_wrong_pictures_are_named(tmp_path: Path, image: Row, message: str) -> None:
    photo(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match=message):
        read_supports(write(tmp_path / "c.json", [image], [annotation()]))


LOW = [10, 50, 30, 50, 30, 60, 10, 60]  # in a frame of 64 rows


@pytest.mark.parametrize(
    ("declared", "outline", "expected", "said"),
    [
        ((64, 48), LOW, (slice(50, 60), slice(10, 30)), ""),  # upright, as browsers show it
        ((48, 64), LOW, (slice(50, 60), slice(10, 30)), "do not fit the size in the file, but the upright"),
        # Stored 48x64 and turned by a quarter clockwise: x = 48 - y, y = x.
        (
            (48, 64),
            [20, 10, 40, 10, 40, 30, 20, 30],
            (slice(20, 40), slice(18, 38)),
            "drawn on the stored picture",
        ),
        (
            (64, 48),
            [50, 10, 60, 10, 60, 30, 50, 30],
            (slice(50, 60), slice(18, 38)),
            "but the stored picture",
        ),
    ],
)
def test_pictures_with_an_exif_orientation(
    tmp_path: Path,
    declared: tuple[int, int],
    outline: list[int],
    expected: tuple[slice, slice],
    said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    photo(tmp_path / "a.jpg", (48, 64), orientation=6)
    path = write(tmp_path / "c.json", [entry(size=declared)], [annotation([outline])])
    with caplog.at_level(logging.INFO):
        (support,) = read_supports(path)["cup"]
    mask = np.zeros((64, 48), np.uint8)
    mask[expected] = 1
    np.testing.assert_array_equal(support.mask, mask)
    assert len(caplog.messages) == bool(said) and said in caplog.text


def test_outlines_across_the_border_are_cut_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photo(tmp_path / "a.jpg")
    path = write(tmp_path / "c.json", [entry()], [annotation([[50, 40, 90, 40, 90, 99, 50, 99]])])
    with caplog.at_level(logging.INFO):
        assert pixels(read_supports(path)) == {"cup": [14 * 8]}
    assert caplog.messages == [
        f"{path}: outlines that reach out of their picture: 1, the first annotation 1; they are cut at the "
        "border"
    ]


@pytest.mark.parametrize(
    ("outline", "expected", "said"),
    [
        ([SQUARE, [50, 5, 51, 5], [9, 9]], 400, "outlines with parts of fewer than 3 corners: 1, the first"),
        ([SQUARE, [25, 15, 25, 25, 35, 25, 35, 15]], 400, "whose polygons overlap: 1, .*; all are filled"),
        ([SQUARE, OTHER], 625, ""),
        ([[x, y, x + 1, y, x + 1, y + 1, x, y + 1] for x in range(20, 60) for y in range(9)], 360, ""),
        ([SQUARE, [40, 10, 50, 10, 50, 30, 40, 30]], 600, ""),  # neighbours
    ],
)
def test_outlines_of_several_parts(
    tmp_path: Path, outline: Any, expected: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    photo(tmp_path / "a.jpg")
    path = write(tmp_path / "c.json", [entry()], [annotation(outline)])
    with caplog.at_level(logging.INFO):
        assert pixels(read_supports(path)) == {"cup": [expected]}
    assert len(caplog.messages) == bool(said) and re.search(said, caplog.text)


@pytest.mark.parametrize(
    ("outline", "box", "said"),
    [
        ([10, 10, 0.5, 30, 10, 0.6, 30, 30, 0.7, 10, 30, 0.8], [10, 10, 20, 20], True),  # x, y and a depth
        ([31, 21, 63, 21, 63, 63, 31, 63], [20, 10, 20, 20], True),  # percent of 64 x 48 pixels
        ([20, 10, 40, 10, 40, 30, 20, 30], [20, 10, 20, 20], False),
        ([20, 10, 40, 10, 40, 30, 20, 30], [18, 9, 24, 23], False),  # a box drawn with some space around
        ([20, 10, 40, 10, 40, 30, 20, 30], [20, 10], False),
        ([20, 10, 40, 10, 40, 30, 20, 30], [0, 0, 0, 0], False),
    ],
)
def test_outlines_are_compared_with_their_boxes(
    tmp_path: Path, outline: list[float], box: list[float], said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    photo(tmp_path / "a.jpg")
    path = write(tmp_path / "c.json", [entry()], [annotation([outline], bbox=box)])
    with caplog.at_level(logging.INFO):
        read_supports(path)
    assert ("outlines that do not fit their box (bbox): 1, the first annotation 1" in caplog.text) is said
