"""Mask files and the frame of their picture: every EXIF orientation of both; what the log says."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fss_d2.data.images import image_header, orient, read_image
from fss_d2.data.mask_files import Frame, read_mask_file
from fss_d2.data.mask_values import parse_mask_values
from fss_d2.data.masks import load_sample
from fss_d2.inference.annotations import read_support

INVERSE = {6: 8, 8: 6}  # of an orientation; the others are their own
PICTURES = ("a.jpg", "a.png", "a.tif", "a.webp")


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """What a camera stores of an upright array."""
    return np.ascontiguousarray(orient(upright, INVERSE.get(orientation, orientation)))


def save(path: Path, pixels: np.ndarray, orientation: int | None) -> Path:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    options = {"lossless": True} if path.suffix == ".webp" else {}
    Image.fromarray(pixels).save(path, exif=exif, **options)
    return path


def upright_pair(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A bright object off the middle on a dark ground, and its mask."""
    mask = np.zeros(shape, np.uint8)
    mask[1 : shape[0] // 3, 2 : shape[1] // 2] = 1
    return np.repeat(mask[:, :, None] * np.uint8(200), 3, axis=2), mask


def record_of(picture: Path, mask: Path, encoding: str, **more: str) -> dict[str, object]:
    names = {"file_name": str(picture), "sem_seg_file_name": str(mask), "image_id": 1}
    return {**names, "mask_encoding": encoding, "classes": [0], **more}


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_and_headers_of_every_format_are_turned_once(
    tmp_path: Path, name: str, orientation: int
) -> None:
    pixels, _ = upright_pair((16, 24))
    path = save(tmp_path / name, stored(pixels, orientation), orientation)
    image, found = read_image(path)
    assert (image.shape, found) == (pixels.shape, orientation)
    assert ((image >= 100) == (pixels >= 100)).all()
    assert image_header(path) == (stored(pixels, orientation).shape[:2], orientation)
    assert Frame.of_file(path).shape == pixels.shape[:2]


@pytest.mark.parametrize("mask_name", ["m.png", "m.tif"])
@pytest.mark.parametrize("shape", [(16, 24), (20, 20)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_follows_its_own_orientation(
    tmp_path: Path, orientation: int, shape: tuple[int, int], mask_name: str
) -> None:
    """The same as its picture's; upright, and saying so; or turned where the picture is not."""
    pixels, mask = upright_pair(shape)
    picture = save(tmp_path / "a.jpg", stored(pixels, orientation), orientation)
    plain = save(tmp_path / "plain.jpg", pixels, None)
    same = save(tmp_path / mask_name, stored(mask, orientation), orientation)
    upright = save(tmp_path / f"upright-{mask_name}", mask, 1)
    for image, annotation in ((picture, same), (picture, upright), (plain, same)):
        np.testing.assert_array_equal(read_support(image, annotation, "cup")[1], mask)
        for encoding in ("binary", "trimap"):
            found = load_sample(record_of(image, annotation, encoding), 0)[1]
            np.testing.assert_array_equal(found, mask)
    with Image.open(same) as opened:
        np.testing.assert_array_equal(read_support(picture, opened, "cup")[1], mask)


@pytest.mark.parametrize("picture_name", ["a.jpg", "a.tif"])
@pytest.mark.parametrize("frame", ["stored", "upright"])
@pytest.mark.parametrize("shape", [(16, 24), (20, 20)])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_mask_without_orientation(
    tmp_path: Path, orientation: int, shape: tuple[int, int], frame: str, picture_name: str
) -> None:
    """The size says the frame of a picture that is turned by a quarter; elsewhere the user must."""
    pixels, mask = upright_pair(shape)
    picture = save(tmp_path / picture_name, stored(pixels, orientation), orientation)
    file = save(tmp_path / "m.png", stored(mask, orientation) if frame == "stored" else mask, None)
    rule = parse_mask_values(f"frame={frame}").of()
    np.testing.assert_array_equal(read_support(picture, file, "cup", rule)[1], mask)
    for encoding, values in (("binary", "1 frame="), ("trimap", "frame=")):
        said = record_of(picture, file, encoding, mask_values=values + frame)
        np.testing.assert_array_equal(load_sample(said, 0)[1], mask)
    readers = [
        lambda: read_support(picture, file, "cup")[1],
        lambda: read_support(picture, Image.open(file), "cup")[1],
        lambda: load_sample(record_of(picture, file, "binary"), 0)[1],
        lambda: load_sample(record_of(picture, file, "trimap"), 0)[1],
    ]
    for read in readers:
        if orientation >= 5 and shape[0] != shape[1]:
            np.testing.assert_array_equal(read(), mask)
            continue
        message = (
            r"^mask (file )?.* does not say whether it is upright, and its image .*a\.\w+ is stored turned "
            rf"\(EXIF orientation {orientation}\): give mask_values \(--mask-values\) frame=upright or "
            "frame=stored$"
        )
        with pytest.raises(ValueError, match=message):
            read()


def test_a_mask_that_looks_the_same_in_both_frames_needs_no_word(tmp_path: Path) -> None:
    mask = np.zeros((9, 15), np.uint8)
    mask[3:6, 5:10] = 1
    picture = save(tmp_path / "a.jpg", np.zeros((9, 15, 3), np.uint8), 3)
    file = save(tmp_path / "m.png", mask, None)
    np.testing.assert_array_equal(read_mask_file(file, Frame.of_file(picture)), mask)


def test_an_array_is_upright(tmp_path: Path) -> None:
    pixels, mask = upright_pair((16, 24))
    picture = save(tmp_path / "a.jpg", stored(pixels, 3), 3)
    np.testing.assert_array_equal(read_support(picture, mask, "cup")[1], mask)


def test_a_mask_whose_own_orientation_gives_another_size_is_named(tmp_path: Path) -> None:
    picture = save(tmp_path / "a.jpg", np.zeros((16, 24, 3), np.uint8), None)
    file = save(tmp_path / "m.png", np.ones((16, 24), np.uint8), 6)
    with pytest.raises(ValueError, match=r"m\.png: the mask is 24x16 pixels but its image .*a\.jpg is 24x16"):
        read_mask_file(file, Frame.of_file(picture))


def test_the_log_says_once_per_folder_what_masks_were_taken_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for folder in ("cup", "key"):
        (tmp_path / folder).mkdir()
        for number in range(3):
            value = 15 if folder == "key" and number else 255
            mask = np.zeros((4, 6), np.uint8)
            mask[1:3] = value
            save(tmp_path / folder / f"{number}.png", mask, None)
    with caplog.at_level(logging.INFO):
        for path in sorted(tmp_path.rglob("*.png")):
            assert read_mask_file(path, Frame((4, 6))).sum() == 12
    assert [record.getMessage() for record in caplog.records] == [
        f"Masks in {tmp_path / 'cup'}: 255 is the object, 0 background",
        f"Masks in {tmp_path / 'key'}: 255 is the object, 0 background",
        f"Masks in {tmp_path / 'key'}: 15 is the object, 0 background",
    ]


def test_masks_that_may_be_black_on_white_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mask = np.full((6, 8), 255, np.uint8)
    mask[2:4, 3:6] = 0
    for name in "ab":
        path = save(tmp_path / f"{name}.png", mask, None)
        assert read_mask_file(path, Frame((6, 8))).sum() == 42
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
        f"Masks in {tmp_path}: the object of a.png fills the whole border of the picture; if it is black on "
        "white, give mask_values (--mask-values) dark"
    ]
    assert read_mask_file(path, Frame((6, 8)), parse_mask_values("dark").of()).sum() == 6
