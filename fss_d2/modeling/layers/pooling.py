"""Masked pooling."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .blocks import resize

__all__ = ["area_fraction", "mask_features", "masked_average", "shot_prototypes", "soft_mask"]


def area_fraction(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Share of each cell of an (h, w) grid that a mask covers: (..., H, W) bool or float to (..., h, w).

    Every pixel counts, so an object smaller than a cell is not lost as it is by point sampling.
    """
    return F.adaptive_avg_pool2d(mask.to(torch.float32).flatten(0, -3), size).view(*mask.shape[:-2], *size)


def masked_average(features: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean over all shots and pixels.

    Args:
        features: (B, K, C, h, w).
        weights: (B, K, h, w), at least 0.

    Returns:
        (B, C); zeros where all weights are 0.
    """
    total = torch.einsum("bkchw,bkhw->bc", features, weights)
    return total / weights.sum(dim=(1, 2, 3)).clamp(min=1e-6)[:, None]


def soft_mask(masks: Tensor, size: Sequence[int]) -> Tensor:
    """The object of masks (..., H, W) in {0, 1, 255}, resized to (..., h, w) in [0, 1] (PFENet).

    Bilinear with aligned corners; 255 counts as background.
    """
    planes = (masks == 1).to(torch.float32).flatten(0, -3)
    return resize(planes[:, None], size)[:, 0].unflatten(0, masks.shape[:-2])


def mask_features(features: Tensor, masks: Tensor) -> Tensor:
    """Features (..., C, h, w) times the `soft_mask` of masks (..., H, W): zero, or faded, off the object."""
    return features * soft_mask(masks, features.shape[-2:]).unsqueeze(-3).to(features.dtype)


def shot_prototypes(features: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean over the pixels of each shot (PFENet): features (B, K, C, h, w), weights (B, K, h, w).

    Returns:
        (B, K, C); 0.0005 is added to the sum of the weights, so it is zeros where all weights are 0.
    """
    total = torch.einsum("bkchw,bkhw->bkc", features, weights)
    return total / (weights.sum(dim=(2, 3)) + 5e-4)[..., None]
