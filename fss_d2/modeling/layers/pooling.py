"""Pooling of features under masks, and the choice of pixels by masks; sums are in float32."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .blocks import resize

__all__ = [
    "area_fraction",
    "balanced_regions",
    "mask_features",
    "shot_prototypes",
    "soft_mask",
    "weighted_sum",
]


def area_fraction(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Share of each cell of an (h, w) grid that a mask covers: (..., H, W) bool or float to (..., h, w).

    Every pixel counts, so an object smaller than a cell is not lost, as it would be by point sampling.
    """
    return F.adaptive_avg_pool2d(mask.to(torch.float32).flatten(0, -3), size).view(*mask.shape[:-2], *size)


def weighted_sum(features: Tensor, weights: Tensor) -> Tensor:
    """Sums of features over the pixels of each image, weighted; in float32, also under autocast.

    Sums over thousands of pixels would overflow float16.

    Args:
        features: (B, K, C, h, w).
        weights: (B, K, N, h, w), N weights per pixel.

    Returns:
        (B, K, N, C) float32.
    """
    with torch.autocast(features.device.type, enabled=False):
        return torch.einsum("bkchw,bknhw->bknc", features.float(), weights.float())


def soft_mask(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Object of masks (..., H, W) in {0, 1, 255}, resized to (..., h, w) in [0, 1] (PFENet).

    Bilinear with aligned corners; 255 counts as background.
    """
    planes = (masks == 1).to(torch.float32).flatten(0, -3)
    return resize(planes[:, None], size)[:, 0].unflatten(0, masks.shape[:-2])


def mask_features(features: Tensor, masks: Tensor) -> Tensor:
    """Features (..., C, h, w) times the `soft_mask` of masks (..., H, W), so zero or faded off the object."""
    return features * soft_mask(masks, features.shape[-2:]).unsqueeze(-3).to(features.dtype)


def shot_prototypes(features: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean over the pixels of each shot (PFENet): features (B, K, C, h, w), weights (B, K, h, w).

    Returns:
        (B, K, C) float32; 0.0005 is added to the sum of the weights, so zeros where all weights are 0.
    """
    total = weighted_sum(features, weights[:, :, None])[:, :, 0]
    return total / (weights.float().sum(dim=(2, 3)) + 5e-4)[..., None]


def balanced_regions(mask: Tensor, pixels: int) -> Tensor:
    """Pick as many object pixels as background pixels, evenly spaced, without randomness.

    A region with too few pixels repeats them. An empty region is replaced by all pixels (DCAMA,
    Table S5 (b), after CyCTR).

    Args:
        mask: (B, N) in [0, 1]; 0.5 and above is object.
        pixels: number of pixels per region.

    Returns:
        (B, 2 * pixels) indices into N, object first.
    """
    steps = torch.arange(pixels, device=mask.device)
    rows = []
    for foreground in mask >= 0.5:
        for region in (foreground, ~foreground):
            found = region.nonzero()[:, 0]
            found = found if len(found) else torch.arange(len(region), device=mask.device)
            rows.append(found[steps * len(found) // pixels])
    return torch.stack(rows).view(len(mask), 2 * pixels)
