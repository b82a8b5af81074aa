"""The frames in which predictions and truth can be compared."""

import numpy as np
import torch

from .masks import IGNORE

__all__ = ["FRAMES", "in_frame"]

FRAMES = ("original", "network", "pfenet_square")


def in_frame(frame: str, original: np.ndarray, network: torch.Tensor) -> torch.Tensor:
    """Bring a mask to the frame of comparison.

    Args:
        frame: one of `FRAMES`.
        original: (h, w) uint8 in {0, 1, 255}, the mask at the image's own size.
        network: (H, W) uint8, the same mask resized with the image.

    Returns:
        (h, w), (H, W), or for "pfenet_square" (max(h, w), max(h, w)): the mask top left, the rest 255.
    """
    if frame == "network":
        return network
    if frame == "original":
        return torch.from_numpy(original)
    side = max(original.shape)
    square = torch.full((side, side), IGNORE, dtype=torch.uint8)
    square[: original.shape[0], : original.shape[1]] = torch.from_numpy(original)
    return square
