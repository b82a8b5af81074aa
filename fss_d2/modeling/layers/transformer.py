"""Transformer parts: sine position codes, and decoder layers named as in the published checkpoints."""

import math
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "FeedForwardLayer",
    "MaskedAttentionLayer",
    "SelfAttentionLayer",
    "sine_position_code",
    "sine_position_map",
]


@lru_cache(maxsize=64)
def sine_position_code(length: int, channels: int, device: torch.device) -> Tensor:
    """Return the one-dimensional sine code of the Transformer for tokens 0 .. length-1; calls share it.

    ``code[p, 2i] = sin(p f_i)`` and ``code[p, 2i+1] = cos(p f_i)`` with ``f_i = 10000^(-2i / channels)``
    (Vaswani et al., NeurIPS 2017, Sec. 3.5), computed in float32.

    Args:
        length: number of tokens; pixels are counted row by row.
        channels: channels C of a token.
        device: device of the code.

    Returns:
        (length, C) float32. The tensor is cached: never write to it.
    """
    # A tensor made in inference mode could not take part in a later training step.
    with torch.inference_mode(False):
        even = torch.arange(0, channels, 2, dtype=torch.float32)
        frequencies = torch.exp(even * (-math.log(10000.0) / channels))
        angles = torch.arange(length, dtype=torch.float32)[:, None] * frequencies  # (length, ceil(C/2))
        code = torch.empty(channels, length).T  # laid out like the flattened maps that it is added to
        code[:, 0::2] = angles.sin()
        code[:, 1::2] = angles[:, : channels // 2].cos()
        return code.to(device)


@lru_cache(maxsize=64)
def sine_position_map(size: tuple[int, int], channels: int, device: torch.device) -> Tensor:
    """Return the two-dimensional sine code of DETR and Mask2Former for a map; calls share it.

    Rows count from 1 to H and are scaled to ``y = 2 pi i / (H + 1e-6)``, and columns likewise to x. The first
    half of the channels codes y, the second half x: channel 2k is ``sin(y / f)``, channel 2k + 1 is
    ``cos(y / f)`` with ``f = 10000^(2k / (channels / 2))``.

    Args:
        size: (height, width).
        channels: C, a multiple of 4.
        device: device of the code.

    Returns:
        (C, height, width) float32. The tensor is cached: never write to it.

    Raises:
        ValueError: channels not a multiple of 4.
    """
    if channels % 4:
        raise ValueError(f"{channels} channels: the sine position code needs a multiple of 4")
    with torch.inference_mode(False):
        half = channels // 2
        periods = 10000 ** (torch.arange(0, half, 2, dtype=torch.float32) / half)  # (C/4,)

        def axis(length: int) -> Tensor:
            """Code of each position along one side."""
            position = torch.arange(1, length + 1, dtype=torch.float32) / (length + 1e-6) * (2 * math.pi)
            angles = position[:, None] / periods  # (length, C/4)
            return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1).T  # (C/2, length)

        height, width = size
        rows = axis(height)[:, :, None].expand(-1, -1, width)
        columns = axis(width)[:, None, :].expand(-1, height, -1)
        return torch.cat([rows, columns]).to(device)


def _attention(dim: int, num_heads: int) -> nn.MultiheadAttention:
    attention = nn.MultiheadAttention(dim, num_heads, batch_first=True)
    nn.init.xavier_uniform_(attention.out_proj.weight)  # in_proj_weight already is; biases are 0
    return attention


def _attend(
    attention: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None
) -> Tensor:
    """Multi-head attention; ``nn.MultiheadAttention.forward`` would copy the mask for every head.

    Args:
        attention: the parameters.
        query: (B, Q, C).
        key, value: (B, N, C).
        allowed: (B, Q, N) bool, True where a query may attend, for all heads; None allows everything.

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
            allowed: (B, Q, N) bool, True where a query may attend, for all heads; None allows everything.

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
        """Map (B, Q, C) and its position code to (B, Q, C)."""
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
        """Map (..., C) to (..., C)."""
        return self.norm(x + self.linear2(torch.relu(self.linear1(x))))
