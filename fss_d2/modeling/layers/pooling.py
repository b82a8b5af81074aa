"""Pooling of features under masks, and the choice of pixels by masks; sums are in float32."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .blocks import resize


def area_fraction(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Share of each cell of an (h, w) grid that a mask covers: (..., H, W) bool or float to (..., h, w).

    Every pixel counts, so an object smaller than a cell is not lost, as it would be by point sampling.
    """
    return F.adaptive_avg_pool2d(mask.to(torch.float32).flatten(0, -3), size).view(*mask.shape[:-2], *size)


def weighted_sum(features: Tensor, weights: Tensor) -> Tensor:
    """Sums of features (B, K, C, h, w) over the pixels of each image, with N weights (B, K, N, h, w).

    Returns (B, K, N, C) float32, also under autocast: sums over thousands of pixels would overflow float16.
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

    Returns (B, K, C) float32; 0.0005 is added to the sum of the weights, so zeros where all weights are 0.
    """
    total = weighted_sum(features, weights[:, :, None])[:, :, 0]
    return total / (weights.float().sum(dim=(2, 3)) + 5e-4)[..., None]


def balanced_regions(mask: Tensor, pixels: int) -> Tensor:
    """Pick as many object pixels as background pixels, evenly spaced, without randomness.

    In a mask (B, N) in [0, 1], 0.5 and above is object. A region with too few pixels repeats them. An empty
    region is replaced by all pixels (DCAMA, Table S5 (b), after CyCTR). Returns (B, 2 * pixels) indices into
    N, object first.
    """
    foreground = mask >= 0.5
    regions = torch.stack([foreground, ~foreground], dim=1)  # (B, 2, N)
    # Sorted, a region's pixels come first, in their order; all pixels, if it has none.
    indices = (~regions).to(torch.uint8).argsort(dim=2, stable=True)
    count = regions.sum(dim=2, keepdim=True)
    count = count.masked_fill(count == 0, mask.shape[1])
    steps = torch.arange(pixels, device=mask.device)
    return indices.gather(2, steps * count // pixels).flatten(1)


def join_levels(maps: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """Feature levels (B, C, h, w) as unit vectors, resized to the first one's size and joined."""
    size = maps[names[0]].shape[-2:]
    levels = [resize(maps[name].float(), size, align_corners=False) for name in names]
    return torch.cat([F.normalize(level, dim=1) for level in levels], dim=1)
