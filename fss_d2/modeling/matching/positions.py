"""Directions in which frozen features say where a position is, and not what it shows (INSID3)."""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["positional_basis", "without_positions"]


def positional_basis(features: Tensor, rank: int) -> Tensor:
    """The leading directions of the features of a picture that shows nothing: an orthonormal (C, rank).

    Args:
        features: (C, h, w) unit vectors of a black picture.
        rank: number of directions; at most min(C, h * w) are returned.

    They are the left singular vectors of the features less their mean over the positions (Cuttano et al.,
    CVPR 2026, and their code).
    """
    cells = features.float().flatten(1)  # (C, h*w)
    left, _, _ = torch.linalg.svd(cells - cells.mean(dim=1, keepdim=True), full_matrices=False)
    return left[:, :rank]


def without_positions(features: Tensor, basis: Tensor) -> Tensor:
    """Features (B, C, h, w) without their part in a basis (C, r), scaled to unit length."""
    inside = torch.einsum("cr,bchw->brhw", basis, features)
    return F.normalize(features - torch.einsum("cr,brhw->bchw", basis, inside), dim=1)
