"""Choosing support pixels."""

import torch
from torch import Tensor

__all__ = ["balanced_regions"]


def balanced_regions(mask: Tensor, pixels: int) -> Tensor:
    """Pick as many object pixels as background pixels, evenly spaced and without chance.

    A region with fewer pixels than asked for gives each of them several times; an empty one is replaced
    by all pixels (DCAMA, Table S5 (b), after CyCTR).

    Args:
        mask: (B, N) in [0, 1]; at least one half is object.
        pixels: number of pixels of each region.

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
