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
    and projected by a 1x1 convolution first. Further maps of its size may join it.

    Args:
        in_channels: of the maps.
        skips: channels of the features, coarse to fine, and those of their projections.
        joining: channels of the further maps at each feature's size; None = none.
        width: of the convolutions at the maps' own size.
        widths: of those at the features' sizes.
        dropout: of the channels of a projection.
    """

    def __init__(
        self,
        in_channels: int,
        skips: Sequence[tuple[int, int]],
        *,
        joining: Sequence[int] | None = None,
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
            conv_stack(before + joined + more, [after] * 2, [3] * 2)
            for before, (_, joined), more, after in zip(
                inputs[:-1], skips, joining or [0] * len(skips), widths, strict=True
            )
        )
        self.logit = nn.Conv2d(inputs[-1], 1, 1)

    def forward(
        self, maps: Tensor, features: Sequence[Tensor], joining: Sequence[Tensor | None] | None = None
    ) -> Tensor:
        """Map (B, in_channels, h, w) and features (B, C_i, h_i, w_i) to (B, 1, H, W), the last one's size.

        ``joining``: the further maps of each feature, (B, D_i, h_i, w_i) or None.
        """
        x = self.first(maps)
        joining = joining or [None] * len(features)
        steps = zip(self.projections, self.mixers, features, joining, strict=True)
        for project, mixer, feature, further in steps:
            joined = [self.dropout(project(level(feature))), *([] if further is None else [further])]
            x = mixer(torch.cat([resize(x, feature.shape[-2:], align_corners=False), *joined], dim=1))
        return self.logit(x)
