"""A small convolutional decoder that takes maps up to the sizes of finer features, one after the other."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fss_d2.soft_masks import resize

from .blocks import conv_stack
from .metric_embedding import level

__all__ = ["SkipDecoder"]


class SkipDecoder(nn.Module):
    """Two 3x3 convolutions at the maps' own size and two at the size of each feature that joins them.

    Every convolution is followed by GroupNorm and ReLU. A feature is scaled to unit length at each position
    and projected by a 1x1 convolution first.

    Args:
        in_channels: of the maps.
        skips: channels of the features, coarse to fine, and those of their projections.
        width: of the convolutions at the maps' own size.
        widths: of those at the features' sizes.
        dropout: of the channels of a projection.
    """

    def __init__(
        self,
        in_channels: int,
        skips: Sequence[tuple[int, int]],
        *,
        width: int = 48,
        widths: Sequence[int] = (40, 32, 16),
        dropout: float = 0.1,
    ) -> None:
        """Raises ValueError for another number of widths than of skips, or a width no multiple of 4."""
        if len(skips) != len(widths):
            raise ValueError(f"widths {tuple(widths)} for {len(skips)} skips: give one for each")
        super().__init__()
        self.first = conv_stack(in_channels, [width] * 2, [3] * 2)
        self.projections = nn.ModuleList(nn.Conv2d(channels, out, 1) for channels, out in skips)
        self.dropout = nn.Dropout2d(dropout)
        inputs = [width, *widths]
        self.mixers = nn.ModuleList(
            conv_stack(before + joined, [after] * 2, [3] * 2)
            for before, (_, joined), after in zip(inputs[:-1], skips, widths, strict=True)
        )
        self.logit = nn.Conv2d(inputs[-1], 1, 1)

    def forward(self, maps: Tensor, features: Sequence[Tensor]) -> Tensor:
        """Map (B, in_channels, h, w) and features (B, C_i, h_i, w_i) to (B, 1, H, W), the last one's size."""
        x = self.first(maps)
        for project, mixer, feature in zip(self.projections, self.mixers, features, strict=True):
            joined = self.dropout(project(level(feature)))
            x = mixer(torch.cat([resize(x, joined.shape[-2:], align_corners=False), joined], dim=1))
        return self.logit(x)
