"""The transformer decoder of Mask2Former: queries that attend within their own mask."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fss_d2.modeling.layers import resize, sine_position_map
from fss_d2.modeling.layers.transformer import (
    FeedForwardLayer,
    MaskedAttentionLayer,
    SelfAttentionLayer,
)
from fss_d2.modeling.proposals.pixel_decoder import LEVELS

__all__ = ["MaskPredictions", "MaskedTransformerDecoder"]


@dataclass(frozen=True)
class MaskPredictions:
    """Masks of N proposals for each of B images; in training, of every decoder layer.

    Attributes:
        masks: logits (B, N, h, w) at stride 4: in training of the start queries and then of every layer,
            otherwise of the last layer alone.
        queries: (B, N, C), the normalised queries of the last masks.
        levels: the pixel decoder's maps (B, C, h_l, w_l), in the order of `LEVELS`.
        classes: with mask classification, logits (B, N, classes + 1) for each of ``masks``; the last class is
            "no object". Empty otherwise.
    """

    masks: Sequence[Tensor]
    queries: Tensor
    levels: Sequence[Tensor]
    classes: Sequence[Tensor] = ()


class MaskedTransformerDecoder(nn.Module):
    """From the pixel decoder's maps to masks (Cheng et al., CVPR 2022, Sec. 3.2; MM-Former, Sec. 3.2).

    Layer i reads level i mod 3. Parameters are named as in the published checkpoints.
    """

    def __init__(
        self,
        dim: int = 256,
        *,
        num_queries: int = 100,
        num_layers: int = 9,
        num_heads: int = 8,
        feedforward: int = 2048,
        num_classes: int = 0,
    ) -> None:
        """
        Args:
            dim: channels C of the maps and queries.
            num_queries: proposals N per image.
            num_layers: layers of cross-attention, self-attention and feed-forward network, at least 1.
            num_heads: heads of both attentions.
            feedforward: hidden channels of the feed-forward network.
            num_classes: classes of a classifier of the queries, without "no object" (MM-Former, Table 4a); 0
                for no classifier.

        Raises:
            ValueError: no query, no layer, or heads that do not divide the channels.
        """
        super().__init__()
        _check(dim, num_heads, num_queries, num_layers)
        self.transformer_cross_attention_layers = nn.ModuleList(
            MaskedAttentionLayer(dim, num_heads) for _ in range(num_layers)
        )
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttentionLayer(dim, num_heads) for _ in range(num_layers)
        )
        self.transformer_ffn_layers = nn.ModuleList(
            FeedForwardLayer(dim, feedforward) for _ in range(num_layers)
        )
        self.decoder_norm = nn.LayerNorm(dim)
        self.query_feat = nn.Embedding(num_queries, dim)
        self.query_embed = nn.Embedding(num_queries, dim)
        self.level_embed = nn.Embedding(len(LEVELS), dim)
        self.mask_embed = _MLP(dim)
        self.class_embed = nn.Linear(dim, num_classes + 1) if num_classes else None

    def forward(self, levels: Sequence[Tensor], mask_features: Tensor) -> MaskPredictions:
        """
        Args:
            levels: three maps (B, C, h_l, w_l), low resolution first.
            mask_features: (B, C, h, w), stride 4.

        Returns:
            Predictions of the last layer; in training of all layers.

        Raises:
            ValueError: not three levels.
        """
        if len(levels) != len(LEVELS):
            raise ValueError(
                f"the mask decoder takes {len(LEVELS)} levels, got {len(levels)}: give {', '.join(LEVELS)}"
            )
        tokens = [self._tokens(index, level) for index, level in enumerate(levels)]
        # Resizing is linear, so resized mask features give resized masks. Channels last is much faster.
        source = mask_features.detach().contiguous(memory_format=torch.channels_last)
        small = [resize(source, level.shape[-2:], align_corners=False) for level in levels]
        position = self.query_embed.weight
        queries = self.query_feat.weight.expand(len(mask_features), -1, -1)
        masks, classes = [], []
        for index in range(len(self.transformer_ffn_layers) + 1):
            normalised = self.decoder_norm(queries)
            embedding = self.mask_embed(normalised)
            last = index == len(self.transformer_ffn_layers)
            if self.training or last:
                masks.append(_masks(embedding, mask_features))
                if self.class_embed is not None:
                    classes.append(self.class_embed(normalised))
            if not last:
                level = index % len(LEVELS)
                allowed = _inside(_masks(embedding.detach(), small[level]))
                queries = self._layer(index, queries, position, *tokens[level], allowed)
        return MaskPredictions(masks=masks, queries=normalised, levels=levels, classes=classes)

    def _tokens(self, index: int, level: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, h w, C) of a level."""
        position = sine_position_map(tuple(level.shape[-2:]), level.shape[1], level.device)
        values = level.flatten(2).transpose(1, 2).contiguous() + self.level_embed.weight[index]
        return values + position.flatten(1).T, values

    def _layer(
        self, index: int, queries: Tensor, position: Tensor, keys: Tensor, values: Tensor, allowed: Tensor
    ) -> Tensor:
        queries = self.transformer_cross_attention_layers[index](queries, position, keys, values, allowed)
        queries = self.transformer_self_attention_layers[index](queries, position)
        return self.transformer_ffn_layers[index](queries)


class _MLP(nn.Module):
    """Three linear layers with ReLUs between them, (..., C) to (..., C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to the same shape."""
        first, second, third = self.layers
        return third(torch.relu(second(torch.relu(first(x)))))


def _masks(embedding: Tensor, features: Tensor) -> Tensor:
    """Logits (B, N, h, w) of embeddings (B, N, C) on features (B, C, h, w)."""
    return torch.einsum("bnc,bchw->bnhw", embedding, features)


def _inside(masks: Tensor) -> Tensor:
    """Where each query may attend, (B, N, h w) bool: inside its mask, or everywhere if that is empty."""
    inside = masks.flatten(2) >= 0
    return inside | ~inside.any(dim=2, keepdim=True)


def _check(dim: int, num_heads: int, num_queries: int, num_layers: int) -> None:
    if num_heads < 1 or dim % num_heads or dim % 4:
        raise ValueError(f"dim {dim} is not a multiple of 4 and of num_heads {num_heads}: change one of them")
    for name, value in (("num_queries", num_queries), ("num_layers", num_layers)):
        if value < 1:
            raise ValueError(f"{name} is {value}: give at least 1")
