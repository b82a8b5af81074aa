"""Layers of transformer decoders, norm after the sum, parameters named as in the published checkpoints."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["FeedForwardLayer", "MaskedAttentionLayer", "SelfAttentionLayer"]


def _attention(dim: int, num_heads: int) -> nn.MultiheadAttention:
    attention = nn.MultiheadAttention(dim, num_heads, batch_first=True)
    nn.init.xavier_uniform_(attention.out_proj.weight)  # in_proj_weight is so already; biases are 0
    return attention


def _attend(
    attention: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None
) -> Tensor:
    """Multi-head attention; ``nn.MultiheadAttention.forward`` would copy the mask for every head.

    Args:
        attention: the parameters.
        query: (B, Q, C).
        key, value: (B, N, C).
        allowed: (B, Q, N) bool, True where a query may look, for all heads; None allows everything.

    Returns:
        (B, Q, C).
    """
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    q, k, v = (
        F.linear(tokens, weight, bias)
        .unflatten(2, (attention.num_heads, -1))
        .transpose(1, 2)  # (B, M, *, C/M)
        for tokens, weight, bias in zip((query, key, value), weights, biases, strict=True)
    )
    mask = None if allowed is None else allowed[:, None]
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return attention.out_proj(mixed.transpose(1, 2).flatten(2))


class MaskedAttentionLayer(nn.Module):
    """``LayerNorm(x + attention(x + position, keys, values))``."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.multihead_attn = _attention(dim, num_heads)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, x: Tensor, position: Tensor, keys: Tensor, values: Tensor, allowed: Tensor | None = None
    ) -> Tensor:
        """
        Args:
            x: (B, Q, C).
            position: code of x, anything that adds to it.
            keys: (B, N, C), with their position code.
            values: (B, N, C).
            allowed: (B, Q, N) bool, True where a query may look, for all heads; None allows everything.

        Returns:
            (B, Q, C).
        """
        return self.norm(x + _attend(self.multihead_attn, x + position, keys, values, allowed))


class SelfAttentionLayer(nn.Module):
    """``LayerNorm(x + attention(x + position, x + position, x))``."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.self_attn = _attention(dim, num_heads)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """(B, Q, C) and its position code to (B, Q, C)."""
        placed = x + position
        return self.norm(x + _attend(self.self_attn, placed, placed, x))


class FeedForwardLayer(nn.Module):
    """``LayerNorm(x + W2 relu(W1 x))``."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)
        self.norm = nn.LayerNorm(dim)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C)."""
        return self.norm(x + self.linear2(torch.relu(self.linear1(x))))
