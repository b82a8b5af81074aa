"""Signals of how good a predicted mask is: how sure the network is, and what its features say.

They need no further pass through the network. Backbone features of the image are compared with those of the
supports, both ways: which parts of the image resemble the object of the supports, and, with the predicted
mask as the support, whether the object of the supports is found again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["SIGNALS", "MaskScores", "Tokens", "signals", "tokens_of"]

SIGNALS = (
    *("certainty", "agreement", "sharpness", "kept"),
    *(f"{name}_{grid}" for grid in ("middle", "last") for name in ("share", "votes", "cycle")),
)

_MOST_CELLS = 16  # longer side of a grid; finer maps of the backbone are averaged
_MOST_VIEWS = 24  # views of supports that are compared; of more, as many spread evenly
_TEMPERATURE = 0.05  # of the votes between cells, whose features are unit vectors


@dataclass(frozen=True)
class Tokens:
    """Features of N images on two coarse grids: a middle and the last map of the backbone.

    Attributes:
        maps: (N, C, h, w) for each grid, unit vectors.
        objects: of supports, (N, h, w) for each grid: the share of the object in each cell.
    """

    maps: tuple[Tensor, ...]
    objects: tuple[Tensor, ...] = ()

    @classmethod
    def concatenate(cls, parts: Sequence["Tokens"]) -> "Tokens":
        """The images of all parts."""
        maps, objects = (zip(*columns, strict=True) for columns in zip(*map(_levels, parts), strict=True))
        return cls(tuple(map(torch.cat, maps)), tuple(map(torch.cat, objects)))

    def select(self, indices: Sequence[int]) -> "Tokens":
        """Some of the images."""
        return Tokens(*(tuple(level[list(indices)] for level in levels) for levels in _levels(self)))


def _levels(tokens: Tokens) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    return tokens.maps, tokens.objects


def tokens_of(features: Mapping[str, Tensor], masks: Tensor | None = None) -> Tokens:
    """Make the tokens of backbone maps (N, C, h, w); of supports with their masks (N, H, W), 1 the object."""
    names = list(features)
    maps = []
    for name in (names[len(names) // 2], names[-1]):
        values = features[name].float()
        size = [min(side, _MOST_CELLS) for side in values.shape[-2:]]
        maps.append(F.normalize(F.adaptive_avg_pool2d(values, size), dim=1))
    if masks is None:
        return Tokens(tuple(maps))
    shown = (masks == 1).to(maps[0])
    return Tokens(tuple(maps), tuple(_pooled(shown, m) for m in maps))


def _pooled(masks: Tensor, grid: Tensor) -> Tensor:
    """(N, H, W) averaged to the cells of maps (N, C, h, w)."""
    return F.adaptive_avg_pool2d(masks[:, None], grid.shape[-2:])[:, 0]


@dataclass(frozen=True)
class MaskScores:
    """What the network gave for one class in B images, each (B, H, W) at the size of its input."""

    mask: Tensor  # bool: where the class was found
    probability: Tensor  # of its object
    unrefined: Tensor  # the same before TEST.REFINEMENT


def signals(query: Tokens, supports: Tokens, scores: MaskScores) -> Tensor:
    """The `SIGNALS` of one class in B images with the supports of that class: (B, len(SIGNALS)) float32.

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
    if (views := len(supports.maps[0])) > _MOST_VIEWS:
        supports = supports.select(np.linspace(0, views - 1, _MOST_VIEWS).round().astype(int).tolist())
    for maps, keys, objects in zip(query.maps, supports.maps, supports.objects, strict=True):
        values += _compared(maps, keys, objects, _pooled(mask, maps))
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
