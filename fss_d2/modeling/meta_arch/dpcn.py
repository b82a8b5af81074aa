"""DPCN: Dynamic Prototype Convolution Network (Liu, Bao et al., CVPR 2022)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ASPP
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from fss_d2.modeling.backbone import FeatureBackbone
from fss_d2.modeling.backbone.base import stage_before, stage_parameters
from fss_d2.modeling.build import (
    build_base_knowledge,
    build_few_shot_backbone,
    dynamic_convolution_arguments,
    feature_names,
)
from fss_d2.modeling.keys import at_least, config_keys, require, share
from fss_d2.modeling.layers import (
    BaseKnowledge,
    DynamicConvolution,
    FeatureReduction,
    ResidualPair,
    classifier,
    mask_features,
    resize,
    shot_prototypes,
    soft_mask,
    support_activations,
)

from .contract import Encoding, Output, Target
from .few_shot import FewShotSegmentor, Maps, SegmentorOptions

__all__ = ["DPCN", "DPCNHead", "FeatureFilter"]


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
    # Train the stage of SAM_FEATURE, from this share of the iterations on, although the backbone is frozen.
    cfg.MODEL.DPCN.TRAIN_LAST_STAGE = True
    cfg.MODEL.DPCN.LAST_STAGE_START = 0.0


@dataclass(frozen=True)
class ShotEncoding(Encoding):
    """Of each support."""

    features: Tensor  # (B, K, C, h, w) reduced middle features
    weights: Tensor  # (B, K, h, w) soft masks
    deep: Tensor  # (B, K, C', h', w') features compared for the activation maps, zero outside the object
    masks: Tensor | None = None  # (B, K, H, W); in training with a return loss: the supports are queries
    as_query: dict[str, Tensor] = field(default_factory=dict)  # with masks: the `QueryEncoding`


@dataclass(frozen=True)
class JoinedSupports(Encoding):
    """Of each episode."""

    prototype: Tensor  # (B, C)
    deep: Tensor  # (B, K, C', h', w')
    foreground: Tensor | None = None  # (B, P, C), see `DynamicConvolution.pool`; None without it
    masks: Tensor | None = None  # this and the next as in `ShotEncoding`
    as_query: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class QueryEncoding(Encoding):
    """Of each image: backbone maps by name, and the features compared, (B, C, h, w) each."""

    maps: dict[str, Tensor]
    deep: Tensor


@dataclass(frozen=True)
class DPCNOutput(Output):
    """With the encoded query and supports, for the return loss; None without one."""

    query: QueryEncoding | None = None
    support: JoinedSupports | None = None


class FeatureFilter(nn.Module):
    """Refines the pseudo mask and weights the query's features with it (FFM; DPCN, Sec. 3.4)."""

    def __init__(self, dim: int, kernel: int = 1) -> None:
        """For features of ``dim`` channels; ``kernel`` is odd, the paper gives none."""
        require(kernel % 2 == 1, "filter_kernel", kernel, "odd")
        super().__init__()
        self.score = nn.Conv2d(dim, 1, kernel, padding=kernel // 2)

    def forward(self, query: Tensor, mask: Tensor, prototype: Tensor) -> tuple[Tensor, Tensor]:
        """Filter features (B, C, h, w) with a mask (B, 1, h, w) and a prototype (B, C, 1, 1) (Eq. 3, 4).

        Returns the filtered features (B, C, h, w) and the refined mask (B, 1, h, w) in (0, 1).
        """
        refined = self.score(query * mask + prototype).sigmoid()
        return query * refined + query, refined


class DPCNHead(nn.Module):
    """From middle features and activation maps to scores (DPCN, Sec. 3.4 and 3.5).

    Supports and query have a reduction of their own each (as PFENet). The decoder's inside is not in the
    paper: 1x1 convolution, residual pair, ASPP without norms or dropout, PFENet's classifier.
    """

    def __init__(
        self,
        in_channels: int,  # of all middle features together
        num_maps: int,  # activation maps
        *,
        dim: int = 256,
        dropout: float = 0.5,
        filter_kernel: int | None = 1,  # of `FeatureFilter`; None for no filter (Table 3)
        dynamic: Mapping[str, Any] | None = None,  # for `DynamicConvolution`; None for none (Table 3)
        dilations: Sequence[int] = (6, 12, 18),  # of the three dilated branches of the ASPP
        knowledge: bool = False,  # one more map comes in, JC2A's class-agnostic one
    ) -> None:
        """See also the keys of MODEL.DPCN above. Raises ValueError for settings that do not fit."""
        require(len(dilations) == 3, "dilations", tuple(dilations), "three numbers")
        super().__init__()
        self.down_query = FeatureReduction(in_channels, dim, dropout)
        self.down_support = FeatureReduction(in_channels, dim, dropout)
        self.filter = None if filter_kernel is None else FeatureFilter(dim, filter_kernel)
        self.dynamic = None if dynamic is None else DynamicConvolution(dim, **dynamic)
        blocks = 1 if self.dynamic is None else len(self.dynamic.generators)
        # Unfiltered, the pseudo mask takes the refined one's place; as the mean of one map it is that map.
        self.gives_mask = self.filter is not None or num_maps > 1
        maps = num_maps + knowledge + self.gives_mask
        self.decoder = nn.Sequential(
            nn.Conv2d((blocks + 1) * dim + maps, dim, 1, bias=False),
            nn.ReLU(),
            ResidualPair(dim),
            ASPP(dim, dim, list(dilations), norm="", activation=F.relu),
            classifier(dim),
        )

    def encode(self, maps: Sequence[Tensor], masks: Tensor) -> tuple[Tensor, Tensor]:
        """Reduce the supports of B episodes to features (B, K, C, h, w) and soft masks (B, K, h, w).

        ``maps`` are middle features (B*K, C_i, h_i, w_i), the first gives the size; ``masks`` are
        (B, K, H, W) in {0, 1, 255}.
        """
        features = self.down_support(maps).unflatten(0, masks.shape[:2])
        return features, soft_mask(masks, features.shape[-2:])

    def join(self, features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor | None]:
        """Prototype (B, C), mean over the shots (Eq. 2), and the object's vectors, of what `encode` gave.

        The vectors are those of `DynamicConvolution.pool`; None without dynamic convolution.
        """
        prototype = shot_prototypes(features, weights).mean(dim=1)
        return prototype, None if self.dynamic is None else self.dynamic.encode(features, weights)

    def forward(
        self,
        maps: Sequence[Tensor],
        support: JoinedSupports,
        activations: Tensor,
        knowledge: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Score the queries.

        Args:
            maps: middle features (B, C_i, h_i, w_i), the first gives the size (h, w).
            support: its prototype and the object's vectors are read.
            activations: (B, num_maps, h', w') in [0, 1].
            knowledge: (B, 1, h'', w''), see ``knowledge`` of the class.

        Returns:
            (B, 2, h, w) logits, and the maps on the way, (B, n, h, w) each: "activations", "pseudo_mask"
            (their mean) and, with the filter, "refined_mask".
        """
        query = self.down_query(maps)
        prototype = support.prototype[:, :, None, None]
        activations = resize(activations, query.shape[-2:])
        mask = activations.mean(dim=1, keepdim=True)
        aux = {"activations": activations, "pseudo_mask": mask}
        if self.filter is not None:
            query, mask = self.filter(query, mask, prototype)
            aux["refined_mask"] = mask
        blocks = [query] if self.dynamic is None else self.dynamic(query, support.foreground)
        parts = [*blocks, prototype.expand_as(query), activations]  # Eq. 9, in its order
        if knowledge is not None:
            parts.append(resize(knowledge, query.shape[-2:]))
        if self.gives_mask:
            parts.append(mask)
        return self.decoder(torch.cat(parts, dim=1)), aux


@META_ARCH_REGISTRY.register()
class DPCN(FewShotSegmentor):
    """Convolve the query with kernels that are made from the object of the supports.

    Training adds "loss_return": the query with its predicted mask is the support and each support in turn
    the query; all weights are shared (Eq. 13). The predicted mask is hard and gives no gradient. An image
    goes through the reduction of the role that it has at the time.

    The backbone is frozen, but the stage of ``sam_feature`` can be trained from an iteration on; whoever
    trains the model keeps `iteration` up to date. The stage's batch norms keep their statistics.

    The authors published no code. `DPCNHead`, `DynamicConvolution` and `support_activations` state how they
    fill what the paper leaves open. Of K supports, the activation maps and the prototypes are averaged, and
    the object's vectors are joined in the order of the supports, which therefore makes a difference.
    """

    permutation_invariant = False
    score_layer = "head.decoder.4.3"

    @configurable
    def __init__(
        self,
        *,
        backbone: FeatureBackbone,
        in_features: Sequence[str] = ("res4", "res3"),
        sam_feature: str = "res5",
        windows: Sequence[tuple[int, int]] = ((5, 1), (3, 3), (1, 5)),  # ((1, 1),): PFENet's prior
        mask_before_sam: bool = False,
        train_last_stage: bool = False,
        last_stage_start: int = 0,
        return_weight: float = 1.0,  # 0 leaves the query-to-support loss out
        head: Mapping[str, Any] | None = None,  # for `DPCNHead`, but channels, number of maps and knowledge
        knowledge: BaseKnowledge | None = None,  # one more map (not in the paper)
        options: SegmentorOptions | None = None,  # corners are aligned in any case
    ) -> None:
        """See also the keys of MODEL.DPCN above.

        Raises ValueError for features or settings of the head that do not go together, or a backbone that
        cannot run the stage of ``sam_feature`` apart where that is needed; KeyError for a feature that it
        lacks.
        """
        super().__init__(backbone, replace(options or SegmentorOptions(), align_corners=True))
        self.in_features, self.sam_feature = tuple(in_features), sam_feature
        self.windows = [tuple(window) for window in windows]
        self.mask_before_sam, self.last_stage_start = mask_before_sam, last_stage_start
        self.train_last_stage = train_last_stage and self.freeze_backbone
        self.return_weight, self.knowledge = return_weight, knowledge
        # Run apart, the stage may get a masked input, or a gradient that the rest does not get.
        self.stage_apart = mask_before_sam or self.train_last_stage
        self.deep_feature = sam_feature
        if self.stage_apart:
            self.deep_feature = stage_before(backbone, sam_feature, "train_last_stage and mask_before_sam")
        known = () if knowledge is None else knowledge.in_features
        if self.train_last_stage:
            _check_frozen(backbone, sam_feature, {"in_features": self.in_features, "knowledge": known})
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
        start = share("MODEL.DPCN.LAST_STAGE_START", c.LAST_STAGE_START)
        backbone = build_few_shot_backbone(cfg)
        knowledge = build_base_knowledge(cfg, backbone) if c.CKMM else None
        names = feature_names("MODEL.DPCN.IN_FEATURES", c.IN_FEATURES, backbone)
        feature_names("MODEL.DPCN.SAM_FEATURE", [c.SAM_FEATURE], backbone)
        if c.MASK_BEFORE_SAM or (c.TRAIN_LAST_STAGE and cfg.MODEL.BACKBONE.FREEZE):
            keys = "MODEL.DPCN.TRAIN_LAST_STAGE and MODEL.DPCN.MASK_BEFORE_SAM"
            stage_before(backbone, c.SAM_FEATURE, keys)
        if c.TRAIN_LAST_STAGE and cfg.MODEL.BACKBONE.FREEZE:
            known = () if knowledge is None else knowledge.in_features
            read = {"MODEL.DPCN.IN_FEATURES": names, "MODEL.BASE_KNOWLEDGE.IN_FEATURES": known}
            settings = ("MODEL.DPCN.SAM_FEATURE", "MODEL.DPCN.TRAIN_LAST_STAGE")
            _check_frozen(backbone, c.SAM_FEATURE, read, settings)
        return {
            "backbone": backbone,
            "in_features": names,
            "sam_feature": c.SAM_FEATURE,
            "windows": _windows(c.WINDOWS) if c.SAM else ((1, 1),),
            "mask_before_sam": c.MASK_BEFORE_SAM,
            "train_last_stage": c.TRAIN_LAST_STAGE,
            "last_stage_start": round(start * cfg.SOLVER.MAX_ITER),
            "return_weight": at_least("MODEL.DPCN.RETURN_WEIGHT", c.RETURN_WEIGHT, 0),
            "knowledge": knowledge,
            "head": _head_arguments(cfg),
            "options": SegmentorOptions.from_config(cfg),
        }

    def _image(self, features: Maps) -> QueryEncoding:
        """Maps (N, C, h, w) of `extract`, and those that are compared, of an image that is not masked."""
        deep = features[self.deep_feature]
        return QueryEncoding(dict(features), self._run_last_stage(deep) if self.stage_apart else deep)

    def _run_last_stage(self, x: Tensor) -> Tensor:
        """(N, C, h, w) before the stage to (N, C', h', w') after it."""
        late = self.train_last_stage and self.iteration >= self.last_stage_start
        trains = late or not self.freeze_backbone
        with torch.set_grad_enabled(torch.is_grad_enabled() and trains):
            return self.backbone.run_stage(self.sam_feature, x)

    def _as_support(self, maps: Maps, deep: Tensor | None, masks: Tensor) -> ShotEncoding:
        """Maps (B*K, C, h, w), masks (B, K, H, W); ``deep`` are the compared maps where masks come later."""
        features, weights = self.head.encode([maps[name] for name in self.in_features], masks)
        if deep is None:
            raw = mask_features(maps[self.deep_feature].unflatten(0, masks.shape[:2]), masks)
            deep = self._run_last_stage(raw.flatten(0, 1))
        return ShotEncoding(features, weights, mask_features(deep.unflatten(0, masks.shape[:2]), masks))

    def _encode_support(self, features: Maps, masks: Tensor) -> ShotEncoding:
        returns = self.training and self.return_weight > 0
        image = self._image(features) if returns or not self.mask_before_sam else None
        deep = None if self.mask_before_sam else image.deep
        encoded = self._as_support(features, deep, masks)
        if not returns:
            return encoded
        as_query = image.map(lambda t: t.unflatten(0, masks.shape[:2])).flat()
        return replace(encoded, masks=masks, as_query=as_query)

    def _join(self, encoded: ShotEncoding) -> JoinedSupports:
        prototype, foreground = self.head.join(encoded.features, encoded.weights)
        return JoinedSupports(prototype, encoded.deep, foreground, encoded.masks, encoded.as_query)

    def _encode_query(self, features: Maps) -> QueryEncoding:
        return self._image(features)

    def _match(self, query: QueryEncoding, support: JoinedSupports, size: tuple[int, int]) -> DPCNOutput:
        activations = support_activations(query.deep, support.deep, self.windows)
        agnostic = None if self.knowledge is None else self.knowledge(query.maps)
        middle = [query.maps[name] for name in self.in_features]
        logits, maps = self.head(middle, support, activations, agnostic)
        if agnostic is not None:
            maps["agnostic"] = agnostic
        logits = resize(logits, size, align_corners=self.align_corners)
        if self.training and self.return_weight:
            return DPCNOutput(logits, maps, query=query, support=support)
        return DPCNOutput(logits, maps)

    def losses(self, output: DPCNOutput, target: Target) -> dict[str, Tensor]:
        """Those of the base class and "loss_return"; with `negatives` only queries with the object return."""
        losses = super().losses(output, target)
        if output.query is not None and output.support is not None:
            masks = output.support.masks.long()  # (B, K, H, W)
            if self.negatives:
                masks = masks.masked_fill(~target.shows_object[:, None, None, None], 255)
            back = self._return_loss(output.logits, output.query, output.support, masks)
            losses["loss_return"] = self.return_weight * back
        return losses

    def _return_loss(
        self, logits: Tensor, query: QueryEncoding, support: JoinedSupports, masks: Tensor
    ) -> Tensor:
        """Mean over the supports of the loss of segmenting each from the query and its predicted mask.

        ``masks`` (B, K, H, W) are the targets.
        """
        predicted = logits.detach().argmax(dim=1, keepdim=True)  # (B, 1, H, W)
        deep = None if self.mask_before_sam else query.deep
        joined = self._join(self._as_support(query.maps, deep, predicted))
        losses = []
        for shot, mask in enumerate(masks.unbind(dim=1)):
            as_query = QueryEncoding.from_flat({n: t[:, shot] for n, t in support.as_query.items()})
            back = self._match(as_query, joined, mask.shape[-2:])
            losses.append(sum(super().losses(Output(back.logits), Target(mask)).values()))
        return torch.stack(losses).mean()


def _windows(windows: Sequence[Sequence[int]]) -> tuple[tuple[int, int], ...]:
    """MODEL.DPCN.WINDOWS, checked."""
    fits = bool(windows) and all(
        len(window) == 2 and all(side > 0 and side % 2 == 1 for side in window) for window in windows
    )
    require(fits, "MODEL.DPCN.WINDOWS", windows, "pairs (height, width) of odd numbers, at least one pair")
    return tuple((height, width) for height, width in windows)


def _head_arguments(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of `DPCNHead` from MODEL.DPCN, all but the channels, the number of maps and knowledge."""
    c = cfg.MODEL.DPCN
    kernel, dilations = c.FFM_KERNEL, tuple(c.ASPP_DILATIONS)
    require(not c.FFM or (kernel > 0 and kernel % 2 == 1), "MODEL.DPCN.FFM_KERNEL", kernel, "odd")
    fits = len(dilations) == 3 and min(dilations) > 0
    require(fits, "MODEL.DPCN.ASPP_DILATIONS", dilations, "three numbers above 0")
    return {
        "dim": at_least("MODEL.DPCN.DIM", c.DIM, 1),
        "dropout": share("MODEL.DPCN.DROPOUT", c.DROPOUT),
        "filter_kernel": kernel if c.FFM else None,
        "dynamic": dynamic_convolution_arguments(cfg) if c.DCM else None,
        "dilations": dilations,
    }


def _check_frozen(
    backbone: FeatureBackbone,
    stage: str,
    read: Mapping[str, Sequence[str]],
    settings: tuple[str, str] = ("sam_feature", "train_last_stage"),
) -> None:
    """Refuse features that the trained stage, or one behind it, computes.

    ``read`` has the features that each setting lists; ``settings`` choose the stage and train it.
    """
    order = list(backbone.available)
    first = order.index(stage_before(backbone, stage)) + 1
    for setting, names in read.items():
        for name in names:
            if name in order[first:]:
                raise ValueError(
                    f"{setting} {name!r} changes with {settings[0]} {stage!r}, which is trained: choose "
                    f"features before that stage, or set {settings[1]} False"
                )
