"""Resizing, soft IoU and Otsu's threshold, by hand."""

import numpy as np
import pytest
import torch

from fss_d2.soft_masks import otsu_mask, resize, soft_iou


def test_resize_samples_corners() -> None:
    x = torch.tensor([0.0, 1.0, 2.0]).view(1, 1, 1, 3)
    assert resize(x, (1, 5)).flatten().tolist() == [0, 0.5, 1, 1.5, 2]
    # Pixel centres 1/4, 3/4, 5/4 ... of the old pixels, kept inside: (i + 1/2) / 2 - 1/2.
    halves = resize(x, (1, 6), align_corners=False).flatten().tolist()
    assert halves == [0, 0.25, 0.75, 1.25, 1.75, 2]


def test_resize_leaves_the_right_size_alone() -> None:
    x = torch.rand(2, 3, 4, 5)
    assert resize(x, (4, 5)) is x
    assert resize(x, torch.Size([8, 3])).shape == (2, 3, 8, 3)


def test_soft_iou_by_hand() -> None:
    masks = torch.tensor([[[[1.0, 0.5], [0.5, 0.0]], [[1.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]])
    target = torch.tensor([[[1, 1], [0, 255]]], dtype=torch.uint8)  # ignored pixels are background
    # overlaps 1.5, 2, 0; sums 2, 2, 0 beside the target's 2
    assert soft_iou(masks, target)[0].tolist() == pytest.approx([1.5 / 2.5, 1.0, 0.0])
    assert soft_iou(masks, torch.zeros_like(target))[0].tolist() == [0.0, 0.0, 0.0]


def test_soft_iou_is_of_each_image_and_each_mask() -> None:
    masks, target = torch.rand(2, 3, 5, 7), (torch.rand(2, 5, 7) > 0.5).long()
    iou = soft_iou(masks, target)
    assert iou.shape == (2, 3)
    for i in range(2):
        for n in range(3):
            assert torch.allclose(iou[i, n], soft_iou(masks[i : i + 1, n : n + 1], target[i : i + 1])[0, 0])


def test_otsu_parts_two_heaps() -> None:
    values = np.array([[0.1, 0.12, 0.13, 0.8], [0.11, 0.79, 0.82, 0.1]])
    assert (otsu_mask(values) == (values > 0.5)).all()
    assert not otsu_mask(np.full((3, 3), 0.7)).any()
