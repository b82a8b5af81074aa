"""Masks of one class from every encoding, their fit to the image, and wrong masks."""

from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from PIL import Image

from fss_d2.data.masks import binary_mask, load_mask, load_sample

Record = dict[str, Any]


def _png_record(tmp_path: Path, pixels: np.ndarray | Image.Image, encoding: str) -> Record:
    """A record whose mask file holds `pixels` and whose image has the same size."""
    mask = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    mask.save(tmp_path / "mask.png")
    Image.new("RGB", mask.size).save(tmp_path / "image.png")
    return {
        "file_name": str(tmp_path / "image.png"),
        "sem_seg_file_name": str(tmp_path / "mask.png"),
        "mask_encoding": encoding,
        "image_id": "image",
        "height": mask.size[1],
        "width": mask.size[0],
        "classes": [0],
    }


def _palette(indices: list[list[int]], colors: list[int]) -> Image.Image:
    image = Image.fromarray(np.array(indices, np.uint8)).convert("P")
    image.putpalette(colors)
    return image


def _rgba(rows: list[list[list[int]]]) -> Image.Image:
    return Image.fromarray(np.array(rows, np.uint8), "RGBA")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_class_map_keeps_one_class_and_ignore(tmp_path: Path, dtype: type) -> None:
    record = _png_record(tmp_path, np.array([[0, 1, 2, 3, 255, 2]], dtype), "class_map")
    assert load_mask(record, 1).tolist() == [[0, 0, 1, 0, 255, 1]]
    assert load_mask(record, 1).dtype == np.uint8


def test_class_map_of_more_than_254_classes_in_16_bits(tmp_path: Path) -> None:
    record = _png_record(tmp_path, np.array([[0, 300, 255]], np.uint16), "class_map")
    assert load_mask(record, 299).tolist() == [[0, 1, 255]]


def test_class_map_in_a_palette_file_is_read_by_its_entries(tmp_path: Path) -> None:
    record = _png_record(tmp_path, _palette([[0, 1, 2]], [0, 0, 0, 128, 0, 0, 0, 128, 0]), "class_map")
    assert load_mask(record, 0).tolist() == [[0, 1, 0]]


def test_class_map_with_three_equal_channels_is_accepted(tmp_path: Path) -> None:
    grey = np.repeat(np.array([[0, 1, 255]], np.uint8)[..., None], 3, axis=2)
    assert load_mask(_png_record(tmp_path, grey, "class_map"), 0).tolist() == [[0, 1, 255]]


def test_trimap_is_kept(tmp_path: Path) -> None:
    record = _png_record(tmp_path, np.array([[0, 1, 255]], np.uint8), "trimap")
    assert load_mask(record, 0).tolist() == [[0, 1, 255]]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(np.array([[0, 127, 128, 255]], np.uint8)), [0, 0, 1, 1]),  # FSS-1000's rule
        (Image.fromarray(np.array([[0, 1, 1, 0]], np.uint8)), [0, 1, 1, 0]),
        (Image.fromarray(np.array([[0, 49, 50, 100]], np.uint8)), [0, 0, 1, 1]),
        (Image.fromarray(np.array([[0, 0, 0, 0]], np.uint8)), [0, 0, 0, 0]),
        (Image.fromarray(np.array([[0, 32767, 32768, 65535]], np.uint16)), [0, 0, 1, 1]),
        (Image.fromarray(np.array([[0, 100, 200, 255]], np.uint16)), [0, 0, 1, 1]),  # 8 bits in a 16-bit file
        (Image.fromarray(np.array([[False, True, True, False]])), [0, 1, 1, 0]),
        (_palette([[0, 1, 1, 0]], [0, 0, 0, 128, 0, 0]), [0, 1, 1, 0]),  # VOC's dark red
        (_palette([[0, 1, 1, 0]], [255, 255, 255, 0, 0, 0]), [1, 0, 0, 1]),  # colours count, not entries
        (_palette([[0, 1, 1, 0]], [0, 0, 0, 0, 0, 0]), [0, 1, 1, 0]),  # one colour: entries count
        (Image.fromarray(np.array([[[0, 0, 0], [255, 0, 0]]], np.uint8)), [0, 1]),  # pure red
        (_rgba([[[0, 0, 0, 255], [255, 255, 255, 255], [255, 255, 255, 0]]]), [0, 1, 0]),
        (_rgba([[[9, 9, 9, 0], [9, 9, 9, 255]]]), [0, 1]),  # drawn in the alpha channel alone
    ],
)
def test_binary_masks_in_every_form(image: Image.Image, expected: list[int]) -> None:
    assert binary_mask(image).astype(int).tolist() == [expected]


def _annotated(annotations: list[dict[str, Any]], tmp_path: Path, size: tuple[int, int] = (8, 10)) -> Record:
    Image.new("RGB", size[::-1]).save(tmp_path / "image.png")
    return {
        "file_name": str(tmp_path / "image.png"),
        "image_id": 1,
        "height": size[0],
        "width": size[1],
        "classes": [0],
        "annotations": annotations,
    }


def _box(x0: int, y0: int, x1: int, y1: int) -> list[float]:
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def _rle(mask: np.ndarray, compressed: bool) -> dict[str, Any]:
    if compressed:
        rle = coco_mask.encode(np.asfortranarray(mask))
        return {"size": rle["size"], "counts": rle["counts"].decode()}
    flat = np.concatenate([[0], mask.T.ravel(), [1 - mask.T.ravel()[-1]]])
    edges = np.flatnonzero(np.diff(flat))
    return {"size": list(mask.shape), "counts": np.diff([0, *edges]).tolist()}


def test_objects_of_a_class_are_joined_and_other_classes_do_not_erase(tmp_path: Path) -> None:
    record = _annotated(
        [
            {"category_id": 0, "segmentation": [_box(0, 0, 2, 2), _box(4, 0, 6, 2)], "iscrowd": 0},
            {"category_id": 0, "segmentation": [_box(0, 4, 2, 6)]},
            {"category_id": 3, "segmentation": [_box(0, 0, 10, 8)], "iscrowd": 0},
        ],
        tmp_path,
    )
    expected = np.zeros((8, 10), np.uint8)
    expected[0:2, 0:2] = expected[0:2, 4:6] = expected[4:6, 0:2] = 1
    np.testing.assert_array_equal(load_mask(record, 0), expected)
    assert (load_mask(record, 3) == 1).all()


@pytest.mark.parametrize("compressed", [True, False])
def test_crowd_regions_are_ignored_except_under_objects(tmp_path: Path, compressed: bool) -> None:
    crowd = np.zeros((8, 10), np.uint8)
    crowd[2:6, 3:9] = 1
    record = _annotated(
        [
            {"category_id": 0, "segmentation": _rle(crowd, compressed), "iscrowd": 1},
            {"category_id": 0, "segmentation": [_box(0, 0, 5, 4)], "iscrowd": 0},
        ],
        tmp_path,
    )
    expected = crowd * 255
    expected[0:4, 0:5] = 1
    np.testing.assert_array_equal(load_sample(record, 0)[1], expected)


def test_object_too_thin_to_rasterise_marks_its_corners(tmp_path: Path) -> None:
    thin = [{"category_id": 0, "segmentation": [[2.0, 3.0, 2.0, 3.0, 2.0, 3.0]], "iscrowd": 0}]
    mask = load_mask(_annotated(thin, tmp_path), 0)
    assert np.argwhere(mask).tolist() == [[3, 2]]


def _save_turned(path: Path, size: tuple[int, int], orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size[::-1]).save(path, exif=exif)


def test_mask_of_the_stored_size_is_turned_with_its_image(tmp_path: Path) -> None:
    stored = np.array([[1, 1, 0], [0, 0, 0]], np.uint8)
    record = _png_record(tmp_path, stored, "trimap")
    _save_turned(tmp_path / "image.png", (2, 3), orientation=6)  # shown a quarter turn clockwise
    image, mask = load_sample(record, 0)
    assert image.shape == (3, 2, 3)
    assert mask.tolist() == [[0, 1], [0, 1], [0, 0]]


def test_mask_of_the_upright_size_is_not_turned(tmp_path: Path) -> None:
    upright = np.array([[1, 0], [1, 0], [0, 0]], np.uint8)
    record = _png_record(tmp_path, upright, "trimap")
    _save_turned(tmp_path / "image.png", (2, 3), orientation=6)
    assert load_sample(record, 0)[1].tolist() == upright.tolist()


def test_sizes_that_differ_are_named(tmp_path: Path) -> None:
    record = _png_record(tmp_path, np.ones((4, 6), np.uint8), "trimap")
    Image.new("RGB", (6, 5)).save(tmp_path / "image.png")
    with pytest.raises(
        ValueError, match=r"mask.png: the mask is 6x4 pixels but its image .*image.png is 6x5"
    ):
        load_sample(record, 0)


@pytest.mark.parametrize("encoding", ["trimap", "binary", "class_map"])
def test_mask_without_the_class_is_named(tmp_path: Path, encoding: str) -> None:
    record = _png_record(tmp_path, np.zeros((4, 6), np.uint8), encoding)
    with pytest.raises(ValueError, match=r"mask\.png: no pixel shows class 0"):
        load_sample(record, 0)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"sem_seg_file_name": "/nowhere/m.png"},
            FileNotFoundError,
            "mask file /nowhere/m.png does not exist",
        ),
        ({"file_name": "/nowhere/i.jpg"}, FileNotFoundError, "image file /nowhere/i.jpg does not exist"),
        ({"mask_encoding": "instance"}, ValueError, "unknown mask_encoding 'instance'"),
        ({"mask_encoding": "trimap"}, ValueError, "mask.png has the value 2; a trimap holds"),
        ({"sem_seg_file_name": None}, ValueError, "neither sem_seg_file_name nor annotations"),
    ],
)
def test_wrong_records_are_named(
    tmp_path: Path, changes: Record, error: type[Exception], message: str
) -> None:
    record = _png_record(tmp_path, np.array([[0, 1, 2]], np.uint8), "class_map")
    with pytest.raises(error, match=message):
        load_sample({**record, **changes}, 0)


def test_colour_coded_class_maps_are_refused(tmp_path: Path) -> None:
    record = _png_record(tmp_path, np.array([[[0, 0, 0], [128, 0, 0]]], np.uint8), "class_map")
    with pytest.raises(ValueError, match=r"mask\.png is a RGB image; save the class numbers"):
        load_mask(record, 0)


def test_truncated_mask_is_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 2, (64, 64), dtype=np.uint8)
    record = _png_record(tmp_path, noise, "trimap")
    path = Path(record["sem_seg_file_name"])
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ValueError, match=r"mask file .*mask\.png cannot be read"):
        load_sample(record, 0)


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [3, 3], "counts": [9]},  # of another image
        {"size": [8, 10]},
        [["a", "b", "c", "d", "e", "f"]],
        [[1, 2, 3]],
        7,
    ],
)
def test_annotations_that_cannot_be_drawn_name_the_image(tmp_path: Path, segmentation: Any) -> None:
    record = _annotated([{"category_id": 0, "segmentation": segmentation, "iscrowd": 0}], tmp_path)
    with pytest.raises(ValueError) as error:
        load_sample(record, 0)
    assert str(error.value).startswith(f"annotations of {record['file_name']}: class 0 cannot be drawn")
    assert "\n" not in str(error.value)
