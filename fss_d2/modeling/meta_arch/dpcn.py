"""DPCN: Dynamic Prototype Convolution Network."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from fss_d2.modeling.backbone import FeatureBackbone
from fss_d2.modeling.backbone.stages import stage_before, stage_parameters
from fss_d2.modeling.build import (
    build_base_knowledge,
    build_few_shot_backbone,
    dynamic_convolution_arguments,
)
from fss_d2.modeling.keys import config_keys
from fss_d2.modeling.layers import BaseKnowledge, mask_features, resize, support_activations

from .dpcn_head import DPCNHead
from .few_shot import FewShotSegmentor
from .support import SupportSet

__all__ = ["DPCN"]


@config_keys
def add_keys(cfg: CfgNode) -> None:
    """Add the keys of DPCN (Liu et al., CVPR 2022)."""
    cfg.MODEL.DPCN = CfgNode()
    cfg.MODEL.DPCN.IN_FEATURES = ("res4", "res3")  # middle features, as in PFENET
    cfg.MODEL.DPCN.SAM_FEATURE = "res5"  # compared by the support activation module
    cfg.MODEL.DPCN.DIM = 256
    cfg.MODEL.DPCN.DROPOUT = 0.5
    # Table 3: SAM, FFM, DCM. Without SAM its windows are ((1, 1),), which is PFENet's prior.
    cfg.MODEL.DPCN.SAM = True
    cfg.MODEL.DPCN.FFM = True
    cfg.MODEL.DPCN.DCM = True
    cfg.MODEL.DPCN.WINDOWS = ((5, 1), (3, 3), (1, 5))  # of SAM, (height, width)
    cfg.MODEL.DPCN.MASK_BEFORE_SAM = False  # also mask before the last stage, as PFENet's code does
    cfg.MODEL.DPCN.FFM_KERNEL = 1
    cfg.MODEL.DPCN.KERNEL_SIZE = 5  # S of the dynamic kernels (Table 4: 3, 5, 7, 9)
    cfg.MODEL.DPCN.KERNELS = ("vertical", "horizontal", "square")  # Sx1, 1xS, SxS (Table 5)
    # Table A1: "serial" (Eq. 6), "parallel", "serial_kernels" (Appendix B's words).
    cfg.MODEL.DPCN.KERNEL_GENERATION = "serial"
    cfg.MODEL.DPCN.ASPP_DILATIONS = (6, 12, 18)
    cfg.MODEL.DPCN.RETURN_WEIGHT = 1.0  # lambda of the query-to-support loss (Fig. A2)
    cfg.MODEL.DPCN.CKMM = False  # JC2A's class-agnostic map as one more activation map
    cfg.MODEL.DPCN.TRAIN_LAST_STAGE = True  # the stage of SAM_FEATURE learns, although the backbone is frozen
    cfg.MODEL.DPCN.LAST_STAGE_START = 0  # iteration from which it does


Features = dict[str, Tensor]
DEEP = "deep"  # among the features of images: what is compared for the activation maps


@META_ARCH_REGISTRY.register()
class DPCN(FewShotSegmentor):
    """The query is convolved with kernels made from the support's object (Liu, Bao et al., CVPR 2022).

    Training adds "loss_return": the query with its predicted mask is the support, each support in turn the
    query, all weights shared (Eq. 13). The predicted mask is hard and gives no gradient; an image goes
    through the reduction of the role that it plays.

    The backbone is frozen, but the stage of ``sam_feature`` learns from an iteration on; what trains the
    model keeps `iteration` up to date. Its batch norms stay as those of the whole backbone.

    There is no code by the authors: what the paper leaves open is settled in `DPCNHead`,
    `DynamicConvolution` and `support_activations`. K shots: activation maps and prototypes are averaged, the
    object's vectors joined, in the order of the supports, which therefore makes a difference.

    Example:
        >>> model = build_model(cfg)  # MODEL.META_ARCHITECTURE: DPCN
        >>> support = model.encode_support(images, masks)  # (1, K, 3, H, W), (1, K, H, W)
        >>> logits = model.segment(queries, support)  # any number of queries
    """

    permutation_invariant = False

    @configurable
    def __init__(
        self,
        *,
        backbone: FeatureBackbone,
        in_features: Sequence[str] = ("res4", "res3"),
        sam_feature: str = "res5",
        windows: Sequence[tuple[int, int]] = ((5, 1), (3, 3), (1, 5)),
        mask_before_sam: bool = False,
        train_last_stage: bool = False,
        last_stage_start: int = 0,
        return_weight: float = 1.0,
        head: Mapping[str, Any] | None = None,
        knowledge: BaseKnowledge | None = None,
        **base: Any,
    ) -> None:
        """
        Args:
            backbone: the feature extractor.
            in_features: middle features, the first gives the size.
            sam_feature: the feature compared for the activation maps; a stage where it learns.
            windows: of `support_activations`; ((1, 1),) for PFENet's prior mask.
            mask_before_sam: also mask the supports before the stage of ``sam_feature`` (PFENet's code).
            train_last_stage: that stage learns although the backbone is frozen.
            last_stage_start: iteration from which it does.
            return_weight: lambda, of the query-to-support loss; 0 leaves it out.
            head: arguments of `DPCNHead`, the channels, number of maps and knowledge apart.
            knowledge: JC2A's class-agnostic map as one more map (not in the paper).
            base: see `FewShotSegmentor`.

        Raises:
            ValueError: features or settings of the head that do not go together, or a backbone that cannot
                run the stage of ``sam_feature`` apart where that is needed.
            KeyError: the backbone lacks a feature.
        """
        super().__init__(backbone=backbone, align_corners=True, **base)
        self.in_features, self.sam_feature = tuple(in_features), sam_feature
        self.windows = [tuple(window) for window in windows]
        self.mask_before_sam = mask_before_sam
        self.train_last_stage = train_last_stage and self.freeze_backbone
        self.last_stage_start = last_stage_start
        self.return_weight = return_weight
        self.knowledge = knowledge
        # Run apart, the stage may get a masked input, or a gradient that the rest does not get.
        self.stage_apart = mask_before_sam or self.train_last_stage
        self.deep_feature = sam_feature
        if self.stage_apart:
            needed_by = "MODEL.DPCN.TRAIN_LAST_STAGE and MODEL.DPCN.MASK_BEFORE_SAM"
            self.deep_feature = stage_before(backbone, sam_feature, needed_by)
        known = () if knowledge is None else knowledge.in_features
        if self.train_last_stage:
            self._check_frozen("MODEL.DPCN.IN_FEATURES", self.in_features)
            self._check_frozen("MODEL.BASE_KNOWLEDGE.IN_FEATURES", known)
        backbone.select(list(dict.fromkeys([*self.in_features, self.deep_feature, *known])))
        channels = {name: spec.channels for name, spec in backbone.available.items()}
        self.head = DPCNHead(
            sum(channels[name] for name in self.in_features),
            len(self.windows),
            knowledge=knowledge is not None,
            **(head or {}),
        )
        if self.train_last_stage:
            for parameter in stage_parameters(backbone, sam_feature):
                parameter.requires_grad_(True)
            self.idle_parameters = last_stage_start > 0

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments from MODEL.DPCN, MODEL.BASE_KNOWLEDGE, and the backbone's keys."""
        c = cfg.MODEL.DPCN
        backbone = build_few_shot_backbone(cfg)
        return {
            **cls.base_arguments(cfg),
            "backbone": backbone,
            "in_features": c.IN_FEATURES,
            "sam_feature": c.SAM_FEATURE,
            "windows": c.WINDOWS if c.SAM else ((1, 1),),
            "mask_before_sam": c.MASK_BEFORE_SAM,
            "train_last_stage": c.TRAIN_LAST_STAGE,
            "last_stage_start": c.LAST_STAGE_START,
            "return_weight": c.RETURN_WEIGHT,
            "knowledge": build_base_knowledge(cfg, backbone) if c.CKMM else None,
            "head": {
                "dim": c.DIM,
                "dropout": c.DROPOUT,
                "filter_kernel": c.FFM_KERNEL if c.FFM else None,
                "dynamic": dynamic_convolution_arguments(cfg) if c.DCM else None,
                "dilations": c.ASPP_DILATIONS,
            },
        }

    def _check_frozen(self, key: str, names: Sequence[str]) -> None:
        """Find out that a feature of a config key is computed by the stage that learns, or behind it."""
        order = list(self.backbone.available)
        for name in names:
            if name in order and order.index(name) > order.index(self.deep_feature):
                raise ValueError(
                    f"{key} {name!r} changes with MODEL.DPCN.SAM_FEATURE {self.sam_feature!r}, which learns: "
                    "choose features before that stage, or set MODEL.DPCN.TRAIN_LAST_STAGE False"
                )

    def _features(self, images: Tensor) -> Features:
        """What roles of normalised images (N, 3, H, W) have in common: named maps (N, C, h, w)."""
        features = dict(self.extract(images))
        deep = features[self.deep_feature]
        if self.stage_apart and not self.mask_before_sam:
            deep = self._run_last_stage(deep)
        return features | {DEEP: deep}

    def _run_last_stage(self, x: Tensor) -> Tensor:
        """(N, C, h, w) before the stage to (N, C', h', w') after it."""
        late = self.train_last_stage and self.iteration >= self.last_stage_start
        learns = late or not self.freeze_backbone
        with torch.set_grad_enabled(torch.is_grad_enabled() and learns):
            return self.backbone.run_stage(self.sam_feature, x)

    def _as_support(self, features: Features, masks: Tensor) -> dict[str, Tensor]:
        """Features (B, K, C, h, w), masks (B, K, H, W): the head's tensors and the masked deep features."""
        encoded = self.head.encode([features[name].flatten(0, 1) for name in self.in_features], masks)
        deep = mask_features(features[DEEP], masks)
        if self.mask_before_sam:
            deep = self._run_last_stage(deep.flatten(0, 1)).unflatten(0, masks.shape[:2])
            deep = mask_features(deep, masks)
        return encoded | {DEEP: deep}

    def _segment_features(
        self, features: Features, support: Mapping[str, Tensor], size: Sequence[int]
    ) -> tuple[Tensor, dict[str, Any]]:
        """Features (B, C, h, w) of queries of a size: logits (B, 2, *size) and the maps on the way."""
        deep = features[DEEP]
        if self.mask_before_sam:
            deep = self._run_last_stage(deep)
        activations = support_activations(deep, support[DEEP], self.windows)
        agnostic = None if self.knowledge is None else self.knowledge(features)
        maps = [features[name] for name in self.in_features]
        logits, aux = self.head(maps, support, activations, agnostic)
        if agnostic is not None:
            aux["agnostic"] = agnostic
        return resize(logits, size, align_corners=self.align_corners), aux

    def _encode(self, images: Tensor, masks: Tensor) -> dict[str, Tensor]:
        features = {
            n: t.unflatten(0, images.shape[:2]) for n, t in self._features(images.flatten(0, 1)).items()
        }
        encoded = self._as_support(features, masks)
        if self.training and self.return_weight:  # the supports will be queries
            encoded |= {"masks": masks, **{f"query_{name}": t for name, t in features.items()}}
        return encoded

    def _decode(self, images: Tensor, support: SupportSet) -> tuple[Tensor, dict[str, Any]]:
        features = self._features(images)
        logits, aux = self._segment_features(features, support.tensors, images.shape[-2:])
        if self.training and self.return_weight:
            aux["return"] = (features, support.tensors)
        return logits, aux

    def _losses(self, logits: Tensor, aux: Mapping[str, Any], target: Tensor) -> dict[str, Tensor]:
        losses = super()._losses(logits, aux, target)
        if "return" in aux:
            losses["loss_return"] = self.return_weight * self._return_loss(logits, *aux["return"])
        return losses

    def _return_loss(self, logits: Tensor, query: Features, support: Mapping[str, Tensor]) -> Tensor:
        """Mean over the supports of the loss of segmenting each from the query and its predicted mask."""
        predicted = logits.detach().argmax(dim=1, keepdim=True)  # (B, 1, H, W)
        encoded = self._as_support({name: t[:, None] for name, t in query.items()}, predicted)
        losses = []
        for shot, target in enumerate(support["masks"].long().unbind(dim=1)):
            features = {name: support[f"query_{name}"][:, shot] for name in query}
            back, _ = self._segment_features(features, encoded, target.shape[-2:])
            losses.append(sum(super()._losses(back, {}, target).values()))
        return torch.stack(losses).mean()
