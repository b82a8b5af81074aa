"""PFENet: Prior Guided Feature Enrichment Network (Tian et al., TPAMI 2020)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor
from torch.nn import functional as F

from fss_d2.modeling.backbone import FeatureBackbone
from fss_d2.modeling.backbone.base import stage_before
from fss_d2.modeling.build import (
    build_base_knowledge,
    build_few_shot_backbone,
    dynamic_convolution_arguments,
    feature_names,
)
from fss_d2.modeling.keys import at_least, choose, config_keys, require, share
from fss_d2.modeling.layers import (
    BaseKnowledge,
    DynamicQuery,
    FeatureEnrichment,
    FeatureReduction,
    bin_sizes,
    classifier,
    mask_features,
    resize,
    shot_prototypes,
    soft_mask,
    support_activations,
)

from .contract import Encoding, Output
from .few_shot import FewShotSegmentor, Maps, SegmentorOptions

__all__ = ["PLUG_INS", "PFENet"]


@config_keys
def add_keys(cfg: CfgNode) -> None:
    """Add the keys of PFENet (Tian et al., TPAMI 2020)."""
    cfg.MODEL.PFENET = CfgNode()
    # Middle features, joined in this order at the first one's size and reduced to DIM channels.
    cfg.MODEL.PFENET.IN_FEATURES = ("res4", "res3")
    cfg.MODEL.PFENET.PRIOR_FEATURE = "res5"  # compared for the prior mask
    # The support mask is also applied before the stage of PRIOR_FEATURE runs (reference code, not the paper).
    cfg.MODEL.PFENET.MASK_BEFORE_PRIOR = True
    cfg.MODEL.PFENET.DIM = 256
    # Sides of the pyramid's levels, in cells; a number up to 1.0 is a fraction of the feature map's side.
    cfg.MODEL.PFENET.BINS = (60.0, 30.0, 15.0, 8.0)
    cfg.MODEL.PFENET.DROPOUT = 0.5  # of channels of the middle features
    cfg.MODEL.PFENET.AUX_WEIGHT = 1.0  # of the mean loss of the pyramid's levels
    # Plug-ins: "dcm" (DPCN, Table 6: dynamic convolution of the query features; settings in MODEL.DPCN),
    # "ckmm" (JC2A, Table 5: the class-agnostic map next to the prior; settings in MODEL.BASE_KNOWLEDGE).
    cfg.MODEL.PFENET.PLUG_INS = ()


PLUG_INS = ("dcm", "ckmm")


@dataclass(frozen=True)
class ShotEncoding(Encoding):
    """Of each support: middle features (B, K, C, h, w), soft masks (B, K, h, w), and compared features."""

    middle: Tensor
    weights: Tensor
    high: Tensor


@dataclass(frozen=True)
class JoinedSupports(Encoding):
    """Of each episode."""

    prototype: Tensor  # (B, C), mean over the supports
    high: Tensor  # (B, K, C', h', w') features compared for the prior, zero outside the object
    foreground: Tensor | None = None  # (B, P, C), see `DynamicConvolution.pool`; None without it


@dataclass(frozen=True)
class QueryEncoding(Encoding):
    """Of each query, (B, C, h, w) each: middle and compared features, and the class-agnostic map or None."""

    middle: Tensor
    high: Tensor
    agnostic: Tensor | None = None


@META_ARCH_REGISTRY.register()
class PFENet(FewShotSegmentor):
    """Prior guided feature enrichment network (Tian et al., TPAMI 2020).

    The prior mask says where high-level features of a query resemble the object of a support (Sec. 4.1); it
    is not trained. Pooled query features, the prototype of the supports and the prior are then joined at
    several scales (`FeatureEnrichment`, Sec. 4.2). Several supports: priors and prototypes are averaged.
    Pixels marked 255 are background in a support and are left out of the losses "loss_seg" and "loss_aux",
    the mean cross entropy of the pyramid's levels. A backbone that cannot run the stage of the compared
    features alone needs ``mask_before_prior`` False.
    """

    shot_by_shot = True  # in training these are the batch statistics of the released code
    borrows_keys_of = ("DPCN",)  # of the plug-in "dcm"
    score_layer = "classifier.3"

    @configurable
    def __init__(
        self,
        *,
        backbone: FeatureBackbone,
        in_features: Sequence[str] = ("res4", "res3"),
        prior_feature: str = "res5",
        mask_before_prior: bool = True,
        dim: int = 256,
        bins: Sequence[float] = (60, 30, 15, 8),  # fine to coarse; see `bin_sizes`
        dropout: float = 0.5,
        dynamic: DynamicQuery | None = None,  # reworks the query's middle features with the object's
        knowledge: BaseKnowledge | None = None,  # gives the class-agnostic map
        options: SegmentorOptions | None = None,  # corners are aligned in any case
    ) -> None:
        """See also the keys of MODEL.PFENET above.

        Raises ValueError for a backbone that cannot run the stage ``prior_feature`` alone where that is
        needed, no bin, or one that is neither a fraction nor a number of cells; KeyError for a feature that
        the backbone lacks.
        """
        _check_bins("bins", bins)
        super().__init__(backbone, replace(options or SegmentorOptions(), align_corners=True))
        self.in_features = tuple(in_features)
        self.prior_feature = self.prior_source = prior_feature
        self.mask_before_prior = mask_before_prior
        if mask_before_prior:
            self.prior_source = stage_before(backbone, prior_feature, "mask_before_prior")
        known = () if knowledge is None else knowledge.in_features
        backbone.select((*self.in_features, self.prior_source, *known))
        shapes = backbone.output_shape()
        channels = sum(shapes[name].channels for name in self.in_features)
        self.reduce_query = FeatureReduction(channels, dim, dropout)
        self.reduce_support = FeatureReduction(channels, dim, dropout)
        self.bins = tuple(bins)
        self.enrichment = FeatureEnrichment(2 * dim + 1 + (knowledge is not None), dim, len(self.bins))
        self.classifier = classifier(dim)
        self.dynamic, self.knowledge = dynamic, knowledge
        self.permutation_invariant = dynamic is None  # its kernels depend on the order of the supports
        self.query_first = self.bn_train_stats  # the released code's order, for batch statistics

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments from MODEL.PFENET, those of the plug-ins, and the backbone's keys."""
        c = cfg.MODEL.PFENET
        for name in c.PLUG_INS:
            choose("MODEL.PFENET.PLUG_INS", name, PLUG_INS)
        _check_bins("MODEL.PFENET.BINS", c.BINS)
        dim = at_least("MODEL.PFENET.DIM", c.DIM, 1)
        backbone = build_few_shot_backbone(cfg)
        feature_names("MODEL.PFENET.PRIOR_FEATURE", [c.PRIOR_FEATURE], backbone)
        if c.MASK_BEFORE_PRIOR:
            stage_before(backbone, c.PRIOR_FEATURE, "MODEL.PFENET.MASK_BEFORE_PRIOR")
        with_dcm = "dcm" in c.PLUG_INS
        aux_weight = at_least("MODEL.PFENET.AUX_WEIGHT", c.AUX_WEIGHT, 0)
        return {
            "backbone": backbone,
            "in_features": feature_names("MODEL.PFENET.IN_FEATURES", c.IN_FEATURES, backbone),
            "prior_feature": c.PRIOR_FEATURE,
            "mask_before_prior": c.MASK_BEFORE_PRIOR,
            "dim": dim,
            "bins": c.BINS,
            "dropout": share("MODEL.PFENET.DROPOUT", c.DROPOUT),
            "dynamic": DynamicQuery(dim, **dynamic_convolution_arguments(cfg)) if with_dcm else None,
            "knowledge": build_base_knowledge(cfg, backbone) if "ckmm" in c.PLUG_INS else None,
            "options": replace(SegmentorOptions.from_config(cfg), aux_weight=aux_weight),
        }

    def _compared(self, features: Maps, masks: Tensor | None = None) -> Tensor:
        """Features (B, C, h, w) that the prior compares; of a support only its object (masks (B, H, W))."""
        high = features[self.prior_source]
        if self.mask_before_prior:
            high = high if masks is None else mask_features(high, masks)
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_backbone):
                high = self.backbone.run_stage(self.prior_feature, high)
        return high if masks is None else mask_features(high, masks)

    def _encode_support(self, features: Maps, masks: Tensor) -> ShotEncoding:
        shape, masks = masks.shape[:2], masks.flatten(0, 1)
        middle = self.reduce_support([features[name] for name in self.in_features])
        weights = soft_mask(masks, middle.shape[-2:])
        encoded = ShotEncoding(middle, weights, self._compared(features, masks))
        return encoded.map(lambda t: t.unflatten(0, shape))

    def _join(self, encoded: ShotEncoding) -> JoinedSupports:
        prototype = shot_prototypes(encoded.middle, encoded.weights).mean(dim=1)
        foreground = None
        if self.dynamic is not None:
            foreground = self.dynamic.encode(encoded.middle, encoded.weights)
        return JoinedSupports(prototype, encoded.high, foreground)

    def _encode_query(self, features: Maps) -> QueryEncoding:
        middle = self.reduce_query([features[name] for name in self.in_features])
        high = self._compared(features)
        return QueryEncoding(middle, high, None if self.knowledge is None else self.knowledge(features))

    def _match(self, query: QueryEncoding, support: JoinedSupports, size: tuple[int, int]) -> Output:
        middle, cells = query.middle, query.middle.shape[-2:]
        if self.dynamic is not None:
            middle = self.dynamic(middle, support.foreground)
        guides = {"prior": resize(support_activations(query.high, support.high), cells)}
        if query.agnostic is not None:
            guides["agnostic"] = resize(query.agnostic, cells)
        levels = []
        for bin_size in zip(*(bin_sizes(self.bins, side) for side in cells), strict=True):
            pooled = F.adaptive_avg_pool2d(middle, bin_size)
            spread = support.prototype[:, :, None, None].expand(-1, -1, *bin_size)
            levels.append(torch.cat([pooled, spread, *(resize(g, bin_size) for g in guides.values())], dim=1))
        enriched, level_logits = self.enrichment(levels, cells)
        return Output(resize(self.classifier(enriched), size), maps=guides, levels=level_logits)


def _check_bins(name: str, bins: Sequence[float]) -> None:
    fits = bool(bins) and all(0 < b <= 1 or (b > 1 and b == int(b)) for b in bins)
    require(fits, name, tuple(bins), "numbers of cells, or fractions above 0 up to 1.0, at least one")
