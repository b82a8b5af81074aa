"""Convolution blocks, pyramid pooling, and the feature enrichment of PFENet and JC2A."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fss_d2.soft_masks import resize


def conv_stack(
    in_channels: int, widths: Sequence[int], kernels: Sequence[int], groups: int = 4
) -> nn.Sequential:
    """Convolution, GroupNorm, ReLU for each width, keeping the map's size; modules are 0, 1, 2, ..."""
    layers: list[nn.Module] = []
    for width, kernel in zip(widths, kernels, strict=True):
        if width % groups:
            raise ValueError(f"width {width} is not a multiple of the {groups} norm groups: change it")
        conv = nn.Conv2d(in_channels, width, kernel, padding=kernel // 2)
        layers += [conv, nn.GroupNorm(groups, width), nn.ReLU(inplace=True)]
        in_channels = width
    return nn.Sequential(*layers)


def conv_pair(in_channels: int, hidden: int, out_channels: int, *, last_relu: bool = True) -> nn.Sequential:
    """Two 3x3 convolutions with a ReLU between and, unless ``last_relu`` is False, one after."""
    first = nn.Conv2d(in_channels, hidden, 3, padding=1)
    second = nn.Conv2d(hidden, out_channels, 3, padding=1)
    last = [nn.ReLU(inplace=True)] if last_relu else []
    return nn.Sequential(first, nn.ReLU(inplace=True), second, *last)


def _conv1x1(in_channels: int, dim: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, dim, 1, bias=False)


def _mix(in_channels: int, dim: int) -> nn.Sequential:
    return nn.Sequential(_conv1x1(in_channels, dim), nn.ReLU())


class FeatureReduction(nn.Sequential):
    """Joins maps of several levels and reduces them: 1x1 convolution, ReLU, dropout of channels (PFENet)."""

    def __init__(self, in_channels: int, dim: int, dropout: float) -> None:
        super().__init__(_conv1x1(in_channels, dim), nn.ReLU(), nn.Dropout2d(dropout))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Reduce maps (B, C_i, h_i, w_i) to (B, dim, h_0, w_0), the size of the first."""
        size = maps[0].shape[-2:]
        return super().forward(torch.cat([resize(m, size) for m in maps], dim=1))


class ResidualPair(nn.Sequential):
    """Two 3x3 convolutions without bias, each followed by a ReLU, and a shortcut (PFENet)."""

    def __init__(self, dim: int) -> None:
        layers = [nn.Conv2d(dim, dim, 3, padding=1, bias=False), nn.ReLU()]
        super().__init__(*layers, nn.Conv2d(dim, dim, 3, padding=1, bias=False), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, h, w) to the same shape."""
        return x + super().forward(x)


def classifier(dim: int) -> nn.Sequential:
    """3x3 convolution, ReLU, dropout of channels 0.1, 1x1 convolution to two channels (PFENet)."""
    return nn.Sequential(
        nn.Conv2d(dim, dim, 3, padding=1, bias=False), nn.ReLU(), nn.Dropout2d(0.1), nn.Conv2d(dim, 2, 1)
    )


class PyramidPooling(nn.Module):
    """Joins a map with its averages at several scales (Zhao et al., PSPNet, CVPR 2017).

    Each bin b pools the map to b x b cells, in float32, and projects these by a 1x1 convolution without bias,
    batch norm and ReLU to ``width`` channels, by default in_channels over the number of bins, rounded down.
    The cells are resized back (bilinear, corners aligned).

    For a bin of one cell and a batch of one image, a batch norm in training would see a single value per
    channel, which has no variance. It then uses its running statistics and does not update them.
    """

    def __init__(
        self, in_channels: int, bins: Sequence[int] = (1, 2, 3, 6), width: int | None = None
    ) -> None:
        if not bins or min(bins) < 1:
            raise ValueError(f"bins {tuple(bins)}: give at least one number, each at least 1")
        width = in_channels // len(bins) if width is None else width
        if width < 1:
            raise ValueError(f"{len(bins)} bins for {in_channels} channels: give fewer bins")
        super().__init__()
        self.out_channels = in_channels + len(bins) * width
        self.branches = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(b), _conv1x1(in_channels, width), _BatchNorm(width), nn.ReLU())
            for b in bins
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, out_channels, h, w): the map itself first, then the bins in order."""
        size = x.shape[-2:]
        return torch.cat([x, *(resize(branch(x), size) for branch in self.branches)], dim=1)


class _BatchNorm(nn.BatchNorm2d):
    """Batch norm that uses its running statistics for a single value per channel."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same shape; see `PyramidPooling`."""
        if not self.training or x.numel() > x.shape[1]:
            return super().forward(x)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


def bin_sizes(bins: Sequence[float], side: int) -> list[int]:
    """Sides of the pyramid's levels, in cells, on a map of ``side`` cells.

    A bin above 1 is a number of cells, which may exceed that of the map. A bin up to 1.0 is a fraction of the
    side, rounded down but at least one cell.
    """
    for b in bins:
        if b <= 0 or (b > 1 and b != int(b)):
            raise ValueError(
                f"bins {tuple(bins)}: {b} is neither a fraction (0 to 1.0) nor a number of cells"
            )
    return [max(1, int(side * b)) if b <= 1 else int(b) for b in bins]


class FeatureEnrichment(nn.Module):
    """Merges each level of a pyramid, passes it on to the next, and joins all (PFENet, Sec. 4.2; JC2A).

    A level holds the query's features at one scale with the guidance of its supports: pooled features,
    prototype, prior, ... From the second level on, a level also reads the one before, which was resized to
    the full size first, as in the reference code. Only the last convolution of a classifier has a bias.
    """

    def __init__(self, in_channels: int, dim: int = 256, num_levels: int = 4) -> None:
        super().__init__()
        self.merge = nn.ModuleList(_mix(in_channels, dim) for _ in range(num_levels))
        self.hand_on = nn.ModuleList(_mix(2 * dim, dim) for _ in range(num_levels - 1))
        self.refine = nn.ModuleList(ResidualPair(dim) for _ in range(num_levels))
        self.classifiers = nn.ModuleList(classifier(dim) for _ in range(num_levels))
        self.join = nn.Sequential(_mix(num_levels * dim, dim), ResidualPair(dim))

    def forward(self, levels: Sequence[Tensor], size: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """Enrich levels (B, in_channels, b_j, b'_j), fine to coarse, and join them at ``size`` (h, w).

        Returns (B, dim, h, w), and the logits (B, 2, b_j, b'_j) of each level: background, object.
        """
        logits, enriched = [], []
        for j, level in enumerate(levels):
            z = self.merge[j](level)
            if j > 0:
                z = z + self.hand_on[j - 1](torch.cat([z, resize(enriched[-1], z.shape[-2:])], dim=1))
            z = self.refine[j](z)
            logits.append(self.classifiers[j](z))
            enriched.append(resize(z, size))
        return self.join(torch.cat(enriched, dim=1)), logits
