"""Pure functions of soft masks and maps, shared by models, evaluators and figures."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["otsu_mask", "resize", "soft_iou"]


def resize(x: Tensor, size: Sequence[int], *, align_corners: bool = True) -> Tensor:
    """Resize (B, C, h, w) bilinearly to ``size`` = (height, width); unchanged if it has that size."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=align_corners)


def soft_iou(masks: Tensor, target: Tensor) -> Tensor:
    """Return the IoU of soft masks with a hard one: sum(m t) / (sum(t) + sum(m) - sum(m t) + 1e-7).

    Args:
        masks: (B, N, H, W) in [0, 1].
        target: (B, H, W), 1 object, anything else (255 as well) background.

    Returns:
        (B, N) in [0, 1].
    """
    masks, target = masks.flatten(2), (target == 1).flatten(1).to(masks.dtype)  # (B, N, P), (B, P)
    overlap = torch.einsum("bnp,bp->bn", masks, target)
    return overlap / (target.sum(dim=1)[:, None] + masks.sum(dim=2) - overlap + 1e-7)


def otsu_mask(values: np.ndarray) -> np.ndarray:
    """Where a map (H, W) exceeds Otsu's threshold, bool; nowhere if it is constant."""
    span = values.max() - values.min()
    if span <= 0:
        return np.zeros(values.shape, bool)
    levels = (255 * (values - values.min()) / span).astype(np.uint8)
    return cv2.threshold(levels, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[1].astype(bool)
