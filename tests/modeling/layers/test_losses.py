"""Losses between masks, by hand."""

import math

import pytest
import torch

from fss_d2.modeling.layers import dice_loss, soft_iou, two_channel_dice
from tests.golden.mmformer import blocky, load


def test_dice_loss_by_hand() -> None:
    probability = torch.tensor([[[1.0, 0.5], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    target = torch.tensor([[[1.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    # overlap 1.5, sums 1.5 and 2: 1 - 4 / 4.5; nothing predicted where nothing is: 0
    assert dice_loss(probability, target).tolist() == pytest.approx([1 - 4 / 4.5, 0.0])


def test_dice_loss_ends_at_zero_for_a_perfect_mask() -> None:
    target = (torch.rand(3, 8, 8) > 0.5).float()
    assert torch.equal(dice_loss(target, target), torch.zeros(3))


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
            assert torch.allclose(iou[i, n], soft_iou(masks[i : i + 1, n : n + 1], target[i : i + 1]))


def test_two_channel_dice_by_hand() -> None:
    # Sigmoids 1/2 of the background, 3/4 of the object, on 4 pixels; one is of the object, one is ignored.
    scores = torch.tensor([0.0, math.log(3)]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    target = torch.tensor([[[1, 0], [0, 255]]], dtype=torch.uint8)
    background = 1 - 2 * 3 * 0.5 / (4 * 0.25 + 3)
    foreground = 1 - 2 * 0.75 / (4 * 0.5625 + 1)
    assert float(two_channel_dice(scores, target)) == pytest.approx(background + foreground)
    both = two_channel_dice(scores.repeat(2, 1, 1, 1), torch.cat([target, torch.zeros_like(target)]))
    empty = 1 - 2 * 4 * 0.5 / (4 * 0.25 + 4) + 1
    assert float(both) == pytest.approx((background + foreground + empty) / 2)


def test_two_channel_dice_reference_number() -> None:
    golden = load("e_losses")
    masks = blocky("e:fewshot", 2, 1, 24, 28, 4, 2.0).sigmoid()
    loss = two_channel_dice(torch.cat([1 - masks, masks], dim=1), golden["fewshot_label"])
    assert float(loss) == pytest.approx(float(golden["fewshot_dice"]), abs=1e-6)
