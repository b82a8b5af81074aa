"""Convolution blocks and pyramid pooling."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fss_d2.soft_masks import resize

__all__ = [
    "FeatureReduction",
    "PyramidPooling",
    "ResidualPair",
    "classifier",
    "conv_pair",
    "conv_stack",
    "resize",
]


def conv_stack(
    in_channels: int, widths: Sequence[int], kernels: Sequence[int], groups: int = 4
) -> nn.Sequential:
    """Convolution, GroupNorm, ReLU for each width, keeping the map's size. Modules are numbered 0, 1, 2, ...

    Raises:
        ValueError: a width that the groups do not divide.
    """
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
    layers = [
        nn.Conv2d(in_channels, hidden, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(hidden, out_channels, 3, padding=1),
    ]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if last_relu else []))


class FeatureReduction(nn.Sequential):
    """Joins maps of several levels and reduces them: 1x1 convolution, ReLU, dropout of channels (PFENet)."""

    def __init__(self, in_channels: int, dim: int, dropout: float) -> None:
        """
        Args:
            in_channels: channels of all maps together.
            dim: output channels.
            dropout: share of channels set to zero in training.
        """
        super().__init__(nn.Conv2d(in_channels, dim, 1, bias=False), nn.ReLU(), nn.Dropout2d(dropout))

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
    batch norm and ReLU. The cells are resized back (bilinear, corners aligned).

    For a bin of one cell and a batch of one image, a batch norm in training would see a single value per
    channel, which has no variance. It then uses its running statistics and does not update them.
    """

    def __init__(
        self, in_channels: int, bins: Sequence[int] = (1, 2, 3, 6), width: int | None = None
    ) -> None:
        """
        Args:
            in_channels: channels of the map.
            bins: sides of the pooled maps, in cells.
            width: channels per bin; by default in_channels over the number of bins, rounded down.

        Raises:
            ValueError: no bin, a bin below 1, or fewer channels than bins.
        """
        if not bins or min(bins) < 1:
            raise ValueError(f"bins {tuple(bins)}: give at least one number, each at least 1")
        width = in_channels // len(bins) if width is None else width
        if width < 1:
            raise ValueError(f"{len(bins)} bins for {in_channels} channels: give fewer bins")
        super().__init__()
        self.out_channels = in_channels + len(bins) * width
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(b),
                nn.Conv2d(in_channels, width, 1, bias=False),
                _BatchNorm(width),
                nn.ReLU(),
            )
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
