"""Losses between masks, by hand."""

import pytest
import torch

from fss_d2.modeling.layers import dice_loss


def test_dice_loss_by_hand() -> None:
    probability = torch.tensor([[[1.0, 0.5], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    target = torch.tensor([[[1.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    # overlap 1.5, sums 1.5 and 2: 1 - 4 / 4.5; nothing predicted where nothing is: 0
    assert dice_loss(probability, target).tolist() == pytest.approx([1 - 4 / 4.5, 0.0])


def test_dice_loss_ends_at_zero_for_a_perfect_mask() -> None:
    target = (torch.rand(3, 8, 8) > 0.5).float()
    assert torch.equal(dice_loss(target, target), torch.zeros(3))
