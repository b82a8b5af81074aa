"""Self-alignment and cross-alignment of query and support features (MM-Former, Sec. 2.3)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fss_d2.soft_masks import resize

from .transformer import FeedForwardLayer, MaskedAttentionLayer, sine_position_map

CROSS_ALIGNMENTS = ("learned", "parameter_free")
Maps = tuple[Tensor, Tensor]  # features and position codes


def self_alignment(features: Tensor) -> Tensor:
    """Weight each channel of (B, C, h, w) by its agreement with the mean channel (MM-Former, Sec. 2.3)."""
    return features * channel_weights(features)[:, :, None, None].to(features.dtype)


def channel_weights(features: Tensor) -> Tensor:
    """The weights (B, C) of self-alignment for features (B, C, h, w), in float32 also under autocast.

    ``sigmoid(F a^T)``, where ``a`` is the softmax over the pixels of the mean over the channels. Softmax and
    sigmoid are from the reference code. Nothing is learned and images do not interact.
    """
    with torch.autocast(features.device.type, enabled=False):
        maps = features.flatten(2).float()  # (B, C, h*w)
        attention = maps.mean(dim=1).softmax(dim=1)  # (B, h*w)
        return torch.einsum("bcp,bp->bc", maps, attention).sigmoid()


def memory_size(size: Sequence[int], side: int) -> tuple[int, int]:
    """Return the (height, width) with shorter side ``side`` and the proportions of ``size``."""
    h, w = size
    return (side * h // w, side) if h > w else (side, side * w // h)


class CrossAlignment(nn.Module):
    """Each support attends to the query and the query to each support (MM-Former, Eq. 2 and 3).

    Both directions share the weights and read the features of the other before alignment. The maps attended
    to are first resized, with their position codes, to the shorter side ``memory_side`` (in cells), unless a
    side of the query's map has that length already. In the reference code it is 1/32 of 480 pixels for any
    image size.

    ``dim`` is a multiple of 4. The kind is "learned", or "parameter_free" (Table 3a, CA*), see
    `ParameterFreeLayer`, which reads neither ``num_heads`` nor ``feedforward``.
    """

    def __init__(
        self,
        dim: int = 256,
        *,
        num_heads: int = 4,
        num_layers: int = 2,
        feedforward: int = 512,
        memory_side: int = 15,
        kind: str = "learned",
    ) -> None:
        super().__init__()
        if kind not in CROSS_ALIGNMENTS:
            raise ValueError(f"unknown kind {kind!r}: choose from {', '.join(CROSS_ALIGNMENTS)}")
        if kind == "learned" and dim % num_heads:
            raise ValueError(f"{num_heads} heads do not divide {dim} channels: change num_heads or dim")
        self.memory_side = memory_side
        self.layers = nn.ModuleList(
            CrossAttentionLayer(dim, num_heads, feedforward) if kind == "learned" else ParameterFreeLayer()
            for _ in range(num_layers)
        )

    def memory(self, features: Tensor, positions: Tensor) -> Maps:
        """Resize features (B, C, h, w) and position codes (B or 1, C, h, w) that are attended to."""
        size = memory_size(features.shape[-2:], self.memory_side)
        return resize(features, size, align_corners=False), resize(positions, size, align_corners=False)

    def support_memory(self, support: Tensor, gate: Tensor) -> Maps:
        """`memory` of supports (N, C, h, w), with the position codes times the mask ``gate`` (N, h, w)."""
        return self.memory(support, _positions(support) * gate[:, None])

    def forward(
        self, query: Tensor, support: Tensor, gate: Tensor, memory: Maps | None = None
    ) -> tuple[Tensor, Tensor]:
        """Align B queries and their K supports each.

        Args:
            query: (B, C, h, w).
            support: (B*K, C, hs, ws), episode by episode; zero outside the object.
            gate: (B*K, hs, ws), the mask by which the supports were multiplied, in [0, 1].
            memory: `support_memory` of the two, if it was kept.

        Returns (B*K, C, h, w) the query aligned with each support, and (B*K, C, hs, ws) the supports.
        """
        shots = support.shape[0] // query.shape[0]
        positions, support_positions = _positions(query), _positions(support) * gate[:, None]
        if self.memory_side in query.shape[-2:]:
            query_memory, memory = (query, positions), (support, support_positions)
        else:
            query_memory = self.memory(query, positions)
            memory = memory or self.memory(support, support_positions)
        seen, seen_positions = query_memory
        aligned_query = self._attend((_repeat(query, shots), positions), memory)
        aligned_support = self._attend((support, support_positions), (_repeat(seen, shots), seen_positions))
        return aligned_query, aligned_support

    def _attend(self, maps: Maps, memory: Maps) -> Tensor:
        size = maps[0].shape[-2:]
        x, positions, seen, seen_positions = (t.flatten(2).mT for t in (*maps, *memory))  # (B, N, C)
        for layer in self.layers:
            x = layer(x, positions, seen, seen_positions)
        return x.mT.unflatten(2, size)


class CrossAttentionLayer(nn.Module):
    """Cross-attention, then a feed-forward network; each has a shortcut, followed by a layer norm."""

    def __init__(self, dim: int, num_heads: int, feedforward: int) -> None:
        super().__init__()
        self.attention = MaskedAttentionLayer(dim, num_heads)
        self.feedforward = FeedForwardLayer(dim, feedforward)

    def forward(self, x: Tensor, positions: Tensor, memory: Tensor, memory_positions: Tensor) -> Tensor:
        """Tokens (B, N, C) attend to tokens (B, M, C); position codes are added to queries and keys only."""
        return self.feedforward(self.attention(x, positions, memory + memory_positions, memory))


class ParameterFreeLayer(nn.Module):
    """`CrossAttentionLayer` without parameters (MM-Former, Table 3a, CA*).

    Attention with one head and no projections, a shortcut, and a layer norm without scale and shift. There is
    no feed-forward network. The paper gives no formula for it.
    """

    def forward(self, x: Tensor, positions: Tensor, memory: Tensor, memory_positions: Tensor) -> Tensor:
        """As `CrossAttentionLayer.forward`."""
        query, key = x + positions, memory + memory_positions
        attended = F.scaled_dot_product_attention(query, key, memory.to(key.dtype))
        return F.layer_norm(x + attended, x.shape[-1:])


def _positions(features: Tensor) -> Tensor:
    """Position codes (1, C, h, w) of a feature map."""
    return sine_position_map(tuple(features.shape[-2:]), features.shape[1], features.device)[None]


def _repeat(maps: Tensor, shots: int) -> Tensor:
    return maps.repeat_interleave(shots, dim=0) if shots > 1 else maps
