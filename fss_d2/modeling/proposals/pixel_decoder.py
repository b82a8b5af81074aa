"""The pixel decoder of Mask2Former: deformable attention over three levels, then one upsampling step."""

from collections.abc import Mapping

import torch
from detectron2.layers import Conv2d
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import resize, sine_position_map
from .deformable_attention import MultiScaleDeformableAttention, Shapes, reference_points

__all__ = ["LEVELS", "MSDeformAttnPixelDecoder"]

LEVELS = ("res5", "res4", "res3")  # order of the maps, low resolution first
GROUPS = 32  # of every group norm


class _EncoderLayer(nn.Module):
    """Deformable self-attention and a feed-forward block, each added to its input and then normalised."""

    def __init__(self, dim: int, feedforward: int, *, num_heads: int, num_points: int, sampling: str) -> None:
        super().__init__()
        self.self_attn = MultiScaleDeformableAttention(
            dim, num_heads=num_heads, num_levels=len(LEVELS), num_points=num_points, sampling=sampling
        )
        self.norm1 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, feedforward)
        self.linear2 = nn.Linear(feedforward, dim)
        self.norm2 = nn.LayerNorm(dim)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, tokens: Tensor, position: Tensor, reference: Tensor, shapes: Shapes) -> Tensor:
        """Update tokens (B, N, C); position (N, C) is added to the queries only, reference is (N, 2)."""
        attended = self.self_attn(tokens + position, reference, tokens, shapes)
        tokens = self.norm1(tokens + attended)
        return self.norm2(tokens + self.linear2(F.relu(self.linear1(tokens))))


class _DeformableEncoder(nn.Module):
    """The encoder of Deformable DETR over a pyramid of maps; parameters have the reference code's names."""

    def __init__(self, dim: int, num_layers: int, feedforward: int, **attention: int | str) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.randn(len(LEVELS), dim))
        layers = [_EncoderLayer(dim, feedforward, **attention) for _ in range(num_layers)]
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(layers)})

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Map each level (B, C, h_l, w_l) to the same shape."""
        shapes = [(x.shape[2], x.shape[3]) for x in maps]
        tokens = torch.cat([x.flatten(2) for x in maps], dim=2).transpose(1, 2)  # (B, N, C)
        position = self._position(shapes, tokens.device)
        reference = reference_points(shapes, tokens.device)
        for layer in self.encoder["layers"]:
            tokens = layer(tokens, position, reference, shapes)
        parts = tokens.transpose(1, 2).split([h * w for h, w in shapes], dim=2)  # (B, C, h_l * w_l) each
        return [part.unflatten(2, shape) for part, shape in zip(parts, shapes, strict=True)]

    def _position(self, shapes: Shapes, device: torch.device) -> Tensor:
        """Sine code of each pixel plus the trained vector of its level, (N, C)."""
        C = self.level_embed.shape[1]
        codes = [sine_position_map(shape, C, device).flatten(1).T for shape in shapes]  # (h_l * w_l, C)
        return torch.cat([code + level for code, level in zip(codes, self.level_embed, strict=True)])


class MSDeformAttnPixelDecoder(nn.Module):
    """Mask features at stride 4 and a pyramid of context features (Mask2Former, CVPR 2022, Sec. 3.2).

    res5, res4 and res3 are projected to ``dim`` channels and refined together by the encoder; the refined
    res3 is upsampled, added to the projected res2, and convolved. Everything is computed in float32.

    Args:
        in_channels: channels of "res2", "res3", "res4", "res5".
        dim: channels C of tokens and mask features, a multiple of 32.
        num_heads: heads of the deformable attention.
        num_layers: encoder layers.
        feedforward: hidden units of the encoder's feed-forward blocks.
        num_points: points per head on each level.
        sampling: see `MultiScaleDeformableAttention`.

    Raises:
        ValueError: a dim that the norm groups or the heads do not divide, or unknown sampling.
    """

    def __init__(
        self,
        in_channels: Mapping[str, int],
        *,
        dim: int = 256,
        num_heads: int = 8,
        num_layers: int = 6,
        feedforward: int = 1024,
        num_points: int = 4,
        sampling: str = "auto",
    ) -> None:
        super().__init__()
        if dim % GROUPS:
            raise ValueError(f"dim {dim} is not a multiple of the {GROUPS} norm groups: change it")
        self.input_proj = nn.ModuleList(_projection(in_channels[level], dim) for level in LEVELS)
        self.transformer = _DeformableEncoder(
            dim, num_layers, feedforward, num_heads=num_heads, num_points=num_points, sampling=sampling
        )
        self.adapter_1 = Conv2d(in_channels["res2"], dim, 1, bias=False, norm=nn.GroupNorm(GROUPS, dim))
        self.layer_1 = Conv2d(
            dim, dim, 3, padding=1, bias=False, norm=nn.GroupNorm(GROUPS, dim), activation=F.relu
        )
        self.mask_features = Conv2d(dim, dim, 1)
        for conv in (self.adapter_1, self.layer_1, self.mask_features):
            c2_xavier_fill(conv)

    def forward(self, features: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Decode the backbone's features.

        Args:
            features: "res2" .. "res5", (B, C_l, h_l, w_l) of any sizes and float type.

        Returns:
            Mask features (B, dim, h, w) of res2's size, and the refined maps (B, dim, h_l, w_l) in the order
            of `LEVELS`; float32.

        Raises:
            ValueError: one map of one cell, if norm groups have one channel.
        """
        self._check_sizes(features)
        with torch.autocast(features["res2"].device.type, enabled=False):
            projected = [
                proj(features[level].float()) for proj, level in zip(self.input_proj, LEVELS, strict=True)
            ]
            levels = self.transformer(projected)
            fine = self.adapter_1(features["res2"].float())
            fine = fine + resize(levels[-1], fine.shape[-2:], align_corners=False)
            return self.mask_features(self.layer_1(fine)), levels

    def _check_sizes(self, features: Mapping[str, Tensor]) -> None:
        """Refuse maps in which a norm group has a single value, which torch cannot normalise."""
        for level in LEVELS if self.mask_features.in_channels == GROUPS else ():
            if len(features[level]) * features[level].shape[-2:].numel() == 1:
                raise ValueError(
                    f"the image leaves one cell of {level}, and {GROUPS} channels leave one per norm group, "
                    "nothing to normalise: give a larger image (above 32 pixels), or more channels (dim)"
                )


def _projection(in_channels: int, dim: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, dim, 1)
    nn.init.xavier_uniform_(conv.weight)
    nn.init.zeros_(conv.bias)
    return nn.Sequential(conv, nn.GroupNorm(GROUPS, dim))
