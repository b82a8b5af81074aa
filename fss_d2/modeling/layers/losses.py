"""Losses between masks."""

import torch
from torch import Tensor

__all__ = ["dice_loss", "two_channel_dice"]


def dice_loss(probability: Tensor, target: Tensor) -> Tensor:
    """Soft Dice loss of each mask, 1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1), in float32.

    Args:
        probability: (B, ...) in [0, 1].
        target: (B, ...) 0 or 1.

    Returns:
        (B,) in [0, 1).
    """
    probability, target = probability.float(), target.float()
    overlap = 2 * (probability * target).flatten(1).sum(dim=1)
    total = probability.flatten(1).sum(dim=1) + target.flatten(1).sum(dim=1)
    return 1 - (overlap + 1) / (total + 1)


def two_channel_dice(scores: Tensor, target: Tensor) -> Tensor:
    """MM-Former's Dice loss on the sigmoid of (background, object) scores, in float32 (reference code).

    ``sum_c 1 - 2 sum(p_c t_c) / max(sum(p_c^2) + sum(t_c^2), 1e-8)``, mean over the images. The scores are
    between 0 and 1 before the sigmoid, so the loss stays well above 0.

    Args:
        scores: (B, 2, H, W).
        target: (B, H, W), 1 object, all other values (also 255) background.

    Returns:
        A scalar.
    """
    scores = scores.float()
    foreground = (target == 1).to(scores.dtype)
    p = scores.sigmoid().flatten(2)  # (B, 2, P)
    t = torch.stack([1 - foreground, foreground], dim=1).flatten(2)
    total = p.square().sum(dim=2) + t.square().sum(dim=2)
    return (1 - 2 * (p * t).sum(dim=2) / total.clamp(min=1e-8)).sum(dim=1).mean()
