"""Maps over images."""

import numpy as np
from matplotlib import colormaps

__all__ = ["heat_map"]

_OPACITY = 0.6


def heat_map(image: np.ndarray, values: np.ndarray, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Lay a map (H, W) over an image (H, W, 3) uint8 RGB, from ``low`` (dark) to ``high`` (bright)."""
    scaled = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    colors = 255 * colormaps["inferno"](scaled)[:, :, :3]
    return ((1 - _OPACITY) * image + _OPACITY * colors).round().astype(np.uint8)
