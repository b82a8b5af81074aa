"""Which cells of a query may show the object: masks on grids, forward and backward similarities.

After Cuttano et al. (INSID3, CVPR 2026), with the facts of their code; FROST has three neighbours for one.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["backward_votes", "forward_cells", "grid_mask", "grown"]

_HIGH = 0.9  # quantile of the similarities that counts where none is above 0


def grid_mask(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Reduce masks (..., H, W) bool to an (..., h, w) grid, bool.

    Bilinear without antialiasing, above 0.5. Where that leaves nothing of a mask: its nearest pixels, or else
    the cell of the mean position of its pixels. Only an empty mask gives an empty grid.
    """
    planes = masks.float().flatten(0, -3)[:, None]  # (N, 1, H, W)
    smooth, nearest = (
        F.interpolate(planes, tuple(size), mode=mode, **how)[:, 0] > 0.5
        for mode, how in (("bilinear", {"align_corners": False}), ("nearest", {}))
    )
    centre = _centre_cell(planes[:, 0], size)
    found = torch.where(_any(smooth), smooth, torch.where(_any(nearest), nearest, centre))
    return found.view(*masks.shape[:-2], *size)


def _any(masks: Tensor) -> Tensor:
    return masks.flatten(1).any(dim=1)[:, None, None]


def _centre_cell(masks: Tensor, size: Sequence[int]) -> Tensor:
    """The cell (N, h, w) at the mean position of the pixels of each mask (N, H, W); none of an empty one."""
    inside = torch.ones((), dtype=torch.bool, device=masks.device)
    total = masks.sum(dim=(1, 2))
    for axis, cells in enumerate(size):
        pixels = masks.shape[axis + 1]
        steps = torch.arange(pixels, device=masks.device, dtype=torch.float32)
        mean = (masks.sum(dim=2 - axis) * steps).sum(dim=1) / total.clamp(min=1)
        cell = (mean * cells / pixels).long().clamp(max=cells - 1)
        found = torch.arange(cells, device=masks.device) == cell[:, None]  # (N, cells)
        inside = inside & (found[:, :, None] if axis == 0 else found[:, None])
    return inside & (total > 0)[:, None, None]


def forward_cells(similarity: Tensor) -> Tensor:
    """The cells (B, N) whose similarity is above 0, or, where none is, above its 0.9-quantile; bool."""
    above = similarity > 0
    high = similarity > similarity.quantile(_HIGH, dim=1, keepdim=True)
    return torch.where(above.any(dim=1, keepdim=True), above, high)


def backward_votes(
    query: Tensor, supports: Tensor, objects: Tensor, known: Tensor, neighbours: int = 1
) -> Tensor:
    """How many supports vote for each cell of a query: (B, N) int64.

    A support votes for a cell if more than half of the support's cells with the largest products show the
    object.

    Args:
        query: (B, N, C).
        supports: (B, V, M, C), of V supports or views.
        objects, known: (B, V, M) bool; cells that are not known are nobody's neighbours.
        neighbours: how many cells of a support are looked at.
    """
    votes = torch.zeros(query.shape[:2], dtype=torch.int64, device=query.device)
    neighbours = min(neighbours, supports.shape[2])
    for cells, shown, usable in zip(*(t.unbind(1) for t in (supports, objects, known)), strict=True):
        products = torch.einsum("bnc,bmc->bnm", query, cells).masked_fill(~usable[:, None], -torch.inf)
        nearest = products.topk(neighbours, dim=2).indices
        hits = (shown & usable)[:, None].expand_as(products).gather(2, nearest).sum(dim=2)
        votes += 2 * hits > neighbours
    return votes


def grown(cells: Tensor, radius: Tensor, most: int) -> Tensor:
    """Cells (B, h, w) in {0, 1} grown by a square of each one's radius (B,), from 0 to ``most``."""
    result = larger = cells
    for step in range(1, most + 1):
        larger = F.max_pool2d(larger[:, None], 3, stride=1, padding=1)[:, 0]
        result = torch.where((radius >= step)[:, None, None], larger, result)
    return result
