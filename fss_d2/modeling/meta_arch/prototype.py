"""The training-free baseline: masked average pooling and cosine similarity."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor
from torch.nn import functional as F

from fss_d2.modeling.backbone import FeatureBackbone
from fss_d2.modeling.build import build_few_shot_backbone, feature_names
from fss_d2.modeling.keys import config_keys, require
from fss_d2.modeling.layers import area_fraction, resize, weighted_sum

from .contract import Encoding, Output
from .few_shot import FewShotSegmentor, SegmentorOptions

__all__ = ["Prototype"]


@config_keys
def add_keys(cfg: CfgNode) -> None:
    """Keys of the training-free baseline."""
    cfg.MODEL.PROTOTYPE = CfgNode()
    cfg.MODEL.PROTOTYPE.IN_FEATURES = ("res4", "res5")  # resized to the first one and joined
    cfg.MODEL.PROTOTYPE.TEMPERATURE = 0.05  # of the two cosines in the softmax


@dataclass(frozen=True)
class RegionSums(Encoding):
    """Of background and object of each support: feature sums (B, K, 2, C) and areas (B, K, 2) in cells."""

    sums: Tensor
    areas: Tensor


@dataclass(frozen=True)
class Prototypes(Encoding):
    """Unit prototypes (B, 2 + N, C): background, object, and the background of each of N negatives."""

    prototypes: Tensor


@dataclass(frozen=True)
class UnitFeatures(Encoding):
    """Unit feature vectors (B, C, h, w) of queries."""

    features: Tensor


@META_ARCH_REGISTRY.register()
class Prototype(FewShotSegmentor):
    """Cosine similarity to one object prototype and one background prototype; nothing is trained.

    Feature levels are resized to the first one's size, scaled to unit length and joined, so that every
    level has the same weight. A prototype is the mean over all its pixels in all supports together, not the
    mean of one prototype per support: a support that shows little of the object then adds little noise.
    A cell counts by the share of its pixels in the mask; pixels marked 255 are in neither prototype.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: FeatureBackbone,
        in_features: Sequence[str],
        temperature: float = 0.05,
        options: SegmentorOptions | None = None,
    ) -> None:
        """Raises ValueError for a temperature not above 0, KeyError for a feature that the backbone lacks."""
        require(temperature > 0, "temperature", temperature, "above 0")
        super().__init__(backbone, options or SegmentorOptions())
        self.in_features = tuple(in_features)
        self.temperature = temperature
        self.backbone.select(self.in_features)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments from MODEL.PROTOTYPE and the backbone's keys."""
        c = cfg.MODEL.PROTOTYPE
        require(c.TEMPERATURE > 0, "MODEL.PROTOTYPE.TEMPERATURE", c.TEMPERATURE, "above 0")
        backbone = build_few_shot_backbone(cfg)
        return {
            "backbone": backbone,
            "in_features": feature_names("MODEL.PROTOTYPE.IN_FEATURES", c.IN_FEATURES, backbone),
            "temperature": c.TEMPERATURE,
            "options": SegmentorOptions.from_config(cfg),
        }

    def _joined_features(self, features: Mapping[str, Tensor]) -> Tensor:
        size = features[self.in_features[0]].shape[-2:]
        levels = [resize(features[name], size, align_corners=False) for name in self.in_features]
        return torch.cat([F.normalize(level, dim=1) for level in levels], dim=1)  # (N, sum of C, h, w)

    def _encode_support(self, features: Mapping[str, Tensor], masks: Tensor) -> RegionSums:
        joined = self._joined_features(features).unflatten(0, masks.shape[:2])  # (B, K, C, h, w)
        weights = torch.stack([area_fraction(masks == v, joined.shape[-2:]) for v in (0, 1)], dim=2)
        return RegionSums(weighted_sum(joined, weights), weights.sum(dim=(3, 4)))

    def _join(self, encoded: RegionSums) -> Prototypes:
        means = encoded.sums.sum(dim=1) / encoded.areas.sum(dim=1).clamp(min=1e-6)[..., None]
        return Prototypes(F.normalize(means, dim=2))

    def _encode_negatives(self, features: Mapping[str, Tensor], masks: Tensor) -> RegionSums:
        return self._encode_support(features, masks)

    def _add_negatives(self, joined: Prototypes, negatives: RegionSums) -> Prototypes:
        further = F.normalize(negatives.sums[:, :, 0], dim=2)  # (B, N, C)
        return Prototypes(torch.cat([joined.prototypes, further], dim=1))

    def _encode_query(self, features: Mapping[str, Tensor]) -> UnitFeatures:
        return UnitFeatures(F.normalize(self._joined_features(features), dim=1))

    def _match(self, query: UnitFeatures, support: Prototypes, size: tuple[int, int]) -> Output:
        cosine = torch.einsum("bchw,bnc->bnhw", query.features, support.prototypes.to(query.features.dtype))
        if cosine.shape[1] > 2:  # the most similar background counts
            ground = torch.maximum(cosine[:, 0], cosine[:, 2:].amax(dim=1))
            cosine = torch.stack([ground, cosine[:, 1]], dim=1)
        logits = resize(cosine / self.temperature, size, align_corners=self.align_corners)
        return Output(logits, maps={"cosine": cosine})
