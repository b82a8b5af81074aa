"""DANet, the few-shot one: light and dense attention, and a prototype with channel attention."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from fss_d2.modeling.backbone import FeatureBackbone
from fss_d2.modeling.build import build_base_knowledge, build_few_shot_backbone, feature_names
from fss_d2.modeling.keys import at_least, config_keys, require, share
from fss_d2.modeling.layers import (
    BaseKnowledge,
    DenseAttention,
    FeatureReduction,
    LightAttention,
    PrototypicalChannelAttention,
    PyramidPooling,
    mask_features,
    resize,
    shot_prototypes,
    soft_mask,
    support_activations,
)

from .contract import Encoding, Output
from .few_shot import FewShotSegmentor, Maps, SegmentorOptions

__all__ = ["DANet"]


@config_keys
def add_keys(cfg: CfgNode) -> None:
    """Add the keys of the few-shot DANet (Chen et al., 2022)."""
    cfg.MODEL.DANET = CfgNode()
    cfg.MODEL.DANET.IN_FEATURES = ("res3", "res4")  # low and high features, joined at the first one's size
    cfg.MODEL.DANET.DIM = 256
    cfg.MODEL.DANET.DROPOUT = 0.5
    cfg.MODEL.DANET.LDA = True  # Table 3: light and dense attention
    cfg.MODEL.DANET.PCA = True  # Table 3: prototypical channel attention; False: masked average pooling
    cfg.MODEL.DANET.LIGHT_SCALE = False  # divide light attention's products by the root of their length
    cfg.MODEL.DANET.PCA_RATIO = 16
    cfg.MODEL.DANET.PCA_MASKED = False  # soft pooling over the object only
    cfg.MODEL.DANET.USE_PRIOR = False  # PFENet's prior mask as a further channel
    cfg.MODEL.DANET.PRIOR_FEATURE = "res5"  # compared for it; masked after that stage only
    cfg.MODEL.DANET.PPM_BINS = (1, 2, 3, 6)
    cfg.MODEL.DANET.CKMM = False  # JC2A's class-agnostic map as a further channel


@dataclass(frozen=True)
class ShotEncoding(Encoding):
    """Of each support."""

    prototype: Tensor  # (B, K, dim)
    light_keys: Tensor | None = None  # (B, K, c, h, w) compared by light attention; None without it
    dense_keys: Tensor | None = None  # the same for dense attention
    prior: Tensor | None = None  # (B, K, C, h, w) compared for the prior mask, zero outside the object


@dataclass(frozen=True)
class QueryEncoding(Encoding):
    """Of each query: backbone maps by name, and the class-agnostic map (B, 1, h, w) or None."""

    maps: dict[str, Tensor]
    agnostic: Tensor | None = None


@META_ARCH_REGISTRY.register()
class DANet(FewShotSegmentor):
    """Dual-Attention Network for Few-Shot Segmentation (Chen, Wang, Zhang and Zhong, 2022).

    Not the scene-segmentation DANet, "Dual Attention Network" (Fu et al., CVPR 2019), which has no supports
    and whose position attention it borrows.

    The query's low features are mixed by rows and columns (light), joined to the high ones, reduced, and
    mixed by pixels (dense), each time as they resemble the supports'. The result and the supports' prototype
    go through pyramid pooling to a classifier. There is no released code; where the paper is silent,
    reductions, dropout and loss are those of PFENet, on which it builds, the classifier is PSPNet's, and
    PFENet's prior mask and feature enrichment are absent, as in the paper's figure.

    Of K supports, the attention maps (after their softmax) and the prototypes are averaged, so that a model
    trained on one support runs with any number. Attention compares maps of equal size: the supports' maps
    are resized to the query's size (bilinear, corners aligned) if they differ from it.
    """

    score_layer = "classifier.4"

    @configurable
    def __init__(
        self,
        *,
        backbone: FeatureBackbone,
        in_features: Sequence[str] = ("res3", "res4"),
        dim: int = 256,
        dropout: float = 0.5,
        light_dense: bool = True,
        light_scaled: bool = False,
        channel_attention: Mapping[str, Any] | None = None,  # for `PrototypicalChannelAttention`; None: none
        prior_feature: str | None = None,  # None leaves the prior mask out
        knowledge: BaseKnowledge | None = None,
        ppm_bins: Sequence[int] = (1, 2, 3, 6),
        options: SegmentorOptions | None = None,  # corners are aligned in any case
    ) -> None:
        """See also the keys of MODEL.DANET above.

        Raises ValueError for fewer than two features, or neither of the two attention modules; KeyError for
        a feature that the backbone lacks.
        """
        rule = "the low features, then the high ones"
        require(len(in_features) > 1, "in_features", tuple(in_features), rule)
        if not light_dense and channel_attention is None:
            raise ValueError("light_dense is False and channel_attention None: the baseline is PFENet")
        super().__init__(backbone, replace(options or SegmentorOptions(), align_corners=True))
        self.in_features = tuple(in_features)
        self.prior_feature, self.knowledge = prior_feature, knowledge
        extra = [*([prior_feature] if prior_feature else []), *(knowledge.in_features if knowledge else ())]
        backbone.select([*self.in_features, *extra])
        channels = [backbone.available[name].channels for name in self.in_features]
        self.reduce_query = FeatureReduction(sum(channels), dim, dropout)
        self.reduce_support = FeatureReduction(sum(channels), dim, dropout)
        self.light = LightAttention(channels[0], scaled=light_scaled) if light_dense else None
        self.dense = DenseAttention(dim) if light_dense else None
        pca = channel_attention
        self.channel_attention = None if pca is None else PrototypicalChannelAttention(dim, **pca)
        joined = 2 * dim + (prior_feature is not None) + (knowledge is not None)
        self.pyramid = PyramidPooling(joined, ppm_bins)
        self.classifier = nn.Sequential(
            nn.Conv2d(self.pyramid.out_channels, dim, 3, padding=1, bias=False),
            nn.BatchNorm2d(dim),
            nn.ReLU(),
            nn.Dropout2d(0.1),
            nn.Conv2d(dim, 2, 1),
        )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments from MODEL.DANET, MODEL.BASE_KNOWLEDGE, and the backbone's keys."""
        c = cfg.MODEL.DANET
        if not (c.LDA or c.PCA):
            raise ValueError(
                "MODEL.DANET.LDA and PCA are both False: set one of them True; the baseline without both is "
                "MODEL.META_ARCHITECTURE PFENet"
            )
        dim = at_least("MODEL.DANET.DIM", c.DIM, 1)
        ratio, bins = c.PCA_RATIO, tuple(c.PPM_BINS)
        require(1 <= ratio <= dim, "MODEL.DANET.PCA_RATIO", ratio, f"1 to {dim} (MODEL.DANET.DIM)")
        fits = bool(bins) and min(bins) > 0 and len(bins) <= 2 * dim
        require(fits, "MODEL.DANET.PPM_BINS", bins, f"1 to {2 * dim} (twice MODEL.DANET.DIM) numbers above 0")
        backbone = build_few_shot_backbone(cfg)
        if c.USE_PRIOR:
            feature_names("MODEL.DANET.PRIOR_FEATURE", [c.PRIOR_FEATURE], backbone)
        return {
            "backbone": backbone,
            "in_features": feature_names("MODEL.DANET.IN_FEATURES", c.IN_FEATURES, backbone, least=2),
            "dim": dim,
            "dropout": share("MODEL.DANET.DROPOUT", c.DROPOUT),
            "light_dense": c.LDA,
            "light_scaled": c.LIGHT_SCALE,
            "channel_attention": {"ratio": ratio, "masked": c.PCA_MASKED} if c.PCA else None,
            "prior_feature": c.PRIOR_FEATURE if c.USE_PRIOR else None,
            "knowledge": build_base_knowledge(cfg, backbone) if c.CKMM else None,
            "ppm_bins": bins,
            "options": SegmentorOptions.from_config(cfg),
        }

    def _encode_support(self, features: Maps, masks: Tensor) -> ShotEncoding:
        shape, masks = masks.shape[:2], masks.flatten(0, 1)
        maps = [features[name] for name in self.in_features]
        weights = soft_mask(masks, maps[0].shape[-2:])
        # At the low features' size, zero outside the object (Eq. 1, 4).
        low, *high = (resize(m, weights.shape[-2:]) * weights[:, None] for m in maps)
        reduced = self.reduce_support([low, *high])  # D_s, (B*K, dim, h, w)
        encoded = ShotEncoding(
            self._prototypes(reduced, weights),
            None if self.light is None else self.light.key(low),
            None if self.dense is None else self.dense.key(reduced),
            mask_features(features[self.prior_feature], masks) if self.prior_feature else None,
        )
        return encoded.map(lambda t: t.unflatten(0, shape))

    def _join(self, encoded: ShotEncoding) -> ShotEncoding:
        return replace(encoded, prototype=encoded.prototype.mean(dim=1))

    def _prototypes(self, reduced: Tensor, weights: Tensor) -> Tensor:
        """D_s (N, dim, h, w) and masks (N, h, w) to (N, dim)."""
        if self.channel_attention is not None:
            return self.channel_attention(reduced, weights)
        return shot_prototypes(reduced[:, None], weights[:, None])[:, 0]

    def _encode_query(self, features: Maps) -> QueryEncoding:
        return QueryEncoding(dict(features), None if self.knowledge is None else self.knowledge(features))

    def _match(self, query: QueryEncoding, support: ShotEncoding, size: tuple[int, int]) -> Output:
        low, *high = (query.maps[name] for name in self.in_features)
        cells = low.shape[-2:]
        if self.light is not None:
            low = self.light(low, _resize_shots(support.light_keys, cells))
        mixed = self.reduce_query([low, *high])  # D_q, (B, dim, h, w)
        if self.dense is not None:
            mixed = self.dense(mixed, _resize_shots(support.dense_keys, cells))
        maps = {}
        if self.prior_feature:
            maps["prior"] = support_activations(query.maps[self.prior_feature], support.prior)
        if query.agnostic is not None:
            maps["agnostic"] = query.agnostic
        prototype = support.prototype[:, :, None, None].expand(-1, -1, *cells)
        joined = torch.cat([mixed, prototype, *(resize(m, cells) for m in maps.values())], dim=1)
        logits = self.classifier(self.pyramid(joined))
        return Output(resize(logits, size), maps)


def _resize_shots(keys: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (B, K, c, h, w). Keys are affine in the features, so this resizes the features themselves."""
    return resize(keys.flatten(0, 1), size).unflatten(0, keys.shape[:2])
