"""The feature enrichment of PFENet and JC2A: a pyramid in which each level reads the finer one."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .blocks import ResidualPair, classifier, resize

__all__ = ["FeatureEnrichment", "bin_sizes"]


def bin_sizes(bins: Sequence[float], side: int) -> list[int]:
    """Sides of the pyramid's levels, in cells, on a map of ``side`` cells.

    A bin above 1 is a number of cells, which may exceed that of the map. A bin up to 1.0 is a fraction of the
    side, rounded down but at least one cell.

    Raises:
        ValueError: a bin that is neither.
    """
    for b in bins:
        if b <= 0 or (b > 1 and b != int(b)):
            raise ValueError(
                f"bins {tuple(bins)}: {b} is neither a fraction (0 to 1.0) nor a number of cells"
            )
    return [max(1, int(side * b)) if b <= 1 else int(b) for b in bins]


class FeatureEnrichment(nn.Module):
    """Merges each level of a pyramid, passes it on to the next, and joins all (PFENet, Sec. 4.2).

    A level holds the query's features at one scale with the guidance of its supports: pooled features,
    prototype, prior, ... From the second level on, a level also reads the one before, which was resized to
    the full size first, as in the reference code. Only the last convolution of a classifier has a bias.
    """

    def __init__(self, in_channels: int, dim: int = 256, num_levels: int = 4) -> None:
        """
        Args:
            in_channels: channels of every level.
            dim: inner and output channels.
            num_levels: number of levels.
        """
        super().__init__()
        self.merge = nn.ModuleList(_mix(in_channels, dim) for _ in range(num_levels))
        self.hand_on = nn.ModuleList(_mix(2 * dim, dim) for _ in range(num_levels - 1))
        self.refine = nn.ModuleList(ResidualPair(dim) for _ in range(num_levels))
        self.classifiers = nn.ModuleList(classifier(dim) for _ in range(num_levels))
        self.join = nn.Sequential(_mix(num_levels * dim, dim), ResidualPair(dim))

    def forward(self, levels: Sequence[Tensor], size: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """Enrich a pyramid.

        Args:
            levels: (B, in_channels, b_j, b'_j) each, fine to coarse.
            size: (h, w) of the result.

        Returns:
            (B, dim, h, w), and the logits (B, 2, b_j, b'_j) of each level: background, object.
        """
        logits: list[Tensor] = []
        enriched: list[Tensor] = []
        for j, level in enumerate(levels):
            z = self.merge[j](level)
            if j > 0:
                z = z + self.hand_on[j - 1](torch.cat([z, resize(enriched[-1], z.shape[-2:])], dim=1))
            z = self.refine[j](z)
            logits.append(self.classifiers[j](z))
            enriched.append(resize(z, size))
        return self.join(torch.cat(enriched, dim=1)), logits


def _mix(in_channels: int, dim: int) -> nn.Sequential:
    """1x1 convolution without bias, ReLU."""
    return nn.Sequential(nn.Conv2d(in_channels, dim, 1, bias=False), nn.ReLU())
