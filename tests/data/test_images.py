"""Reading images: orientation, modes, and broken files."""

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from fss_d2.data.images import orient, read_image
from fss_d2.inference.annotations import read_picture

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


@pytest.mark.parametrize(("top", "shift"), [(700, 2), (1023, 2), (4095, 4), (16383, 6), (65535, 8)])
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_the_bits_that_a_camera_fills_are_scaled(tmp_path: Path, name: str, top: int, shift: int) -> None:
    """10, 12 and 14 bits in a 16-bit file: grey, colour, with alpha, and as an array."""
    grey = np.array([[0, 100, top // 2, top]], np.uint16)
    color = np.stack([grey, grey[:, ::-1], grey // 2], axis=2)
    opaque = np.dstack([color, np.full_like(grey, 65535)])
    for pixels in (grey, color, opaque):
        stored = pixels if pixels.ndim == 2 else pixels[:, :, [2, 1, 0, 3][: pixels.shape[2]]]
        cv2.imwrite(str(tmp_path / name), stored)
        expected = pixels[..., :3] if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)
        np.testing.assert_array_equal(read_image(tmp_path / name)[0], expected >> shift)


def test_the_depth_is_what_the_file_says(tmp_path: Path) -> None:
    """A dark picture of a 12-bit camera, whose TIFF states its bits, is not taken for one of 8 or 10."""
    for name in ("stated.tif", "plain.tif"):
        with Image.fromarray(np.array([[0, 160, 800]], np.uint16)) as image:
            image.save(tmp_path / name)
    content = bytearray((tmp_path / "stated.tif").read_bytes())
    entry = content.index((258).to_bytes(2, "little") + (3).to_bytes(2, "little"))
    content[entry + 8 : entry + 10] = (12).to_bytes(2, "little")
    packed = np.array([0, 160, 800, 0], np.uint32)  # 12 bits each, as TIFF stores them
    bits = b"".join(int((a << 12) | b).to_bytes(3, "big") for a, b in packed.reshape(2, 2).tolist())
    offset = Image.open(tmp_path / "stated.tif").tag_v2[273][0]
    content[offset : offset + 6] = bits
    (tmp_path / "stated.tif").write_bytes(content)
    assert _grey(read_image(tmp_path / "stated.tif")[0]) == [0, 10, 50]
    with Image.open(tmp_path / "stated.tif") as opened:
        assert _grey(read_picture(opened)[0]) == [0, 10, 50]
    assert _grey(read_image(tmp_path / "plain.tif")[0]) == [0, 40, 200]


def test_white_is_zero_in_16_bits(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 256, 65535]], np.uint16)).save(tmp_path / "a.tif")
    content = bytearray((tmp_path / "a.tif").read_bytes())
    entry = content.index((262).to_bytes(2, "little") + (3).to_bytes(2, "little"))
    content[entry + 8] = 0
    (tmp_path / "a.tif").write_bytes(content)
    assert _grey(read_image(tmp_path / "a.tif")[0]) == [255, 254, 0]


def test_the_log_names_the_depth_and_pictures_that_differ(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, top in (("a", 4000), ("b", 3000), ("c", 900), ("d", 200)):
        Image.fromarray(np.array([[0, top]], np.uint16)).save(tmp_path / f"{name}.png")
    with caplog.at_level(logging.INFO):
        for name in "abcd":
            read_image(tmp_path / f"{name}.png")
    assert [record.getMessage() for record in caplog.records] == [
        f"image file {tmp_path}/a.png is read as 12 bits per channel, scaled to 8",
        f"image file {tmp_path}/c.png is read as 10 bits per channel, scaled to 8, others there as 12 bits",
    ]


def test_whole_numbers_beyond_16_bits_are_refused(tmp_path: Path) -> None:
    for values, found in (([0, 70_000], "from 0 to 70000"), ([-5, 9], "from -5 to 9")):
        Image.fromarray(np.array([values], np.int32)).save(tmp_path / "a.tif")
        with pytest.raises(ValueError, match=rf"a\.tif has values {found}; save it with 8 or 16 bits"):
            read_image(tmp_path / "a.tif")


def test_lab_and_translucent_grey_become_rgb(tmp_path: Path) -> None:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    pure = Image.fromarray(np.array([[[200, 40, 40], [90, 90, 90]]], np.uint8))
    ImageCms.profileToProfile(pure, srgb, lab, outputMode="LAB").save(tmp_path / "lab.tif")
    assert np.abs(read_image(tmp_path / "lab.tif")[0].astype(int) - np.asarray(pure)).max() <= 3
    Image.fromarray(np.array([[[10, 255], [10, 0]]], np.uint8), "LA").save(tmp_path / "la.png")
    assert _grey(read_image(tmp_path / "la.png")[0]) == [10, 255]
    palette = Image.fromarray(np.array([[0, 1]], np.uint8))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.save(tmp_path / "p.png", transparency=1)
    assert read_image(tmp_path / "p.png")[0].tolist() == [[[255, 0, 0], [255, 255, 255]]]


@pytest.mark.parametrize("name", ["a.tif", "a.gif"])
def test_the_first_of_several_pages_is_read(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    pages = [Image.new("L", (4, 3), level) for level in (50, 200)]
    pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
    with caplog.at_level(logging.INFO):
        assert (read_image(tmp_path / name)[0] == 50).all()
        read_image(tmp_path / name)
    text = f"Pictures in {tmp_path}: of files with several pages or frames, the first is read"
    assert [record.getMessage() for record in caplog.records] == [text]


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
