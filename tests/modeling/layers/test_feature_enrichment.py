"""The pyramid of PFENet."""

import pytest
import torch
from torch import Tensor, nn

from fss_d2.modeling.layers import FeatureEnrichment, bin_sizes


def fill(module: nn.Module, value: float) -> None:
    """Give every 1x1 convolution the weight `value`; every 3x3 one the same, at its centre."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            nn.init.zeros_(child.weight)
            centre = child.kernel_size[0] // 2
            child.weight.data[:, :, centre, centre] = value
            if child.bias is not None:
                nn.init.zeros_(child.bias)


def constant(value: float, *size: int) -> Tensor:
    return torch.full((1, 1, *size), float(value))


def test_bins_are_cells_or_fractions() -> None:
    assert bin_sizes((60, 30, 15, 8), 14) == [60, 30, 15, 8]
    assert bin_sizes((1.0, 0.5, 0.25, 0.125), 81) == [81, 40, 20, 10]  # PFENet's on COCO, 641 pixels
    assert bin_sizes((0.25, 2.0), 3) == [1, 2]
    for wrong in (0.0, -1.0, 1.5):
        with pytest.raises(ValueError, match=f"{wrong} is neither"):
            bin_sizes((wrong,), 10)


def test_numbers_of_a_hand_computed_pyramid() -> None:
    """All weights 1/2, one channel. Level 0: 2 -> 1, then 1 + 1/4 = 1.25, logits 1.25/4 = 0.3125.
    Level 1: 4 -> 2, then 2 + (2 + 1.25)/2 = 3.625, then * 1.25 = 4.53125.
    Joined: (1.25 + 4.53125)/2 = 2.890625, * 1.25 = 3.61328125."""
    pyramid = FeatureEnrichment(1, dim=1, num_levels=2).eval()
    fill(pyramid, 0.5)
    merged, logits = pyramid([constant(2, 3, 3), constant(4, 2, 2)], (4, 5))
    torch.testing.assert_close(merged, constant(3.61328125, 4, 5))
    torch.testing.assert_close(logits[0], constant(0.3125, 3, 3).expand(-1, 2, -1, -1))
    torch.testing.assert_close(logits[1], constant(4.53125 / 4, 2, 2).expand(-1, 2, -1, -1))


def test_a_level_learns_from_the_one_before_it_only() -> None:
    torch.manual_seed(0)
    pyramid = FeatureEnrichment(3, dim=8, num_levels=3).eval()
    levels = [torch.randn(2, 3, side, side) for side in (6, 4, 2)]
    _, before = pyramid(levels, (5, 5))
    for j in range(3):
        changed = [level + (i == j) for i, level in enumerate(levels)]
        _, after = pyramid(changed, (5, 5))
        assert [bool((a != b).any()) for a, b in zip(after, before, strict=True)] == [
            i >= j for i in range(3)
        ]


def test_the_level_before_passes_through_the_full_size() -> None:
    """Reference code: at a full size of one cell, nothing of where it was is left for the next level."""
    pyramid = FeatureEnrichment(1, dim=1, num_levels=2).eval()
    fill(pyramid, 0.5)
    levels = [torch.rand(1, 1, 8, 8), torch.zeros(1, 1, 4, 4)]
    _, (_, coarse) = pyramid(levels, (1, 1))
    assert coarse.unique().numel() == 1
    _, (_, fine) = pyramid(levels, (8, 8))
    assert fine[0, 0].unique().numel() == 16


def test_number_of_parameters() -> None:
    parts = {
        name: sum(p.numel() for p in part.parameters())
        for name, part in FeatureEnrichment(513).named_children()
    }
    assert parts == {
        "merge": 525_312,
        "hand_on": 393_216,
        "refine": 4_718_592,
        "classifiers": 2_361_352,
        "join": 262_144 + 1_179_648,
    }
