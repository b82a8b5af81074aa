"""Segments of an image from every mask source, against masks painted by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from fss_d2.data import get_records, masks, register_coco_json
from fss_d2.data.augmentations import Letterbox, Squash
from fss_d2.data.masks import load_sample
from fss_d2.data.samples import BaseInstances, Segment, load_segments, union_mask

Record = dict[str, Any]
MakeRecords = Callable[..., list[Record]]


def _box(top: int, left: int, bottom: int, right: int, shape: tuple[int, int] = (10, 12)) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def _polygon(top: int, left: int, bottom: int, right: int) -> list[list[float]]:
    return [[left, top, right, top, right, bottom, left, bottom]]


def _annotation(class_id: int, *box: int, crowd: int = 0) -> Record:
    return {"category_id": class_id, "segmentation": _polygon(*box), "iscrowd": crowd}


@pytest.fixture
def annotated(tmp_path: Path) -> Record:
    """Two overlapping objects of class 0 and a crowd of it, one of class 2, one of the held-out class 3."""
    Image.new("RGB", (12, 10)).save(tmp_path / "image.png")
    return {
        "file_name": str(tmp_path / "image.png"),
        "image_id": 7,
        "height": 10,
        "width": 12,
        "classes": [0, 2],
        "annotations": [
            _annotation(0, 1, 1, 4, 5),
            _annotation(0, 3, 3, 6, 6),
            _annotation(2, 2, 2, 5, 8),
            _annotation(3, 7, 0, 9, 3),
            _annotation(0, 7, 6, 9, 11, crowd=1),
        ],
    }


def _by_label(segments: list[Segment]) -> dict[int, np.ndarray]:
    assert len({s.label for s in segments}) == len(segments)
    return {s.label: s.mask for s in segments}


def _image_of(record: Record, mask: np.ndarray, folder: Path, **keys: object) -> Record:
    Image.fromarray(mask).save(folder / "mask.png")
    plain = {key: value for key, value in record.items() if key != "annotations"}
    return {**plain, "sem_seg_file_name": str(folder / "mask.png"), **keys}


def test_semantic_segments_of_annotations(annotated: Record) -> None:
    image, mask, segments = load_segments(annotated, 0, (0, 1, 2), "semantic")
    assert image.shape == (10, 12, 3)
    by_label = _by_label(segments)
    assert list(by_label) == [0, 1, 3]
    both = _box(1, 1, 4, 5) | _box(3, 3, 6, 6)
    crowd = _box(7, 6, 9, 11) == 1
    np.testing.assert_array_equal(by_label[1], np.where(crowd, 255, both))
    np.testing.assert_array_equal(by_label[3], _box(2, 2, 5, 8))  # overlaps are nobody's loss
    covered = (both | _box(2, 2, 5, 8) | _box(7, 0, 9, 3)) == 1
    np.testing.assert_array_equal(by_label[0], np.select([covered, crowd], [0, 255], 1))
    np.testing.assert_array_equal(mask, load_sample(annotated, 0)[1])


def test_instances_are_one_mask_each_without_crowds(annotated: Record) -> None:
    _, mask, segments = load_segments(annotated, 0, (0, 1, 2), "instance")
    assert [s.label for s in segments] == [1, 1, 3]
    boxes = [(1, 1, 4, 5), (3, 3, 6, 6), (2, 2, 5, 8)]
    for segment, box in zip(segments, boxes, strict=True):
        np.testing.assert_array_equal(segment.mask == 1, _box(*box) == 1)
    np.testing.assert_array_equal(union_mask([s.mask for s in segments if s.label == 1]), mask)


def test_objects_are_instances_where_there_are_annotations(
    annotated: Record, make_records: MakeRecords
) -> None:
    assert [s.label for s in load_segments(annotated, 0, (0,), "objects")[2]] == [1, 1]
    record = make_records()[0]
    assert [s.label for s in load_segments(record, 0, (0, 1, 2), "objects")[2]] == [1, 2]
    assert [s.label for s in load_segments(record, 0, (0, 1, 2), "semantic")[2]] == [0, 1, 2]


def test_episode_s_class_is_always_among_the_segments(annotated: Record) -> None:
    assert [s.label for s in load_segments(annotated, 3, (2,), "semantic")[2]] == [0, 3, 4]


def test_class_maps_are_read_once_and_void_is_nobody_s(
    annotated: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.zeros((10, 12), np.uint8)
    values[:2], values[2:4], values[4:6], values[6:7] = 1, 3, 4, 255
    reads = []
    read = masks.open_image
    monkeypatch.setattr(masks, "open_image", lambda *given: (reads.append(given), read(*given))[1])
    record = _image_of(annotated, values, tmp_path, mask_encoding="class_map")
    _, mask, segments = load_segments(record, 0, (0, 1, 2), "semantic")
    assert len(reads) == 1
    by_label = _by_label(segments)
    assert list(by_label) == [0, 1, 3]  # class 3 is not asked for, class 1 not shown
    for label, segment in by_label.items():
        np.testing.assert_array_equal(segment == 1, values == label)
        np.testing.assert_array_equal(segment == 255, values == 255)
    np.testing.assert_array_equal(mask, by_label[1])


@pytest.mark.parametrize(("encoding", "void"), [("binary", 0), ("trimap", 255)])
def test_masks_of_one_class(annotated: Record, tmp_path: Path, encoding: str, void: int) -> None:
    values = _box(1, 2, 5, 7)
    values[9] = void
    record = _image_of(annotated, values, tmp_path, mask_encoding=encoding, classes=[5])
    by_label = _by_label(load_segments(record, 5, (5,), "semantic")[2])
    np.testing.assert_array_equal(by_label[6], values)
    np.testing.assert_array_equal(by_label[0], np.select([values == 0, values == 255], [1, 255], 0))


def test_segments_are_turned_with_their_image(annotated: Record, tmp_path: Path) -> None:
    """EXIF orientation 6: stored with 10 rows and 12 columns, upright with 12 and 10."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (12, 10)).save(tmp_path / "turned.jpg", exif=exif)
    annotated["file_name"] = str(tmp_path / "turned.jpg")
    upright = load_segments(annotated, 2, (2,), "instance")
    assert upright[0].shape == (12, 10, 3)
    np.testing.assert_array_equal(upright[2][0].mask, np.rot90(_box(2, 2, 5, 8), -1))
    np.testing.assert_array_equal(upright[1], upright[2][0].mask)


def test_held_out_objects_of_a_coco_file_are_not_background(tmp_path: Path) -> None:
    Image.new("RGB", (12, 10)).save(tmp_path / "a.png")
    boxes = {0: (1, 1, 4, 5), 1: (6, 6, 9, 9)}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 10, "width": 12}],
        "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}],
        "annotations": [
            {"id": c, "image_id": 1, "category_id": c, "segmentation": _polygon(*box)}
            for c, box in boxes.items()
        ],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    name = "coco_of_test_segments"
    register_coco_json(name, tmp_path / "a.json", tmp_path, novel_classes=["dog"], split="train")
    try:
        (record,) = get_records(name)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert record["classes"] == [0]
    by_label = _by_label(load_segments(record, 0, (0,), "semantic")[2])
    covered = _box(*boxes[0]) | _box(*boxes[1])
    np.testing.assert_array_equal(by_label[0], 1 - covered)
    assert list(by_label) == [0, 1]


def test_union_puts_objects_before_ignored_pixels() -> None:
    union = union_mask([np.array([[0, 1, 255, 255]], np.uint8), np.array([[0, 255, 1, 0]], np.uint8)])
    np.testing.assert_array_equal(union, [[0, 1, 1, 255]])


def test_what_is_missing_is_named(annotated: Record, tmp_path: Path, make_records: MakeRecords) -> None:
    record = make_records()[1]
    with pytest.raises(ValueError, match=r"image1\.png has no 'annotations' that separate its objects"):
        load_segments(record, 1, (1,), "instance")
    with pytest.raises(ValueError, match=r"mask1\.png: no pixel shows class 0"):
        load_segments(record, 0, (0, 1), "semantic")
    with pytest.raises(ValueError, match=r"annotations of .*image\.png: no pixel shows class 1"):
        load_segments(annotated, 1, (0, 1), "semantic")
    small = _image_of(annotated, np.ones((5, 5), np.uint8), tmp_path)
    with pytest.raises(ValueError, match=r"the mask is 5x5 pixels but its image .* is 12x10"):
        load_segments(small, 0, (0,), "semantic")


def test_joined_objects_are_no_instances(annotated: Record) -> None:
    joined = {**annotated, "objects_joined": True}
    class_id = joined["classes"][0]
    with pytest.raises(ValueError, match="no 'annotations' that separate its objects"):
        load_segments(joined, class_id, joined["classes"], "instance")
    _, _, segments = load_segments(joined, class_id, joined["classes"], "objects")
    labels = [segment.label for segment in segments]
    assert len(labels) == len(set(labels)) and 0 not in labels


def test_an_image_with_the_masks_of_its_base_classes(make_records: MakeRecords) -> None:
    """Image 0 shows classes 0 (16 x 26 pixels) and 1 (14 x 30); the places are those in the list given."""
    records = make_records(4, classes=3)
    item = BaseInstances(records, [2, 1, 0], Squash((40, 56)), 0)[0]
    assert item.image.shape == (3, 40, 56) and item.image.dtype == torch.uint8
    assert item.classes.tolist() == [2, 1]
    assert [int((mask == 1).sum()) for mask in item.masks] == [16 * 26, 14 * 30]
    assert (item.masks[:, 0] == 255).all()


def test_only_images_that_show_a_base_class(make_records: MakeRecords) -> None:
    records = make_records(6, classes=3)
    instances = BaseInstances(records, [1], Squash((40, 56)), 0)
    assert [r["image_id"] for r in instances.records] == [r["image_id"] for r in records if 1 in r["classes"]]
    assert all(instances[i].classes.tolist() == [0] for i in range(len(instances)))


def test_small_instances_are_left_out(make_records: MakeRecords) -> None:
    """The area is that of the mask as it was before it is resized."""
    records = make_records(1, classes=3)
    item = BaseInstances(records, [0, 1, 2], Squash((20, 28)), 16 * 26 + 1)[0]
    assert item.classes.tolist() == [1]
    none = BaseInstances(records, [0, 1, 2], Squash((20, 28)), 1000)[0]
    assert none.masks.shape == (0, 20, 28) and none.classes.shape == (0,)


def test_padding_is_in_no_mask(make_records: MakeRecords) -> None:
    item = BaseInstances(make_records(1), [0, 1, 2], Letterbox((56, 56)), 0)[0]
    assert item.masks.shape == (2, 56, 56)
    assert (item.masks[:, 40:] == 255).all()


def test_labels_of_other_classes_make_no_difference(make_records: MakeRecords) -> None:
    """Masks of a class come from annotations of that class alone."""
    square = [[4, 4, 20, 4, 20, 20, 4, 20]]
    record = {k: v for k, v in make_records(1)[0].items() if "sem_seg" not in k and k != "mask_encoding"}
    base = {"category_id": 0, "segmentation": square, "iscrowd": 0}
    novel = {"category_id": 2, "segmentation": [[8, 8, 30, 8, 30, 30, 8, 30]], "iscrowd": 0}
    results = []
    for annotations, classes in (([base, novel], [0, 2]), ([base], [0])):
        given = {**record, "annotations": annotations, "classes": classes}
        results.append(BaseInstances([given], [0, 1], Squash((40, 56)), 0)[0])
    assert torch.equal(results[0].masks, results[1].masks)
    assert results[0].classes.tolist() == results[1].classes.tolist() == [0]
    assert np.count_nonzero(results[0].masks == 1) > 200
