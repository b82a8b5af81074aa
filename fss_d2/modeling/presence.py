"""Is the object of the supports in a picture? A logistic model of a few signals says how likely it is.

The signals come from frozen backbone features, which know it best, and from the scores of the method. A
checkpoint for which ``tools/fit_presence.py`` fitted the numbers holds them (``presence.*``); other weights
get those of a prior.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.nn import functional as F

from .encoding import Encoding
from .evidence import DEEP, Evidence, masked_mean, pooled
from .keys import config_keys
from .logistic import CLIP, Logistic

__all__ = ["SIGNALS", "Guide", "Presence", "guide_of", "negative_lead", "presence_signals"]

SIGNALS = ("nearest", "relative", "contrast", "in_mask", "highest", "mean", "sharpness")

_PRIOR = Logistic(
    bias=0.0,
    means=(0.35, 0.5, 0.15, 0.3, 0.9, 0.25, 0.75),
    scales=(0.13, 0.15, 0.08, 0.12, 0.12, 0.15, 0.12),
    weights=(0.8, 0.8, 0.6, 0.3, 0.1, -0.1, 0.2),
)
_HARD = 0.05  # temperature of the choice of those parts of a negative that resemble the object


@config_keys
def add_keys(cfg: CfgNode) -> None:
    """Keys of the presence."""
    cfg.MODEL.PRESENCE = CfgNode()
    # Blocks of the backbone whose features are compared. Empty: the last three blocks of the deepest stage
    # that the method reads, which cost nothing.
    cfg.MODEL.PRESENCE.BLOCKS = ()


@dataclass(frozen=True)
class Guide(Encoding):
    """What queries are compared with: unit vectors on the deep grid."""

    objects: Tensor  # (B, K, C) of the object of each support
    grounds: Tensor  # (B, K, C) of its background; zeros where there is none
    own: Tensor  # (B, K): how similar the supports' own objects are to the object of each, a cosine
    negatives: Tensor | None = None  # (B, N, C) of what resembles the object most in each negative


def guide_of(supports: Evidence, negatives: Evidence | None = None) -> Guide:
    """Make the guide of the evidence of supports and negatives."""
    maps, shares = supports.maps[DEEP], supports.objects[DEEP]  # (B, K, C, h, w), (B, K, h, w)
    objects, grounds = masked_mean(maps, shares), masked_mean(maps, supports.ground)
    similar = torch.einsum("bkc,bjchw->bkjhw", objects, maps)  # of support k to the cells of support j
    shots = maps.shape[1]
    if shots == 1:
        own = (similar[:, :, 0] * shares).sum(dim=(2, 3)) / shares.sum(dim=(2, 3)).clamp(min=1e-6)
    else:
        best = (similar - 2 * (shares[:, None] == 0)).amax(dim=(3, 4))  # (B, K, K), on the objects
        others = ~torch.eye(shots, dtype=torch.bool, device=best.device)
        own = (best * others).sum(dim=2) / (shots - 1)
    hard = None
    if negatives is not None:
        cells, regions = negatives.maps[DEEP], negatives.objects[DEEP]
        mean = F.normalize(objects.mean(dim=1), dim=1)
        weights = regions * (torch.einsum("bc,bnchw->bnhw", mean, cells) / _HARD).exp()
        hard = masked_mean(cells, weights)
    return Guide(objects, grounds, own, hard)


def against(query: Evidence, guide: Guide) -> Tensor:
    """Cosine of each cell of B queries with the most similar negative, (B, h, w); there is at least one."""
    return torch.einsum("bchw,bnc->bnhw", query.maps[DEEP], guide.negatives).amax(dim=1)


def negative_lead(query: Evidence, guide: Guide) -> Tensor:
    """How much more a cell resembles a negative than any support: cosines, (B, h, w), at least 0."""
    similar = torch.einsum("bchw,bkc->bkhw", query.maps[DEEP], guide.objects).amax(dim=1)
    return (against(query, guide) - similar).relu()


def presence_signals(query: Evidence, guide: Guide, probability: Tensor) -> Tensor:
    """The `SIGNALS` of B queries, from their evidence and the method's probability (B, H, W): (B, S) float32.

    nearest: largest cosine of the query's cells with the object, mean over the supports; relative: that, over
    the supports' own similarity; contrast: the largest lead over the similarity to the supports' background;
    in_mask: mean cosine where the method sees the object; highest, mean and sharpness: of the probability. A
    cell that resembles a negative more counts as less similar than it is, by the difference.
    """
    maps = query.maps[DEEP]  # (B, C, h, w)
    similar = torch.einsum("bchw,bkc->bkhw", maps, guide.objects)
    if guide.negatives is not None:
        similar = similar - (against(query, guide)[:, None] - similar).relu()
    lead = similar - torch.einsum("bchw,bkc->bkhw", maps, guide.grounds)
    probability = probability.float()
    mask = (probability > 0.5).float()
    cells = pooled(mask, maps)
    nearest = similar.amax(dim=(2, 3))  # (B, K)
    return torch.stack(
        [
            nearest.mean(dim=1),
            (nearest / guide.own.clamp(min=0.05)).mean(dim=1),
            lead.amax(dim=(2, 3)).mean(dim=1),
            (similar.mean(dim=1) * cells).sum(dim=(1, 2)) / cells.sum(dim=(1, 2)).clamp(min=1e-6),
            probability.amax(dim=(1, 2)),
            probability.mean(dim=(1, 2)),
            (probability * mask).sum(dim=(1, 2)) / mask.sum(dim=(1, 2)).clamp(min=1),
        ],
        dim=1,
    )


class Presence(nn.Module):
    """The logistic model of the `SIGNALS`; its numbers are in the state dict once they are fitted."""

    means: Tensor
    scales: Tensor
    weights: Tensor
    bias: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fitted = False
        self._set(_PRIOR, persistent=False)

    def fill(self, numbers: Logistic) -> None:
        """Take fitted numbers, which a checkpoint then holds."""
        self._set(numbers, persistent=True)

    def make_room(self, state: Mapping[str, Tensor]) -> None:
        """Take numbers from a state dict if it holds some; call it before `load_state_dict`."""
        if any(name.startswith("presence.") for name in state):
            self._set(_PRIOR, persistent=True)

    def _set(self, numbers: Logistic, *, persistent: bool) -> None:
        device = self.bias.device if hasattr(self, "bias") else None
        for name, values in vars(numbers).items():
            tensor = torch.tensor(values, dtype=torch.float32, device=device)
            self.register_buffer(name, tensor, persistent=persistent)
        self.fitted = persistent

    def forward(self, signals: Tensor) -> Tensor:
        """Logits (B,) of the presence, from signals (B, S)."""
        standard = ((signals - self.means) / self.scales).clamp(-CLIP, CLIP)
        return standard @ self.weights + self.bias
