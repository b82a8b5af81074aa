"""Convolution blocks and resizing."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fss_d2.soft_masks import resize

__all__ = ["FeatureReduction", "ResidualPair", "classifier", "conv_pair", "conv_stack", "resize"]


def conv_stack(
    in_channels: int, widths: Sequence[int], kernels: Sequence[int], groups: int = 4
) -> nn.Sequential:
    """Convolution, GroupNorm, ReLU for each width; sizes are kept. Modules are numbered 0, 1, 2, 3, ...

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
    """Maps of several levels joined and reduced by a 1x1 convolution, ReLU, dropout of channels (PFENet)."""

    def __init__(self, in_channels: int, dim: int, dropout: float) -> None:
        """
        Args:
            in_channels: of all maps together.
            dim: channels that come out.
            dropout: share of channels zeroed in training.
        """
        super().__init__(nn.Conv2d(in_channels, dim, 1, bias=False), nn.ReLU(), nn.Dropout2d(dropout))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_i, h_i, w_i), in the order of the channels: (B, dim, h_0, w_0), the first one's size."""
        size = maps[0].shape[-2:]
        return super().forward(torch.cat([resize(m, size) for m in maps], dim=1))


class ResidualPair(nn.Sequential):
    """Two 3x3 convolutions without bias, each with a ReLU after it, and a shortcut (PFENet)."""

    def __init__(self, dim: int) -> None:
        layers = [nn.Conv2d(dim, dim, 3, padding=1, bias=False), nn.ReLU()]
        super().__init__(*layers, nn.Conv2d(dim, dim, 3, padding=1, bias=False), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, h, w) to the same."""
        return x + super().forward(x)


def classifier(dim: int) -> nn.Sequential:
    """3x3 convolution, ReLU, dropout of channels 0.1, 1x1 convolution to two channels (PFENet)."""
    return nn.Sequential(
        nn.Conv2d(dim, dim, 3, padding=1, bias=False), nn.ReLU(), nn.Dropout2d(0.1), nn.Conv2d(dim, 2, 1)
    )
