"""Training images with the masks of base classes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fss_d2.data.augmentations import Letterbox, Squash
from fss_d2.data.base_instances import BaseInstances

MakeRecords = Callable[..., list[dict[str, Any]]]


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
