"""Where a query resembles the object of a support: PFENet's prior mask and DPCN's support activation."""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

__all__ = ["min_max", "support_activations"]

Window = tuple[int, int]

EPSILON = 1e-7
CHUNK_CELLS = 2**24  # cosines held at once, 64 MiB


def min_max(maps: Tensor, eps: float = EPSILON) -> Tensor:
    """Scale each map (..., h, w) to [0, 1]: its smallest value becomes 0, its largest (almost) 1."""
    low, high = maps.amin(dim=(-2, -1), keepdim=True), maps.amax(dim=(-2, -1), keepdim=True)
    return (maps - low) / (high - low + eps)


def support_activations(query: Tensor, supports: Tensor, windows: Sequence[Window] = ((1, 1),)) -> Tensor:
    """Similarity of the region around each query position to the best region of a support (DPCN, Sec. 3.3).

    For a window of n positions, the similarity of two regions is the mean of the n cosines of positions at
    the same offset; a position outside an image has cosine 0. A query position gets its maximum over all
    support positions. Each map is then scaled by `min_max`, and averaged over the supports. The single window
    (1, 1) gives PFENet's prior mask.

    A cosine belongs to two positions, not to a region, so all windows share one map of cosines. The
    similarities of regions are sums of shifted copies of it, along the rows and then along the columns; no
    feature is unfolded. The map is computed for a few support rows at a time, again in the backward pass, and
    in float32 also under autocast.

    Args:
        query: (B, C, h, w) features.
        supports: (B, K, C, hs, ws) features, zero or faded outside the object (`mask_features`).
        windows: (height, width) of the regions, odd.

    Returns:
        (B, number of windows, h, w) in [0, 1].

    Raises:
        ValueError: no window, or one with an even side.
    """
    windows = [(int(height), int(width)) for height, width in windows]
    if not windows or any(side < 1 or side % 2 == 0 for window in windows for side in window):
        raise ValueError(f"windows {windows}: give at least one, with odd sides")
    with torch.autocast(query.device.type, enabled=False):
        shots = [
            min_max(torch.stack([_best(*pair, windows) for pair in zip(query.float(), shot, strict=True)]))
            for shot in supports.float().unbind(dim=1)
        ]
    return torch.stack(shots).mean(dim=0)


def _best(query: Tensor, support: Tensor, windows: Sequence[Window]) -> Tensor:
    """Maxima over a support (C, hs, ws) for a query (C, h, w): (number of windows, h, w)."""
    down, right = (max(sides) // 2 for sides in zip(*windows, strict=True))
    margins = (right, right, down, down)
    query, support = F.pad(query, margins), F.pad(support, margins)  # a zero vector has cosine 0
    rows = support.shape[1] - 2 * down
    step = max(1, CHUNK_CELLS // (query[0].numel() * support.shape[2]))
    parts = []
    for top in range(0, rows, step):
        some = support[:, top : min(top + step, rows) + 2 * down]
        if torch.is_grad_enabled() and (query.requires_grad or support.requires_grad):
            arguments = (query, some, windows, (down, right))
            parts.append(checkpoint(_best_of_rows, *arguments, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(_best_of_rows(query, some, windows, (down, right)))
    return torch.stack(parts).max(dim=0).values


def _best_of_rows(query: Tensor, support: Tensor, windows: Sequence[Window], margins: Window) -> Tensor:
    """Maxima over some support rows; both maps have the margins (rows, columns) on each side."""
    cosines = _cosines(query, support)  # (n, ws, h, w), all with margins
    best = []
    for height, width in windows:
        sums = _shifted_sum(cosines, (0, 2), height // 2, margins[0])
        sums = _shifted_sum(sums, (1, 3), width // 2, margins[1])
        best.append(sums.flatten(0, 1).max(dim=0).values / (height * width))
    return torch.stack(best)


def _cosines(query: Tensor, support: Tensor) -> Tensor:
    """Cosines (n, ws, h, w) of a query (C, h, w) and a support (C, n, ws), epsilon added as in PFENet."""
    dot = torch.einsum("cij,cyx->ijyx", support, query)
    norms = torch.einsum("ij,yx->ijyx", support.norm(dim=0), query.norm(dim=0))
    return dot / (norms + EPSILON)


def _shifted_sum(cosines: Tensor, dims: Window, radius: int, margin: int) -> Tensor:
    """Sum of the cosines shifted by -radius ... radius along both dims; their margins are cut off."""
    a, b = dims
    lengths = [cosines.shape[dim] - 2 * margin for dim in dims]
    offsets = range(margin - radius, margin + radius + 1)
    return reduce(torch.add, (cosines.narrow(a, d, lengths[0]).narrow(b, d, lengths[1]) for d in offsets))
