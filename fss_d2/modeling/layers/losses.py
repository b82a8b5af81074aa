"""Losses between masks."""

from torch import Tensor

__all__ = ["dice_loss"]


def dice_loss(probability: Tensor, target: Tensor) -> Tensor:
    """Soft Dice loss, 1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1), of each mask.

    Args:
        probability: (B, ...) in [0, 1].
        target: (B, ...) 0 or 1.

    Returns:
        (B,) in [0, 1).
    """
    overlap = 2 * (probability * target).flatten(1).sum(dim=1)
    total = probability.flatten(1).sum(dim=1) + target.flatten(1).sum(dim=1)
    return 1 - (overlap + 1) / (total + 1)
