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

__all__ = ["SIGNALS", "Guide", "Presence", "guide_of"]

SIGNALS = ("nearest", "whole", "unity", "contrast", "in_mask", "highest", "mean", "sharpness", "own")

# For features as they are, of EfficientNet-Lite0 and ResNets; rough, and with weights that suit any method.
_PRIOR = Logistic(
    bias=0.0,
    means=(0.40, 0.25, 0.90, 0.10, 0.33, 0.90, 0.25, 0.75, 0.0),
    scales=(0.13, 0.12, 0.10, 0.08, 0.12, 0.12, 0.15, 0.12, 2.0),
    weights=(1.2, 0.4, -0.3, 0.2, 0.2, 0.1, -0.1, 0.2, 2.0),
)
_PREFIX = "presence."  # of the names in a state dict
_HARD = 0.05  # temperature of the choice of those parts of a negative that resemble the object


@config_keys
def add_keys(cfg: CfgNode) -> None:
    """Keys of the presence."""
    cfg.MODEL.PRESENCE = CfgNode()
    # Blocks of the backbone whose features are compared; a stage stands for its last three. Empty: the last
    # three blocks of the deepest stage that the method reads, which cost nothing.
    cfg.MODEL.PRESENCE.BLOCKS = ()


@dataclass(frozen=True)
class Guide(Encoding):
    """What queries are compared with: mean vectors of the deep grid."""

    objects: Tensor  # (B, K, C) of the object of each support
    grounds: Tensor  # (B, K, C) of its background; zeros where there is none
    negatives: Tensor | None = None  # (B, N, C) of what resembles the object most in each negative


def guide_of(supports: Evidence, negatives: Evidence | None = None) -> Guide:
    """Make the guide of the evidence of supports and negatives."""
    maps = supports.maps[DEEP]  # (B, K, C, h, w)
    objects, grounds = masked_mean(maps, supports.objects[DEEP]), masked_mean(maps, supports.ground)
    hard = None
    if negatives is not None:
        cells, regions = negatives.maps[DEEP], negatives.objects[DEEP]
        mean = F.normalize(objects.mean(dim=1), dim=1)
        similar = torch.einsum("bc,bnchw->bnhw", mean, cells)
        hard = masked_mean(cells, regions * (similar / _HARD).exp())
    return Guide(objects, grounds, hard)


class Presence(nn.Module):
    """The logistic model of the `SIGNALS`; its numbers are in the state dict once they are fitted.

    Features are compared by the cosine of their deviations from `centre`, in units of `spread`: what all
    pictures have in common says nothing.
    """

    centre: Tensor  # (C,) mean of the deep grid over pictures, or (1,)
    spread: Tensor  # (C,) its standard deviation over the cells of a picture, or (1,)
    means: Tensor  # this and the next three: see `Logistic`
    scales: Tensor
    weights: Tensor
    bias: Tensor

    def __init__(self) -> None:
        super().__init__()
        self._take(_numbers(torch.zeros(1), torch.ones(1), _PRIOR), persistent=False)

    def fill(self, centre: Tensor, spread: Tensor, logistic: Logistic = _PRIOR) -> None:
        """Take fitted numbers, which a checkpoint then holds."""
        device = self.bias.device
        numbers = _numbers(centre, spread, logistic)
        self._take({name: values.to(device) for name, values in numbers.items()}, persistent=True)

    def make_room(self, state: Mapping[str, Tensor]) -> None:
        """Get ready for the numbers of a state dict, if it holds some; call it before they are loaded."""
        found = {name.removeprefix(_PREFIX): t for name, t in state.items() if name.startswith(_PREFIX)}
        if found.keys() == self._buffers.keys():
            values = {name: torch.zeros_like(t, device=self.bias.device) for name, t in found.items()}
            self._take(values, persistent=True)

    def _take(self, numbers: Mapping[str, Tensor], *, persistent: bool) -> None:
        for name, values in numbers.items():
            self.register_buffer(name, values, persistent=persistent)

    def forward(
        self, query: Evidence, guide: Guide, probability: Tensor, own: Tensor | None = None
    ) -> Tensor:
        """Logits (B,) of the presence; arguments as `signals`."""
        signals = self.signals(query, guide, probability, own)
        return ((signals - self.means) / self.scales).clamp(-CLIP, CLIP) @ self.weights + self.bias

    def signals(
        self, query: Evidence, guide: Guide, probability: Tensor, own: Tensor | None = None
    ) -> Tensor:
        """The `SIGNALS` of B queries, (B, S) float32, from the method's probability (B, H, W) as well.

        With the mean of the supports' unit vectors as the object's: nearest: the largest cosine of a cell of
        the query; whole: that of the mean of its cells; unity: the length of that mean, 1 for equal supports;
        contrast: the largest lead of a cell over the similarity to the supports' background; in_mask: mean
        cosine where the method sees the object. highest, mean, sharpness: largest and mean probability, and
        its mean where it exceeds 0.5; own: the method's own logit (B,), 0 of a method that has none. A cell
        that resembles a negative more counts as less similar, by the difference.
        """
        maps = self._compared(query.maps[DEEP], dim=1)  # (B, C, h, w)
        mean = self._compared(guide.objects).mean(dim=1)  # (B, C)
        # (B, K, 1): a support may have no background.
        shown = guide.grounds.abs().sum(dim=2, keepdim=True) > 0
        ground = F.normalize((self._compared(guide.grounds) * shown).sum(dim=1), dim=1)
        joint = F.normalize(mean, dim=1)
        similar = torch.einsum("bchw,bc->bhw", maps, joint)
        if guide.negatives is not None:
            similar = similar - (self._against(maps, guide) - similar).relu()
        lead = similar - torch.einsum("bchw,bc->bhw", maps, ground)
        probability = probability.float()
        mask = (probability > 0.5).float()
        cells = pooled(mask, maps)
        values = [
            similar.amax(dim=(1, 2)),
            torch.einsum("bc,bc->b", F.normalize(maps.mean(dim=(2, 3)), dim=1), joint),
            mean.norm(dim=1),
            lead.amax(dim=(1, 2)),
            (similar * cells).sum(dim=(1, 2)) / cells.sum(dim=(1, 2)).clamp(min=1e-6),
            probability.amax(dim=(1, 2)),
            probability.mean(dim=(1, 2)),
            (probability * mask).sum(dim=(1, 2)) / mask.sum(dim=(1, 2)).clamp(min=1),
            torch.zeros_like(joint[:, 0]) if own is None else own.float(),
        ]
        return torch.stack(values, dim=1)

    def negative_lead(self, query: Evidence, guide: Guide) -> Tensor:
        """How much more a cell resembles a negative than any support: cosines, (B, h, w), at least 0."""
        maps = self._compared(query.maps[DEEP], dim=1)
        similar = torch.einsum("bchw,bkc->bkhw", maps, self._compared(guide.objects)).amax(dim=1)
        return (self._against(maps, guide) - similar).relu()

    def _against(self, maps: Tensor, guide: Guide) -> Tensor:
        """Cosine of each cell with the most similar negative: (B, h, w)."""
        return torch.einsum("bchw,bnc->bnhw", maps, self._compared(guide.negatives)).amax(dim=1)

    def _compared(self, vectors: Tensor, dim: int = -1) -> Tensor:
        """Unit vectors of the deviations from the centre; ``dim`` are the channels."""
        shape = [-1 if axis == dim % vectors.dim() else 1 for axis in range(vectors.dim())]
        centre, spread = self.centre.view(shape), self.spread.view(shape)
        if len(self.centre) not in (1, vectors.shape[dim]):
            raise ValueError(
                f"the presence was fitted to {len(self.centre)} channels, MODEL.PRESENCE.BLOCKS give "
                f"{vectors.shape[dim]}: choose the blocks of the fit, or fit anew with tools/fit_presence.py"
            )
        return F.normalize((vectors - centre) / spread, dim=dim)


def _numbers(centre: Tensor, spread: Tensor, logistic: Logistic) -> dict[str, Tensor]:
    values = {name: torch.tensor(numbers, dtype=torch.float32) for name, numbers in vars(logistic).items()}
    return {"centre": centre, "spread": spread, **values}
