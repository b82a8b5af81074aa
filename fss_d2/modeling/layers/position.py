"""Sine position code over flattened pixels."""

import math
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["sine_position_code"]


@lru_cache(maxsize=64)
def sine_position_code(length: int, channels: int, device: torch.device) -> Tensor:
    """Return the Transformer's one-dimensional sine code for tokens 0 .. length-1, shared between calls.

    ``code[p, 2i] = sin(p f_i)`` and ``code[p, 2i+1] = cos(p f_i)`` with ``f_i = 10000^(-2i / channels)``
    (Vaswani et al., NeurIPS 2017, Sec. 3.5), computed in float32.

    Args:
        length: number of tokens; pixels are counted row by row.
        channels: channels C of a token.
        device: where the code is kept.

    Returns:
        (length, C) float32. The tensor is cached: never write to it.
    """
    # A tensor made in inference mode could not take part in a later training step.
    with torch.inference_mode(False):
        even = torch.arange(0, channels, 2, dtype=torch.float32)
        frequencies = torch.exp(even * (-math.log(10000.0) / channels))
        angles = torch.arange(length, dtype=torch.float32)[:, None] * frequencies  # (length, ceil(C/2))
        code = torch.empty(channels, length).T  # laid out like flattened feature maps, which it is added to
        code[:, 0::2] = angles.sin()
        code[:, 1::2] = angles[:, : channels // 2].cos()
        return code.to(device)
