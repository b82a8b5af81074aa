"""Signals of how good a predicted mask is: how sure the network is, and what its features say.

They need no further pass through the network. Backbone features of the image are compared with those of the
supports, both ways: which parts of the image resemble the object of the supports, and, with the predicted
mask as the support, whether the object of the supports is found again.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fss_d2.modeling.evidence import Evidence, pooled

__all__ = ["SIGNALS", "MaskScores", "signals"]

SIGNALS = (
    *("certainty", "agreement", "sharpness", "kept"),
    *(f"{name}_{grid}" for grid in ("middle", "last") for name in ("share", "votes", "cycle")),
)

_MOST_VIEWS = 24  # views of supports that are compared; of more, as many spread evenly
_TEMPERATURE = 0.05  # of the votes between cells, whose features are unit vectors


@dataclass(frozen=True)
class MaskScores:
    """What the network gave for one class in B images, each (B, H, W) at the size of its input."""

    mask: Tensor  # bool: where the class was found
    probability: Tensor  # of its object
    unrefined: Tensor  # the same before TEST.REFINEMENT


def signals(query: Evidence, supports: Evidence, scores: MaskScores) -> Tensor:
    """The `SIGNALS` of one class in B images, with one episode of supports: (B, len(SIGNALS)) float32.

    certainty: soft IoU of mask and probability before the refinement; agreement: after it; sharpness: mean
    probability in the mask, before; kept: IoU of the masks before and after the refinement. On each grid
    every cell of the image looks at the cells of the supports, most at the most similar ones, and votes for
    the object by the share of its attention that falls on objects. share: mean vote in the mask; votes:
    correlation of the votes with the mask; cycle: the other way round, soft IoU of the objects with the votes
    of the supports' cells for the mask. How similar the cells are is not among them: it says more about the
    kind of photographs than about the mask.
    """
    mask, before = scores.mask.float(), scores.unrefined
    area = mask.sum(dim=(1, 2)).clamp(min=1)
    values = [
        _soft_iou(before, mask),
        _soft_iou(scores.probability, mask),
        (before * mask).sum(dim=(1, 2)) / area,
        _soft_iou((before > 0.5).float(), mask),
    ]
    for grid in ("middle", "last"):
        keys, objects = supports.maps[grid][0], supports.objects[grid][0]  # (V, C, h, w), (V, h, w)
        if (views := len(keys)) > _MOST_VIEWS:
            kept = np.linspace(0, views - 1, _MOST_VIEWS).round().astype(int).tolist()
            keys, objects = keys[kept], objects[kept]
        values += _compared(query.maps[grid], keys, objects, pooled(mask, query.maps[grid]))
    return torch.stack(values, dim=1)


def _soft_iou(a: Tensor, b: Tensor) -> Tensor:
    """Sum of minima over sum of maxima of maps (B, ...) in [0, 1], one of which may be hard: (B,)."""
    a, b = a.flatten(1), b.flatten(1)
    return (a * b).sum(dim=1) / torch.maximum(a, b).sum(dim=1).clamp(min=1e-6)


def _compared(maps: Tensor, keys: Tensor, objects: Tensor, mask: Tensor) -> list[Tensor]:
    """Share, votes and cycle, (B,) each, on one grid.

    From maps (B, C, h, w) of queries with their predicted masks (B, h, w), and keys (V, C, h', w') of the
    views of supports with their objects (V, h', w').
    """
    mask, objects = mask.flatten(1), objects.flatten(1)  # (B, Q), (V, S)
    similar = torch.einsum("bcq,vcs->bqvs", maps.flatten(2), keys.flatten(2))
    cells = mask / mask.sum(dim=1, keepdim=True).clamp(min=1e-6)
    votes = (similar.flatten(2) / _TEMPERATURE).softmax(dim=2) @ objects.flatten()  # (B, Q)
    back = torch.einsum("bqvs,bq->bvs", (similar / _TEMPERATURE).softmax(dim=1), mask)
    cycle = _soft_iou(back.flatten(0, 1), objects.repeat(len(back), 1)).unflatten(0, back.shape[:2])
    return [(votes * cells).sum(dim=1), _correlation(votes, mask), cycle.mean(dim=1)]


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's, of the rows of (B, N); 0 where a row is constant."""
    a, b = a - a.mean(dim=1, keepdim=True), b - b.mean(dim=1, keepdim=True)
    return (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-6)
