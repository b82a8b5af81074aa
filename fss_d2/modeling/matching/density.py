"""Densities of object and background among support cells, and scores that spread over a query (FROST)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["bandwidth", "class_whitener", "log_density", "propagate"]

_SHRINKAGE = 0.95
_LEAST_VARIANCE = 1e-6
_MOST_PRODUCTS = 2**24  # that are held at once
# Of the weights of `propagate`: two features, colours, grid distance in cells, scores in deviations.
_FEATURE, _COLOUR, _REACH, _SCORE = 0.20, 0.05, 16.0, 1.0
_FOLLOWS = 0.70  # share of a cell's score that comes from its neighbours in each step


def class_whitener(cells: Tensor, objects: Tensor, grounds: Tensor) -> Tensor:
    """The whitener (B, C, C) of the scatter within object and background, shrunk to its mean variance.

    W = (0.05 S + 0.95 mu I)^(-1/2), where S pools the covariances of both sets and mu is the mean of its
    diagonal. The identity where a set is empty.

    Args:
        cells: (B, M, C).
        objects, grounds: (B, M) in {0, 1}; a cell that is in neither counts for nothing.
    """
    sets = torch.stack([objects, grounds], dim=1)  # (B, 2, M)
    counts = sets.sum(dim=2)  # (B, 2)
    means = torch.einsum("bsm,bmc->bsc", sets, cells) / counts.clamp(min=1)[..., None]
    centred = (cells - torch.einsum("bsm,bsc->bmc", sets, means)) * sets.sum(dim=1)[..., None]
    degrees = (counts.sum(dim=1) - 2).clamp(min=1)[:, None, None]
    scatter = torch.einsum("bmc,bmd->bcd", centred, centred) / degrees
    mean_variance = scatter.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None]
    identity = torch.eye(cells.shape[2], device=cells.device).expand_as(scatter)
    values, vectors = torch.linalg.eigh((1 - _SHRINKAGE) * scatter + _SHRINKAGE * mean_variance * identity)
    roots = values.clamp(min=_LEAST_VARIANCE).rsqrt()
    whitener = torch.einsum("bck,bk,bdk->bcd", vectors, roots, vectors)
    return torch.where((counts > 0).all(dim=1)[:, None, None], whitener, identity)


def log_density(queries: Tensor, anchors: Tensor, among: Tensor, sigma: Tensor) -> Tensor:
    """Log of the mean of exp((cosine - 1) / sigma) over anchors: (B, N), -inf where there is none.

    Args:
        queries: (B, N, C) unit vectors.
        anchors: (B, M, C) unit vectors.
        among: (B, M) bool, the anchors that count.
        sigma: (B,).
    """
    rows = max(_MOST_PRODUCTS // among.numel(), 1)
    parts = [
        ((torch.einsum("bnc,bmc->bnm", some, anchors) - 1) / sigma[:, None, None])
        .masked_fill(~among[:, None], -torch.inf)
        .logsumexp(dim=2)
        for some in queries.split(rows, dim=1)
    ]
    return torch.cat(parts, dim=1) - among.sum(dim=1).clamp(min=1).log()[:, None]


def bandwidth(anchors: Tensor, objects: Tensor, grounds: Tensor, grid: Sequence[float]) -> Tensor:
    """The sigma (B,) of a grid with the largest margin between object and background; the first of equals.

    The margin is the mean log density ratio of the object's anchors less that of the background's. An anchor
    is left out of the density of its own set. All margins are 0 with fewer than two anchors in a
    set. Arguments as in `log_density`.
    """
    values = []
    for cells, shown, ground in zip(anchors, objects, grounds, strict=True):
        sets = cells[shown], cells[ground]
        if len(grid) == 1 or min(len(s) for s in sets) < 2:
            values.append(grid[0])
        else:
            margins = _margins(*sets, grid) + _margins(*sets[::-1], grid)
            values.append(grid[int(margins.argmax())])
    return torch.tensor(values, device=anchors.device)


def _margins(own: Tensor, other: Tensor, grid: Sequence[float]) -> Tensor:
    """Mean log density ratio of cells (M, C) to others (M', C) for each sigma, each left out of its own."""
    totals = own.new_zeros(len(grid))
    rows = max(_MOST_PRODUCTS // (len(own) + len(other)), 1)
    for start in range(0, len(own), rows):
        some = own[start : start + rows]
        inside, outside = some @ own.T - 1, some @ other.T - 1
        inside[torch.arange(len(some)), torch.arange(start, start + len(some))] = -torch.inf
        for i, sigma in enumerate(grid):
            totals[i] += ((inside / sigma).logsumexp(dim=1) - (outside / sigma).logsumexp(dim=1)).sum()
    return totals / len(own) + math.log(len(other) / (len(own) - 1))


def propagate(scores: Tensor, features: Tensor, colours: Tensor, steps: int) -> Tensor:
    """Let scores (h, w) follow those of similar cells nearby: (h, w).

    In each step a score becomes 0.3 of the first plus 0.7 of the weighted mean of the others. The weight of
    two cells falls with the difference of their features, colours and scores; beyond 16 cells it is 0.

    Args:
        features: (C, h, w) unit vectors.
        colours: (3, h, w) in [0, 1].
    """
    weights = propagation_weights(scores, features, colours)
    weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-6)
    first = result = scores.flatten()
    for _ in range(steps):
        result = (1 - _FOLLOWS) * first + _FOLLOWS * (weights @ result)
    return result.view_as(scores)


def propagation_weights(scores: Tensor, features: Tensor, colours: Tensor) -> Tensor:
    """The weights (h*w, h*w) of `propagate` before its division by the rows' sums."""
    height, width = scores.shape
    cells = features.flatten(1)  # (C, N)
    rows, columns = (torch.arange(side, device=scores.device) for side in (height, width))
    rows, columns = rows.repeat_interleave(width), columns.repeat(height)
    apart = (rows[:, None] - rows) ** 2 + (columns[:, None] - columns) ** 2
    standard = scores.flatten() / (scores.std(correction=min(scores.numel() - 1, 1)) + 1e-6)
    exponent = (cells.T @ cells) / _FEATURE
    for channel, scale in [*((c, _COLOUR) for c in colours.flatten(1)), (standard, _SCORE)]:
        exponent = exponent - (channel[:, None] - channel) ** 2 / scale
    return (exponent.exp() * (apart <= _REACH**2)).fill_diagonal_(0)
