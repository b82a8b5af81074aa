"""From backbone features to mask proposals: pixel decoder, then the transformer decoder of Mask2Former."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from ..backbone.base import shrink_factors, shrink_maps
from ..layers import resize, sine_position_map
from ..layers.transformer import FeedForwardLayer, MaskedAttentionLayer, SelfAttentionLayer
from .pixel_decoder import LEVELS, MSDeformAttnPixelDecoder

__all__ = ["MaskPredictions", "MaskedTransformerDecoder", "ProposalHead"]


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

    Layer i (cross-attention, self-attention, feed-forward network) reads level i mod 3. Maps and queries have
    ``dim`` channels C, and an image has ``num_queries`` proposals. A classifier of the queries (MM-Former,
    Table 4a) has ``num_classes`` classes without "no object"; 0 for none. Parameters are named as in the
    published checkpoints.
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
        super().__init__()
        if num_heads < 1 or dim % num_heads or dim % 4:
            raise ValueError(
                f"dim {dim} is not a multiple of 4 and of num_heads {num_heads}: change one of them"
            )
        for name, value in {"num_queries": num_queries, "num_layers": num_layers}.items():
            if value < 1:
                raise ValueError(f"{name} is {value}: give at least 1")
        self.transformer_cross_attention_layers = nn.ModuleList(
            MaskedAttentionLayer(dim, num_heads) for _ in range(num_layers)
        )
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttentionLayer(dim, num_heads) for _ in range(num_layers)
        )
        forward_layers = [FeedForwardLayer(dim, feedforward) for _ in range(num_layers)]
        self.transformer_ffn_layers = nn.ModuleList(forward_layers)
        self.decoder_norm = nn.LayerNorm(dim)
        self.query_feat = nn.Embedding(num_queries, dim)
        self.query_embed = nn.Embedding(num_queries, dim)
        self.level_embed = nn.Embedding(len(LEVELS), dim)
        self.mask_embed = _MLP(dim)
        self.class_embed = nn.Linear(dim, num_classes + 1) if num_classes else None

    def forward(self, levels: Sequence[Tensor], mask_features: Tensor) -> MaskPredictions:
        """Predict from three maps (B, C, h_l, w_l), low resolution first, and mask features (B, C, h, w)."""
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
                cross = self.transformer_cross_attention_layers[index]
                queries = cross(queries, position, *tokens[level], allowed)
                queries = self.transformer_self_attention_layers[index](queries, position)
                queries = self.transformer_ffn_layers[index](queries)
        return MaskPredictions(masks=masks, queries=normalised, levels=levels, classes=classes)

    def _tokens(self, index: int, level: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, h w, C) of a level."""
        position = sine_position_map(tuple(level.shape[-2:]), level.shape[1], level.device)
        values = level.flatten(2).transpose(1, 2).contiguous() + self.level_embed.weight[index]
        return values + position.flatten(1).T, values


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


class ProposalHead(nn.Module):
    """The segmenter of potential objects without its backbone (MM-Former, Sec. 3.2).

    Args:
        input_shape: channels and stride of res2, res3, res4, res5 (`output_shape` of the backbone).
        dim, num_heads: channels and attention heads of both decoders.
        encoder_layers, encoder_feedforward, sampling: see `MSDeformAttnPixelDecoder`.
        num_queries, decoder_layers, decoder_feedforward, num_classes: see `MaskedTransformerDecoder`.
        resize_dilated: resize res4 and res5 of a dilated backbone to half and a quarter of res3's size
            (`shrink_maps`); False leaves them unchanged.
    """

    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        dim: int = 256,
        num_queries: int = 100,
        encoder_layers: int = 6,
        encoder_feedforward: int = 1024,
        decoder_layers: int = 9,
        decoder_feedforward: int = 2048,
        num_heads: int = 8,
        num_classes: int = 0,
        sampling: str = "auto",
        resize_dilated: bool = True,
    ) -> None:
        super().__init__()
        self.predictor = MaskedTransformerDecoder(
            dim,
            num_queries=num_queries,
            num_layers=decoder_layers,
            num_heads=num_heads,
            feedforward=decoder_feedforward,
            num_classes=num_classes,
        )
        self.pixel_decoder = MSDeformAttnPixelDecoder(
            {stage: shape.channels for stage, shape in input_shape.items()},
            dim=dim,
            num_heads=num_heads,
            num_layers=encoder_layers,
            feedforward=encoder_feedforward,
            sampling=sampling,
        )
        strides = {stage: shape.stride for stage, shape in input_shape.items()}
        self.shrunk = shrink_factors(strides) if resize_dilated else {}

    def forward(self, features: Mapping[str, Tensor]) -> MaskPredictions:
        """Predict proposals from res2, res3, res4, res5 of the backbone, (B, C, h, w) each, of any size."""
        mask_features, levels = self.decode_pixels(features)
        return self.predictor(levels, mask_features)

    def decode_pixels(self, features: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Run the pixel decoder alone: mask features at stride 4 and the maps of `LEVELS`."""
        return self.pixel_decoder(shrink_maps(features, self.shrunk))
