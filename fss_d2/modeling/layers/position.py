"""Sine position codes: over flattened pixels, and over rows and columns."""

import math
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["sine_position_code", "sine_position_map"]


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


@lru_cache(maxsize=64)
def sine_position_map(size: tuple[int, int], channels: int, device: torch.device) -> Tensor:
    """Return the two-dimensional sine code of DETR and Mask2Former for a map, shared between calls.

    Rows count 1 .. H and are scaled to ``y = 2 pi i / (H + 1e-6)``, columns alike; half of the channels code
    y and the other half x: channel 2k is ``sin(y / f)``, channel 2k + 1 ``cos(y / f)`` with
    ``f = 10000^(2k / (channels / 2))``.

    Args:
        size: (height, width).
        channels: C, a multiple of 4.
        device: where the code is kept.

    Returns:
        (C, height, width) float32. The tensor is cached: never write to it.

    Raises:
        ValueError: channels not a multiple of 4.
    """
    if channels % 4:
        raise ValueError(f"the sine position code needs a multiple of 4 channels, got {channels}")
    with torch.inference_mode(False):
        half = channels // 2
        periods = 10000 ** (torch.arange(0, half, 2, dtype=torch.float32) / half)  # (C/4,)

        def axis(length: int) -> Tensor:
            """The code of each place along one side."""
            position = torch.arange(1, length + 1, dtype=torch.float32) / (length + 1e-6) * (2 * math.pi)
            angles = position[:, None] / periods  # (length, C/4)
            return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1).T  # (C/2, length)

        height, width = size
        rows = axis(height)[:, :, None].expand(-1, -1, width)
        columns = axis(width)[:, None, :].expand(-1, height, -1)
        return torch.cat([rows, columns]).to(device)
