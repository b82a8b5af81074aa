"""Losses between masks, by hand."""

import math

import pytest
import torch

from fss_d2.modeling.layers import dice_loss, two_channel_dice
from tests.golden.mmformer import blocky, load


def test_dice_loss_by_hand() -> None:
    probability = torch.tensor([[[1.0, 0.5], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    target = torch.tensor([[[1.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    # overlap 1.5, sums 1.5 and 2: 1 - 4 / 4.5; nothing predicted where nothing is: 0
    assert dice_loss(probability, target).tolist() == pytest.approx([1 - 4 / 4.5, 0.0])


def test_dice_loss_ends_at_zero_for_a_perfect_mask() -> None:
    target = (torch.rand(3, 8, 8) > 0.5).float()
    assert torch.equal(dice_loss(target, target), torch.zeros(3))


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
