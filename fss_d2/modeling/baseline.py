"""A comparison with mean features under a trained method, to which the method adds its logits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.modeling import Backbone
from torch import Tensor
from torch.nn import functional as F

from .encoding import Encoding
from .keys import config_keys
from .layers import area_fraction, join_levels, resize, weighted_sum

__all__ = ["Baseline", "WithBaseline"]


@config_keys
def add_keys(cfg: CfgNode) -> None:
    """Keys of the baseline under a method; no published recipe has one."""
    cfg.MODEL.BASELINE = CfgNode()
    # Logits for a pixel whose cosine to the object's mean feature exceeds that to the background's by 1. They
    # are added to the method's own, which training then corrects where the comparison errs. 0: none.
    cfg.MODEL.BASELINE.SCALE = 0.0
    cfg.MODEL.BASELINE.IN_FEATURES = ("res4", "res5")  # as MODEL.PROTOTYPE.IN_FEATURES


@dataclass(frozen=True)
class RegionMeans(Encoding):
    """Of background and object of each support: feature sums (B, K, 2, C) and areas (B, K, 2) in cells."""

    sums: Tensor
    areas: Tensor


@dataclass(frozen=True)
class Vectors(Encoding):
    """Unit vectors: features (B, C, h, w) of queries, or prototypes (B, 2, C) of background and object."""

    values: Tensor


@dataclass(frozen=True)
class WithBaseline(Encoding):
    """What a method keeps of images, and what the baseline under it keeps."""

    own: Encoding
    baseline: Encoding


class Baseline:
    """Cosines to the mean features of object and background; nothing is trained, no gradient flows.

    Args:
        backbone: its ``available`` maps must include ``in_features``; KeyError names one that is missing.
        in_features: resized to the first one's size and joined, each scaled to unit length.
        scale: logits for a difference of the two cosines of 1.
    """

    def __init__(self, backbone: Backbone, in_features: Sequence[str], scale: float) -> None:
        if unknown := [name for name in in_features if name not in backbone.available]:
            known = ", ".join(backbone.available)
            raise KeyError(f"MODEL.BASELINE.IN_FEATURES: no feature {unknown[0]!r}: choose from {known}")
        self.in_features, self.scale = tuple(in_features), scale

    @torch.no_grad()
    def encode_support(self, features: Mapping[str, Tensor], masks: Tensor) -> RegionMeans:
        """Encode maps (B*K, C, h, w) with masks (B, K, H, W) in {0, 1, 255}."""
        joined = join_levels(features, self.in_features).unflatten(0, masks.shape[:2])
        weights = torch.stack([area_fraction(masks == v, joined.shape[-2:]) for v in (0, 1)], dim=2)
        return RegionMeans(weighted_sum(joined, weights), weights.sum(dim=(3, 4)))

    @torch.no_grad()
    def join(self, encoded: RegionMeans) -> Vectors:
        """The prototypes of all supports together."""
        means = encoded.sums.sum(dim=1) / encoded.areas.sum(dim=1).clamp(min=1e-6)[..., None]
        return Vectors(F.normalize(means, dim=2))

    @torch.no_grad()
    def encode_query(self, features: Mapping[str, Tensor]) -> Vectors:
        """Encode maps (B, C, h, w)."""
        return Vectors(F.normalize(join_levels(features, self.in_features), dim=1))

    @torch.no_grad()
    def lead(self, query: Vectors, support: Vectors, size: tuple[int, int], *, align_corners: bool) -> Tensor:
        """Logits (B, H, W) by which the object leads."""
        cosines = torch.einsum("bchw,bnc->bnhw", query.values, support.values.to(query.values.dtype))
        lead = self.scale * (cosines[:, 1:] - cosines[:, :1])
        return resize(lead, size, align_corners=align_corners)[:, 0]
