"""Blocks, resizing, pooling and sampling."""

import pytest
import torch
from torch import nn

from fss_d2.modeling.layers import (
    area_fraction,
    balanced_regions,
    conv_pair,
    conv_stack,
    mask_features,
    weighted_sum,
)


def test_conv_stack_is_numbered_as_published() -> None:
    stack = conv_stack(3, (16, 64, 128), (5, 3, 3))
    assert [type(m) for m in stack] == [nn.Conv2d, nn.GroupNorm, nn.ReLU] * 3
    assert stack[0].weight.shape == (16, 3, 5, 5)
    assert stack(torch.rand(2, 3, 7, 9)).shape == (2, 128, 7, 9)
    with pytest.raises(ValueError, match="width 10"):
        conv_stack(3, (10,), (3,))


def test_conv_pair_may_end_in_negative_values() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 4, 6, 6)
    assert conv_pair(4, 8, 2)(x).min() >= 0
    assert conv_pair(4, 8, 2, last_relu=False)(x).min() < 0


def test_area_fraction_loses_no_small_object() -> None:
    mask = torch.zeros(2, 3, 8, 8)
    mask[1, 2, 0, 7] = 1
    fraction = area_fraction(mask == 1, (2, 2))
    assert fraction.shape == (2, 3, 2, 2)
    assert fraction[1, 2].tolist() == [[0, 1 / 16], [0, 0]]
    assert fraction.sum().item() == 1 / 16


def test_weighted_sums_give_the_mean_over_the_pixels_of_all_shots() -> None:
    features = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 2, 1, 1, 2)
    weights = torch.tensor([1.0, 0.0, 1.0, 0.5]).view(1, 2, 1, 1, 2)
    sums = weighted_sum(features, weights)
    assert sums.shape == (1, 2, 1, 1) and sums.flatten().tolist() == [1, 3 + 2]
    assert (sums.sum(dim=1) / weights.sum(dim=(1, 3, 4))).item() == pytest.approx((1 + 3 + 2) / 2.5)
    assert weighted_sum(features, weights * 0).abs().sum() == 0


def test_features_are_masked_at_their_own_size() -> None:
    masks = torch.tensor([[1, 255, 0], [0, 0, 0]]).repeat_interleave(2, dim=0).view(1, 2, 2, 3)
    features = torch.full((1, 2, 4, 2, 3), 2.0)
    assert mask_features(features, masks)[0, :, 3, 1].tolist() == [[2, 0, 0], [0, 0, 0]]
    halves = mask_features(torch.full((2, 1, 2, 5), 2.0), masks[0])  # between two pixels, half of it
    assert halves[0, 0, 0].tolist() == [2, 1, 0, 0, 0]


def test_balanced_regions() -> None:
    mask = torch.tensor([[1.0, 0, 0, 0.5, 0, 0, 0.4, 0], [0] * 8])
    index = balanced_regions(mask, 3)
    assert index[0].tolist() == [0, 0, 3, 1, 4, 6]  # two object pixels repeated; six thinned out evenly
    assert index[1].tolist() == [0, 2, 5, 0, 2, 5]  # no object: all pixels stand in
