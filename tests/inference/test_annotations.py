"""Pictures and annotations as users give them: every pixel type, every annotation type, clear errors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fss_d2.data.images import read_image
from fss_d2.data.mask_values import parse_mask_values
from fss_d2.inference.annotations import (
    Box,
    Boxes,
    Scribble,
    read_annotation,
    read_picture,
    read_support,
    support_pairs,
)

RGB = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
IMAGE = np.zeros((6, 8, 3), np.uint8)


def mask_of(annotation: Any, **options: Any) -> np.ndarray:
    return read_annotation(annotation, IMAGE, **options)


# -- pictures ----------------------------------------------------------------------------------------------


def test_rgb_comes_back_as_it_is() -> None:
    for picture in (RGB, Image.fromarray(RGB)):
        pixels, orientation = read_picture(picture)
        assert orientation == 1
        np.testing.assert_array_equal(pixels, RGB)
        assert pixels.flags.c_contiguous


def test_grey_becomes_three_equal_channels() -> None:
    grey = RGB[:, :, 0]
    for picture in (grey, grey[:, :, None], Image.fromarray(grey)):
        np.testing.assert_array_equal(read_picture(picture)[0], np.repeat(grey[:, :, None], 3, axis=2))


def test_transparent_pixels_are_laid_on_white() -> None:
    rgba = np.zeros((2, 1, 4), np.uint8)
    rgba[0] = (10, 20, 30, 255)
    assert read_picture(rgba)[0].tolist() == [[[10, 20, 30]], [[255, 255, 255]]]


def test_sixteen_bits_become_eight() -> None:
    grey = np.array([[0, 0x1234, 0xFFFF]], np.uint16)
    assert read_picture(grey)[0][0, :, 0].tolist() == [0, 0x12, 0xFF]
    color = np.stack([grey, grey, grey[:, ::-1]], axis=2)
    assert read_picture(color)[0].tolist() == [[[0, 0, 0xFF], [0x12, 0x12, 0x12], [0xFF, 0xFF, 0]]]
    dark = np.full((1, 1, 3), 200, np.uint16)  # eight bits in a wider type
    assert read_picture(dark)[0].tolist() == [[[200, 200, 200]]]


def test_a_file_an_image_and_an_array_are_one(tmp_path: Path) -> None:
    image = Image.fromarray(RGB)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter
    image.save(tmp_path / "turned.png", exif=exif)
    expected, orientation = read_image(tmp_path / "turned.png")
    assert (orientation, expected.shape) == (6, (6, 4, 3))
    with Image.open(tmp_path / "turned.png") as opened:
        np.testing.assert_array_equal(read_picture(opened)[0], expected)
    np.testing.assert_array_equal(read_picture(str(tmp_path / "turned.png"))[0], expected)
    np.testing.assert_array_equal(read_picture(expected)[0], expected)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((4, 6, 3)), "holds float64: give uint8"),
        (np.zeros((4, 6, 3), bool), "holds bool"),
        (np.zeros((3, 40, 60), np.uint8), r"shape \(3, 40, 60\).*channels last"),
        (np.zeros((4, 6, 2), np.uint8), r"shape \(4, 6, 2\)"),
        (np.zeros((0, 6, 3), np.uint8), r"shape \(0, 6, 3\)"),
        (np.zeros(5, np.uint8), r"shape \(5,\)"),
        ([[1, 2]], "is a list: give a path"),
        (Image.new("F", (4, 4)), "mode F: give 8-bit"),
        (Image.new("RGB", (0, 4)), "0x4"),
    ],
)
def test_other_pictures_are_refused(picture: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^photo .*{message}") as caught:
        read_picture(picture, "photo")
    assert "\n" not in str(caught.value)


def test_files_name_themselves(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.jpg does not exist"):
        read_picture(tmp_path / "none.jpg")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"a\.png cannot be read"):
        read_picture(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as late, pytest.raises(ValueError, match=r"^photo cannot be read"):
        read_picture(late, "photo")


# -- boxes and scribbles -----------------------------------------------------------------------------------


def test_a_box_covers_the_pixels_that_it_touches() -> None:
    expected = np.zeros((6, 8), np.uint8)
    expected[2:5, 1:4] = 1
    for box in (Box(1, 2, 4, 5), Box(1.5, 2.9, 3.1, 4.2)):
        np.testing.assert_array_equal(mask_of(box), expected)
    assert mask_of(Box(0, 0, 1, 1)).sum() == 1
    assert mask_of(Box(-5, -5, 100, 100)).all()


def test_boxes_are_a_union() -> None:
    mask = mask_of(Boxes([Box(0, 0, 2, 2), (1, 1, 3, 3)]))
    assert mask.sum() == 4 + 4 - 1


def test_a_scribble_ignores_all_other_pixels() -> None:
    mask = mask_of(Scribble([(1, 1), (6, 1)], background=[[(1, 5), (6, 5)]], width=1))
    expected = np.full((6, 8), 255, np.uint8)
    expected[1, 1:7] = 1
    expected[5, 1:7] = 0
    np.testing.assert_array_equal(mask, expected)


def test_strokes_of_one_point_and_where_strokes_cross() -> None:
    mask = mask_of(Scribble([[(2, 2)], [(5.9, 4.9)]], background=[(0, 2), (7, 2)], width=1))
    assert mask[2].tolist() == [0, 0, 1, 0, 0, 0, 0, 0]  # the object's stroke lies on top
    assert mask[4, 5] == 1


def test_strokes_are_as_wide_as_the_image_needs() -> None:
    stroke = Scribble([(100, 500), (900, 500)])
    assert (stroke.mask(1000, 1000)[:, 500] == 1).sum() == pytest.approx(10, abs=1)
    assert 3 <= (Scribble([(2, 10), (18, 10)]).mask(20, 20)[:, 10] == 1).sum() <= 5


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Box(4, 2, 1, 5), "x0 below x1"),
        (lambda: Box(1, 2, 1, 5), "x0 below x1"),
        (lambda: Box(0, 0, float("nan"), 5), "in pixels"),
        (lambda: Boxes([]), "no boxes"),
        (lambda: Boxes([(1, 2, 3)]), "x0 y0 x1 y1 of each"),
        (lambda: Boxes((1, 2, 3, 4)), "x0 y0 x1 y1 of each"),
        (lambda: Boxes(Box(1, 2, 3, 4)), "x0 y0 x1 y1 of each"),
        (lambda: Box("1", 2, 3, 4), "give x0 y0 x1 y1 in pixels"),
        (lambda: Scribble([]), "0 strokes"),
        (lambda: Scribble([(1, 2)], width=0), "0 pixels wide"),
        (lambda: Scribble([(1, 2)], width=2.5), "2.5 pixels wide.* a whole number"),
        (lambda: Scribble([(1, 2)], width=40_000), "from 1 to 32767"),
        (lambda: Scribble([[(1, 2, 3)]]), r"points \(x, y\)"),
        (lambda: Scribble([[]]), r"points"),
        (lambda: Scribble([[(1, float("inf"))]]), "not a finite number"),
    ],
)
def test_wrong_boxes_and_scribbles_are_refused(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


# -- masks -------------------------------------------------------------------------------------------------


def test_masks_of_every_type_of_array() -> None:
    expected = np.zeros((6, 8), np.uint8)
    expected[1, 2] = 1
    for dtype in (bool, np.uint8, np.int64, np.uint16):
        np.testing.assert_array_equal(mask_of(expected.astype(dtype)), expected)
    expected[5] = 255
    np.testing.assert_array_equal(mask_of(expected.astype(np.int32)), expected)


@pytest.mark.parametrize("levels", [(0, 255), (0, 1), (30, 200)])
def test_mask_files_are_black_and_white(levels: tuple[int, int], tmp_path: Path) -> None:
    expected = np.zeros((6, 8), np.uint8)
    expected[2:4] = 1
    picture = Image.fromarray(np.array(levels, np.uint8)[expected])
    picture.save(tmp_path / "m.png")
    for annotation in (tmp_path / "m.png", str(tmp_path / "m.png"), picture, picture.convert("RGB")):
        np.testing.assert_array_equal(mask_of(annotation), expected)


def test_sixteen_bit_and_transparent_mask_files(tmp_path: Path) -> None:
    expected = np.zeros((6, 8), np.uint8)
    expected[2:4] = 1
    Image.fromarray(expected.astype(np.uint16) * 65535).save(tmp_path / "deep.png")
    painted = np.zeros((6, 8, 4), np.uint8)  # the object painted on a transparent layer
    painted[2:4] = (200, 0, 0, 255)
    for annotation in (tmp_path / "deep.png", Image.fromarray(painted)):
        np.testing.assert_array_equal(mask_of(annotation), expected)


@pytest.mark.parametrize("mode", ["L", "P"])
def test_a_file_of_0_1_and_255_is_a_trimap(mode: str) -> None:
    values = np.zeros((6, 8), np.uint8)
    values[0], values[1] = 1, 255
    picture = Image.fromarray(values)
    if mode == "P":
        picture.putpalette([*range(256)] * 3)
    np.testing.assert_array_equal(mask_of(picture), values)


def test_a_mask_is_turned_with_its_photograph(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGB).save(tmp_path / "turned.png", exif=exif)
    stored = np.zeros((4, 6), bool)
    stored[0, 0] = True  # the left upper pixel of what is stored is the right upper one upright
    pixels, mask = read_support(tmp_path / "turned.png", stored, "cat, support 1")
    assert pixels.shape == (6, 4, 3)
    assert np.argwhere(mask).tolist() == [[0, 3]]
    np.testing.assert_array_equal(
        read_support(tmp_path / "turned.png", np.rot90(stored, -1), "cat, support 1")[1], mask
    )


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (np.zeros((6, 8), bool), "no pixel of the image shows the object; mark it$"),
        (np.full((6, 8), 255), "mark it with 1; 255 means ignored"),
        (Image.new("L", (8, 6)), "no pixel"),
        (Box(8, 0, 20, 3), "no pixel"),
        (Box(-9, -9, -1, -1), "no pixel"),
        (Scribble([(50, 50), (60, 60)], width=1), "no pixel"),
        (np.ones((8, 6), bool), "the mask is 6x8 pixels but its image of cat, support 1 is 8x6"),
        (np.ones((6, 8, 1), bool), r"shape \(6, 8, 1\)"),
        (np.ones((6, 8)), "holds float64: give bool"),
        (np.full((6, 8), 7), "has the value 7"),
        (np.full((6, 8), -1), "has the value -1"),
        ([1, 2, 3, 4], "is a list: give a path"),
    ],
)
def test_masks_without_an_object_are_refused(annotation: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^mask (file )?of cat, support 1.*{message}") as caught:
        read_support(IMAGE, annotation, "cat, support 1")
    assert "\n" not in str(caught.value)


def test_an_empty_mask_file_is_named(tmp_path: Path) -> None:
    Image.new("L", (8, 6)).save(tmp_path / "m.png")
    with pytest.raises(ValueError, match=r"^mask file .*m\.png: no pixel"):
        mask_of(tmp_path / "m.png")
    with pytest.raises(FileNotFoundError, match=r"mask file .*none\.png does not exist"):
        mask_of(tmp_path / "none.png")


# -- one or several ----------------------------------------------------------------------------------------


def test_one_or_several() -> None:
    box, mask = Box(0, 0, 1, 1), np.ones((6, 8), bool)
    assert support_pairs("a.jpg", box, "cat") == [("a.jpg", box)]
    assert support_pairs(["a.jpg", "b.jpg"], (box, box), "cat") == [("a.jpg", box), ("b.jpg", box)]
    assert len(support_pairs(IMAGE, mask, "cat")) == 1
    stacked = support_pairs(np.stack([IMAGE] * 3), np.stack([mask] * 3), "cat")
    assert [(image.shape, m.shape) for image, m in stacked] == [((6, 8, 3), (6, 8))] * 3


@pytest.mark.parametrize(
    ("images", "masks", "message"),
    [
        (["a.jpg"], ["a.png", "b.png"], "1 support images and 2 masks"),
        ([], [], "0 support images and 0 masks"),
        (None, "a.png", "type NoneType"),
        ("a.jpg", {"a": 1}, "type dict"),
    ],
)
def test_unpaired_supports_are_refused(images: Any, masks: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        support_pairs(images, masks, "cat")


# -- what the values of a mask mean ------------------------------------------------------------------------


def test_a_rule_says_which_values_are_the_object(tmp_path: Path) -> None:
    values = np.zeros((6, 8), np.uint8)
    values[1, 2:4], values[3], values[5] = 1, 2, 255
    expected = np.where(values == 255, 255, values > 0)
    rule = parse_mask_values("1,2 ignore=255").of()
    Image.fromarray(values).save(tmp_path / "m.png")
    for annotation in (tmp_path / "m.png", Image.fromarray(values), values, values.astype(np.int64)):
        np.testing.assert_array_equal(mask_of(annotation, rule=rule), expected)
    for annotation in (tmp_path / "m.png", Image.fromarray(values)):
        with pytest.raises(
            ValueError, match=r"holds the values 0, 1, 2, 255: say .* such as 1,2 ignore=255$"
        ):
            mask_of(annotation)


def test_an_array_of_12_bits_is_scaled_by_them() -> None:
    grey = np.array([[0, 100, 4095]], np.uint16)
    assert read_picture(grey)[0][0, :, 0].tolist() == [0, 6, 255]
    assert read_picture(np.dstack([grey] * 3))[0].tolist() == [[[0] * 3, [6] * 3, [255] * 3]]


def test_pictures_that_pillow_opened_keep_their_orientation(tmp_path: Path) -> None:
    """Also grey TIFF, which Pillow turns itself."""
    grey = RGB[:, :, 0].copy()
    for name in ("a.png", "a.tif"):
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(grey).save(tmp_path / name, exif=exif)
        with Image.open(tmp_path / name) as opened:
            np.testing.assert_array_equal(read_picture(opened)[0][..., 0], np.rot90(grey, -1))
