"""A learned space in which positions of images are compared."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fss_d2.soft_masks import resize

from .correlation import unit

__all__ = ["MetricEmbedding", "PrototypeClassifier", "finest_size", "level"]


def finest_size(maps: Sequence[Tensor]) -> tuple[int, int]:
    """(height, width) of the largest of some maps (B, C, h, w) of one image."""
    return max((x.shape[-2], x.shape[-1]) for x in maps)


def level(features: Tensor) -> Tensor:
    """Features (B, C, h, w) of unit length times the root of C, so that a channel's mean square is 1."""
    return unit(features) * features.shape[1] ** 0.5


class MetricEmbedding(nn.Module):
    """Joins maps of several blocks at the finest of their sizes; a 1x1 convolution, then unit length."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(in_channels, dim, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Embed maps (B, C_i, h_i, w_i) as (B, dim, h, w) unit vectors."""
        size = finest_size(maps)
        joined = torch.cat([resize(level(x), size, align_corners=False) for x in maps], dim=1)
        return unit(self.project(joined))


class PrototypeClassifier(nn.Module):
    """Classifies unit vectors by their cosine with a learned vector of each class."""

    def __init__(self, dim: int, num_classes: int, temperature: float = 0.07) -> None:
        super().__init__()
        self.temperature = temperature
        self.vectors = nn.Parameter(torch.randn(num_classes, dim) * 0.1)

    def forward(self, embedded: Tensor) -> Tensor:
        """Map (B, dim, h, w) to logits (B, num_classes, h, w)."""
        vectors = F.normalize(self.vectors, dim=1)
        return torch.einsum("bdhw,kd->bkhw", embedded, vectors) / self.temperature
