"""Convolution blocks and resizing."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["conv_pair", "conv_stack", "resize"]


def resize(x: Tensor, size: Sequence[int], *, align_corners: bool = True) -> Tensor:
    """Bilinear resize of (B, C, h, w) to ``size`` = (height, width); unchanged where it has that size."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=align_corners)


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
