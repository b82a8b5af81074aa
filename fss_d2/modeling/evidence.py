"""Backbone features on coarse grids: what queries and supports keep of themselves to be compared later.

The presence of an object (`fss_d2.modeling.presence`) and the IoU to expect of a mask
(`fss_d2.inference.quality`) are judged from them, without a further pass through the network.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from .encoding import Encoding

__all__ = ["DEEP", "Evidence", "evidence_of", "masked_mean", "pooled"]

DEEP = "deep"  # the grid that tells whether an object is there

_MOST_CELLS = 16  # longer side of a grid; finer maps of the backbone are averaged


@dataclass(frozen=True)
class Evidence(Encoding):
    """Unit feature vectors of images on three grids: "middle", "last" and "deep".

    "middle" and "last" are a middle and the last map that the method reads. "deep" joins several blocks, so
    that a product of two vectors is the mean of the blocks' cosines.
    """

    maps: dict[str, Tensor]  # grid -> (B, C, h, w); of supports (B, K, C, h, w)
    objects: dict[str, Tensor] = field(default_factory=dict)  # grid -> (B, K, h, w), share of the object
    ground: Tensor | None = None  # (B, K, h, w) on the deep grid: share of the background


@torch.no_grad()
def evidence_of(
    features: Mapping[str, Tensor], read: Sequence[str], deep: Sequence[str], masks: Tensor | None = None
) -> Evidence:
    """Keep the evidence of backbone maps (N, C, h, w).

    Args:
        features: the maps by name.
        read: the names that the method reads, at least one, in order.
        deep: the names of the blocks that the deep grid joins; it has the size of the last one.
        masks: of supports, (B, K, H, W) in {0, 1, 255} with N = B K.
    """
    last = features[deep[-1]].shape[-2:]
    joined = torch.cat([_unit(_coarse(features[name], last)) for name in deep], dim=1)
    maps = {
        "middle": _unit(_coarse(features[read[len(read) // 2]])),
        "last": _unit(_coarse(features[read[-1]])),
        DEEP: joined / len(deep) ** 0.5,
    }
    if masks is None:
        return Evidence(maps)
    shape, shown = masks.shape[:2], (masks.flatten(0, 1) == 1).float()
    objects = {name: pooled(shown, grid).unflatten(0, shape) for name, grid in maps.items()}
    ground = pooled((masks.flatten(0, 1) == 0).float(), maps[DEEP]).unflatten(0, shape)
    return Evidence({name: grid.unflatten(0, shape) for name, grid in maps.items()}, objects, ground)


def pooled(masks: Tensor, grid: Tensor) -> Tensor:
    """(N, H, W) averaged to the cells of maps (N, C, h, w)."""
    return F.adaptive_avg_pool2d(masks[:, None], grid.shape[-2:])[:, 0]


def masked_mean(maps: Tensor, weights: Tensor) -> Tensor:
    """Means (..., C) of maps (..., C, h, w) under weights (..., h, w); zeros where all weights are 0."""
    total = weights.sum(dim=(-2, -1)).clamp(min=1e-6)
    return torch.einsum("...chw,...hw->...c", maps, weights) / total[..., None]


def _coarse(values: Tensor, size: Sequence[int] | None = None) -> Tensor:
    sides = [min(side, _MOST_CELLS) for side in size or values.shape[-2:]]
    return F.adaptive_avg_pool2d(values.float(), sides)


def _unit(values: Tensor) -> Tensor:
    return F.normalize(values, dim=1)
