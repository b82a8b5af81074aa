"""LabelMe files of several versions and programs; expected pixels are counted by hand."""

import base64
import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fss_d2.label.supports import read_supports
from tests.label.test_exports import LOW, photo, pixels

SQUARE = [[20, 10], [40, 10], [40, 30], [20, 30]]  # 400 pixels
HOLE = [[25, 15], [35, 15], [35, 25], [25, 25]]  # 100 of them

Shape = dict[str, Any]


def shape(points: Any, kind: str | None = "polygon", label: Any = "cup", **more: Any) -> Shape:
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, "flags": {}} | more


def write(folder: Path, shapes: Any, picture: str = "a.jpg", **more: Any) -> Path:
    if not (folder / "a.jpg").exists():
        photo(folder / "a.jpg")
    content = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": picture, "imageData": None}
    path = folder / "a.json"
    path.write_text(json.dumps(content | {"imageHeight": 48, "imageWidth": 64} | more))
    return path


def png(pixels: np.ndarray, mode: str = "L") -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8) * 255).convert(mode).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_later_shapes_paint_over_earlier_ones(tmp_path: Path) -> None:
    full, hole = np.zeros((48, 64), np.uint8), (slice(15, 25), slice(25, 35))
    full[10:30, 20:40] = 1
    orders = {
        0: ["cup", "_background_"],
        255: ["cup", "__ignore__"],
        1: ["_background_", "__ignore__", "cup"],
    }
    for value, labels in orders.items():
        shapes = [shape(SQUARE if label == "cup" else HOLE, label=label) for label in labels]
        (support,) = read_supports(write(tmp_path, shapes))["cup"]
        expected = full.copy()
        expected[hole] = value
        np.testing.assert_array_equal(support.mask, expected)


def test_shapes_of_other_classes_erase_nothing(tmp_path: Path) -> None:
    shapes = [shape(SQUARE, label="table"), shape(HOLE), shape(HOLE, label="_background_"), shape(HOLE[:3])]
    assert pixels(read_supports(write(tmp_path, shapes)))["table"] == [300]


def test_what_is_painted_over_is_refused(tmp_path: Path) -> None:
    shapes = [shape(HOLE), shape(SQUARE, label="_background_")]
    with pytest.raises(ValueError, match="later shapes _background_ or __ignore__ cover all of 'cup'"):
        read_supports(write(tmp_path, shapes))


@pytest.mark.parametrize(
    ("points", "kind", "count"),
    [
        (SQUARE, "rotation", 400),  # X-AnyLabeling
        (SQUARE, "oriented_rectangle", 400),  # LabelMe 6
        (SQUARE, "rectangle", 400),  # X-AnyLabeling writes all four corners
        ([SQUARE[2], SQUARE[0]], "rectangle", 400),
        ([[20, 10], [30, 20], [20, 30], [10, 20]], "rotation", 200),
        ([[20, 10], [30, 20], [20, 30], [10, 20]], "rectangle", 200),
        (SQUARE, None, 400),
        (SQUARE, "polygon", 400),
        ([{"x": x, "y": y} for x, y in SQUARE], "polygon", 400),
        ([[10.5, 20.5], [11.5, 20.5]], "circle", 5),
        ([[10, 20], [11, 20]], "circle", 4),
        ([[30, 20], [500, 20]], None, None),
        ([[0, 0], [20, 0]], "circle", 315),  # a quarter
        ([[50, 40], [90, 40], [90, 99], [50, 99]], "polygon", 14 * 8),
    ],
)
def test_shapes(tmp_path: Path, points: Any, kind: str | None, count: int | None) -> None:
    path = write(tmp_path, [shape(points, kind)])
    if count is None:
        with pytest.raises(ValueError, match="a polygon of 2 points has no area"):
            read_supports(path)
        return
    (found,) = pixels(read_supports(path))["cup"]
    if len({x for x, _ in points if isinstance(x, int)}) == 3:  # a diamond: the rasteriser rounds its rim
        assert abs(found - count) <= 20
    elif kind == "circle" and points[0] == [0, 0]:
        y, x = np.ogrid[:48, :64]
        assert found == ((x + 0.5) ** 2 + (y + 0.5) ** 2 <= 400).sum()
    else:
        assert found == count


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (shape([[1, 1]], "point"), "a point of 1 points has no area"),
        (shape(SQUARE, "linestrip"), "a linestrip of 4 points has no area"),
        (shape(SQUARE[:2], "line"), "a line of 2 points has no area"),
        (shape(SQUARE, "points"), "a points of 4 points has no area"),
        (shape(SQUARE, "ellipse"), "the shape_type 'ellipse' is not known"),
        (shape(SQUARE, ["x"]), "the shape_type"),
        (shape(SQUARE[:3], "rotation"), "a rotation has 4 points, not 3"),
        (shape(SQUARE[:3], "rectangle"), "a rectangle of 3 points"),
        (shape(SQUARE[:1], "circle"), "a circle of 1 points"),
        (shape([[5, 5], [5, 5]], "circle"), "a circle of radius 0 has no area"),
        (shape([[5, 5], [5, 9]], "rectangle"), "its rectangle has no area"),
        (shape([[5, 5], [9, 5], [7, 5]]), "its polygon has no area"),
        (shape([[5, 5], [1e9, 5], [7, 9]]), "the value 1000000000.0, far outside"),
        (shape([[5, 5], [1e9, 5]], "rectangle"), "far outside"),
        (shape([[5, 5], [1e300, 5]], "circle"), "cannot be drawn"),
        (shape([[5, 5], [float("nan"), 5], [7, 9]]), r"points\[1\] is \[nan, 5\]; give \[x, y\] in pixels"),
        (shape([[5, 5], [float("inf"), 5]], "circle"), r"points\[1\] is \[inf, 5\]"),
        (shape([[5, 5], ["9", 5], [7, 9]]), r"points\[1\] is \['9', 5\]"),
        (shape([[5, 5], [True, 5], [7, 9]]), r"points\[1\] is \[True, 5\]"),
        (shape([[5, 5, 0], [9, 5, 0], [7, 9, 0]]), r"points\[0\] is \[5, 5, 0\]"),
        (shape([5, 5, 9, 5, 7, 9]), r"points\[0\] is 5; give"),
        (shape("5,5"), r"its points are 5,5; give"),
        (shape([[0.2, 0.2], [0.9, 0.2], [0.5, 0.7]]), "they are shares of the picture"),
        (shape([[105, 105], [109, 105], [107, 109]]), "lies outside the picture"),
        (shape([[200, 200], [205, 200]], "circle"), "cannot be drawn|outside"),
    ],
)
def test_what_cannot_be_drawn(tmp_path: Path, given: Shape, reason: str) -> None:
    path = write(tmp_path, [shape(SQUARE), given])
    with pytest.raises(ValueError, match=reason) as error:
        read_supports(path)
    assert str(error.value).startswith(f"{path}: shapes[1] (cup) cannot be drawn: ")


@pytest.mark.parametrize("label", [None, "", "  ", 3, ["cup"]])
def test_labels_that_are_none(tmp_path: Path, label: Any) -> None:
    with pytest.raises(ValueError, match=r"shapes\[0\] has the label .*; give the name of its class"):
        read_supports(write(tmp_path, [shape(SQUARE, label=label)]))


def test_labels_with_a_slip(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the classes 'Cup ' and 'cup' differ in case or spaces only"):
        read_supports(write(tmp_path, [shape(SQUARE), shape(HOLE, label="Cup ")]))


def test_masks(tmp_path: Path) -> None:
    part = np.ones((4, 6))
    part[0, 0] = 0
    for points, expected in (
        ([[10, 20], [15, 23]], 23),
        ([[10, 20], [16, 24]], 23),  # the second corner behind the last pixel
        ([[61, 46], [66, 49]], 5),  # cut at the border
        ([[-2, -1], [3, 2]], 12),
    ):
        assert pixels(read_supports(write(tmp_path, [shape(points, "mask", mask=png(part))]))) == {
            "cup": [expected]
        }
    assert pixels(read_supports(write(tmp_path, [shape([[1, 1], [6, 4]], "mask", mask=png(part, "1"))])))


@pytest.mark.parametrize(
    ("points", "mask", "reason"),
    [
        *(
            ([[1, 1], [6, 4]], given, "its mask is not a picture in base64; draw it again")
            for given in ("???", None, base64.b64encode(b"no picture").decode())
        ),
        ([[1, 1], [6, 4]], png(np.ones((4, 6)))[:40], "."),
        ([[1, 1], [20, 30]], png(np.ones((4, 6))), "its mask is 6x4 pixels, but its points span 20x30"),
        (
            [[0, 0], [499, 499]],
            png(np.ones((500, 500))),
            "its mask of 500x500 pixels is larger than its picture",
        ),
        ([[70, 50], [75, 53]], png(np.ones((4, 6))), "it lies outside the picture"),
        ([[1, 1], [6, 4]], png(np.ones((4, 6)), "RGB"), "its mask is a RGB image"),
        ([[1, 1], [6, 4]], png(np.zeros((4, 6))), "its mask marks no pixel"),
    ],
)
def test_masks_that_cannot_be_drawn(tmp_path: Path, points: Any, mask: Any, reason: str) -> None:
    path = write(tmp_path, [shape(points, "mask", mask=mask)])
    with pytest.raises(ValueError, match=reason) as error:
        read_supports(path)
    assert str(error.value).startswith(f"{path}: shapes[0] (cup) cannot be drawn: ")


@pytest.mark.parametrize("name", ["C:\\photos\\a.jpg", "/home/me/a.jpg", "..\\a.jpg", "./a.jpg"])
def test_pictures_of_another_machine(tmp_path: Path, name: str) -> None:
    supports = read_supports(write(tmp_path, [shape(SQUARE)], name))
    assert [s.name for s in supports["cup"]] == ["a.jpg"]


def test_pictures_that_do_not_exist(tmp_path: Path) -> None:
    path = write(tmp_path, [shape(SQUARE)], "b.jpg")
    with pytest.raises(
        FileNotFoundError, match=r"a\.json: image .*b\.jpg does not exist; .*--support-images"
    ):
        read_supports(path, image_option="--support-images")
    photo(tmp_path / "elsewhere" / "b.jpg")
    assert pixels(read_supports(path, tmp_path / "elsewhere")) == {"cup": [400]}


@pytest.mark.parametrize(
    ("sides", "points", "expected", "said"),
    [
        ((64, 48), LOW, (slice(50, 60), slice(10, 30)), ""),
        ((None, None), LOW, (slice(50, 60), slice(10, 30)), ""),
        ((48, 64), LOW, (slice(50, 60), slice(10, 30)), "do not fit imageHeight and imageWidth"),
        ((48, 64), [20, 10, 40, 10, 40, 30, 20, 30], (slice(20, 40), slice(18, 38)), "on the stored picture"),
    ],
)
def test_pictures_with_an_exif_orientation(
    tmp_path: Path, sides: Any, points: Any, expected: Any, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    photo(tmp_path / "a.jpg", (48, 64), orientation=6)
    corners = [list(corner) for corner in zip(points[::2], points[1::2], strict=True)]
    path = write(tmp_path, [shape(corners)], imageHeight=sides[0], imageWidth=sides[1])
    with caplog.at_level(logging.INFO):
        (support,) = read_supports(path)["cup"]
    mask = np.zeros((64, 48), np.uint8)
    mask[expected] = 1
    np.testing.assert_array_equal(support.mask, mask)
    assert len(caplog.messages) == bool(said) and said in caplog.text


@pytest.mark.parametrize(("sides"), [(96, 128), (64, 48), (48.5, 64), ("48", 64), (10**9, 10**9)])
def test_another_size_than_the_picture(tmp_path: Path, sides: Any) -> None:
    path = write(tmp_path, [shape(SQUARE)], imageHeight=sides[0], imageWidth=sides[1])
    with pytest.raises(ValueError, match=r"a\.json: (a\.jpg is 64x48, but annotated as|its height is)"):
        read_supports(path)
