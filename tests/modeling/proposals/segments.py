"""Segments that the tests of matching and losses share."""

import torch
from torch import Tensor

from tests.golden.mmformer import ellipse


def golden_segments() -> list[Tensor]:
    """Segments of the two images of cases d and e: (3, 96, 112) and (2, 96, 112)."""
    first, second = ellipse(96, 112, 0.35, 0.30, 0.25, 0.20), ellipse(96, 112, 0.70, 0.65, 0.20, 0.30)
    alone = ellipse(96, 112, 0.5, 0.5, 0.4, 0.3)
    union = torch.maximum(first, second)
    return [torch.stack([1 - union, first, second]), torch.stack([1 - alone, alone])]


def halves(size: int = 16) -> Tensor:
    """The left and the right half of an image: (2, size, size) bool."""
    left = torch.zeros(size, size, dtype=torch.bool)
    left[:, : size // 2] = True
    return torch.stack([left, ~left])


def quadrants(size: int = 16) -> Tensor:
    """The four quarters of an image, row by row: (4, size, size) bool."""
    left, right = halves(size)
    top, bottom = left.T, right.T
    return torch.stack([top & left, top & right, bottom & left, bottom & right])
