"""Reading images: orientation, modes, and broken files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from fss_d2.data.images import orient, read_image

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def _save_with_orientation(path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RGB).save(path, exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_agrees_with_pillow(tmp_path: Path, orientation: int) -> None:
    _save_with_orientation(tmp_path / "a.png", orientation)
    image, found = read_image(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored))
    assert found == orientation
    np.testing.assert_array_equal(image, expected)
    np.testing.assert_array_equal(orient(RGB, orientation), expected)


def test_orientation_out_of_range_is_upright(tmp_path: Path) -> None:
    _save_with_orientation(tmp_path / "a.png", 0)
    image, found = read_image(tmp_path / "a.png")
    assert found == 1
    np.testing.assert_array_equal(image, RGB)


def _grey(image: np.ndarray) -> list[int]:
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    assert (image == image[..., :1]).all()
    return image[0, :, 0].tolist()


def test_grey_and_one_bit_images_become_rgb(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 7, 255]], np.uint8)).save(tmp_path / "grey.png")
    Image.fromarray(np.array([[False, True]])).save(tmp_path / "bits.png")
    assert _grey(read_image(tmp_path / "grey.png")[0]) == [0, 7, 255]
    assert _grey(read_image(tmp_path / "bits.png")[0]) == [0, 255]


def test_sixteen_bits_are_scaled_unless_eight_suffice(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 256, 65535]], np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(np.array([[0, 9, 255]], np.uint16)).save(tmp_path / "shallow.png")
    assert _grey(read_image(tmp_path / "deep.png")[0]) == [0, 1, 255]
    assert _grey(read_image(tmp_path / "shallow.png")[0]) == [0, 9, 255]


def test_transparent_parts_are_white(tmp_path: Path) -> None:
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0]]], np.uint8)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "rgba.png")
    assert read_image(tmp_path / "rgba.png")[0].tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_palette_and_cmyk_images_become_rgb(tmp_path: Path) -> None:
    palette = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.save(tmp_path / "palette.png")
    assert read_image(tmp_path / "palette.png")[0].tolist() == [[[255, 0, 0], [0, 0, 255]]]
    Image.new("CMYK", (4, 3)).save(tmp_path / "cmyk.jpg")
    assert (read_image(tmp_path / "cmyk.jpg")[0] == 255).all()


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jpg does not exist"):
        read_image(tmp_path / "nowhere.jpg")


@pytest.mark.parametrize("kind", ["empty", "text", "truncated.jpg", "truncated.png", "folder", "float.tiff"])
def test_unreadable_files_are_named_in_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    big = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    if kind == "folder":
        path.mkdir()
    elif kind == "float.tiff":
        Image.new("F", (4, 4)).save(path)
    elif kind.startswith("truncated"):
        big.save(path)
        path.write_bytes(path.read_bytes()[:-900])
    else:
        path.write_text("" if kind == "empty" else "not an image")
    with pytest.raises(ValueError) as error:
        read_image(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
