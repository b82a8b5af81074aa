"""The pyramid pooling module of PSPNet."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import resize

__all__ = ["PyramidPooling"]


class PyramidPooling(nn.Module):
    """A map joined with what it holds on average in ever smaller parts (Zhao et al., PSPNet, CVPR 2017).

    Each bin b pools the map to b x b cells and projects these by a 1x1 convolution without bias, batch norm
    and ReLU; they are resized back (bilinear, corners aligned).

    A bin of one cell has as many values a channel as the batch has images, and one image has no variance.
    Where a batch norm would see a single value a channel while training, as with a group of one episode, it
    takes its running statistics, which it then leaves as they are.
    """

    def __init__(
        self, in_channels: int, bins: Sequence[int] = (1, 2, 3, 6), width: int | None = None
    ) -> None:
        """
        Args:
            in_channels: of the map.
            bins: sides of the pooled maps, in cells.
            width: channels of each bin; by default in_channels over the number of bins, rounded down.

        Raises:
            ValueError: no bin, a bin without cells, or no channel for each bin.
        """
        if not bins or min(bins) < 1:
            raise ValueError(f"pyramid pooling of bins {tuple(bins)} (PPM_BINS): give numbers from 1 on")
        width = in_channels // len(bins) if width is None else width
        if width < 1:
            raise ValueError(
                f"pyramid pooling of {in_channels} channels in {len(bins)} bins (PPM_BINS): give fewer"
            )
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
        """(B, C, h, w) to (B, out_channels, h, w): the map itself first, then the bins in their order."""
        size = x.shape[-2:]
        return torch.cat([x, *(resize(branch(x), size) for branch in self.branches)], dim=1)


class _BatchNorm(nn.BatchNorm2d):
    """Batch norm that keeps to its running statistics where there is no variance to be had."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same shape; see `PyramidPooling` on a single value a channel."""
        if not self.training or x.numel() > x.shape[1]:
            return super().forward(x)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
