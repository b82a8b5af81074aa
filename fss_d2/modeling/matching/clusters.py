"""Clusters of feature vectors: average linkage of a grid, k-means by cosines, means of clusters."""

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from torch import Tensor
from torch.nn import functional as F

__all__ = ["average_linkage", "cluster_means", "cosine_kmeans"]

_ROUNDS = 10  # of k-means


def average_linkage(features: Tensor, similarity: float) -> Tensor:
    """Cluster the cells of each map bottom up: (B, h, w) int64 labels from 0, numbered arbitrarily.

    Two clusters merge while the mean cosine of their pairs of cells is above ``similarity``. By scipy, on the
    CPU: half a second for 1024 cells, eight for 4096.

    Args:
        features: (B, C, h, w) unit vectors.

    Raises RuntimeError while a graph is captured.
    """
    if type(features) is not Tensor:
        raise RuntimeError("its clusters are found by scipy, which no graph can hold")
    maps = features.detach().float().flatten(2).cpu().numpy()  # (B, C, N)
    labels = [_clusters_of(cells, 1 - similarity) for cells in maps]
    return torch.stack(labels).unflatten(1, features.shape[-2:]).to(features.device)


def _clusters_of(cells: np.ndarray, distance: float) -> Tensor:
    """Labels (N,) of unit vectors (C, N)."""
    if cells.shape[1] == 1:
        return torch.zeros(1, dtype=torch.int64)
    distances = squareform(1 - (cells.T @ cells).clip(-1, 1), checks=False)
    # Scores of features that are NaN become NaN later on, and are refused as such.
    found = fcluster(linkage(np.nan_to_num(distances), "average"), distance, "distance")
    return torch.from_numpy(found).long() - 1


def cluster_means(values: Tensor, labels: Tensor) -> Tensor:
    """Mean of the values (B, N, C) of each cluster; (B, N, C), zeros for numbers that no cluster has.

    ``labels`` (B, N) are below N.
    """
    index = labels[..., None]
    counts = torch.zeros_like(values[..., :1]).scatter_add_(1, index, torch.ones_like(values[..., :1]))
    sums = torch.zeros_like(values).scatter_add_(1, index.expand_as(values), values)
    return sums / counts.clamp(min=1)


def cosine_kmeans(cells: Tensor, weights: Tensor, count: int) -> Tensor:
    """Unit centres (B, count, C) of weighted unit vectors, without randomness.

    The first centre is the mean. Each further one starts at the cell that is least similar to those before
    it; ten rounds of k-means follow. A centre to which nothing belongs stays where it was.

    Args:
        cells: (B, N, C) unit vectors.
        weights: (B, N), at least 0; a cell of weight 0 belongs to none.
    """
    mean = F.normalize(torch.einsum("bn,bnc->bc", weights, cells), dim=1)
    centres = mean[:, None]
    for _ in range(count - 1):
        nearest = torch.einsum("bnc,bkc->bnk", cells, centres).amax(dim=2)
        # A cell of which the mask holds little may be anything: it starts nothing.
        typical = weights >= weights.amax(dim=1, keepdim=True) / 2
        farthest = nearest.masked_fill(~typical | (weights <= 0), torch.inf).argmin(dim=1)
        chosen = cells.gather(1, farthest[:, None, None].expand(-1, 1, cells.shape[2]))
        centres = torch.cat([centres, chosen], dim=1)
    for _ in range(_ROUNDS):
        own = (
            F.one_hot(torch.einsum("bnc,bkc->bnk", cells, centres).argmax(dim=2), count) * weights[..., None]
        )
        sums = torch.einsum("bnk,bnc->bkc", own.to(cells.dtype), cells)
        filled = own.sum(dim=1)[..., None] > 0
        centres = torch.where(filled, F.normalize(sums, dim=2), centres)
    return centres
