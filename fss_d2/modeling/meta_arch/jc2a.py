"""JC2A: joint class-aware and class-agnostic alignment."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from torch import Tensor
from torch.nn import functional as F

from fss_d2.modeling.build import build_base_knowledge, build_few_shot_backbone
from fss_d2.modeling.keys import config_keys
from fss_d2.modeling.kshot import mean_log_probability
from fss_d2.modeling.layers import (
    BaseKnowledge,
    FeatureEnrichment,
    FeatureReduction,
    PointBlockAttention,
    classifier,
    resize,
    shot_prototypes,
    soft_mask,
)

from .few_shot import FewShotSegmentor
from .support import SupportSet

__all__ = ["JC2A"]


@config_keys
def add_keys(cfg: CfgNode) -> None:
    """Add the keys of JC2A (Huang et al., 2022). CKMM's own settings are MODEL.BASE_KNOWLEDGE."""
    cfg.MODEL.JC2A = CfgNode()
    cfg.MODEL.JC2A.IN_FEATURES = ("res4", "res3")  # middle features, as in PFENET
    cfg.MODEL.JC2A.DIM = 256
    cfg.MODEL.JC2A.DROPOUT = 0.5
    # Sides of the pyramid's levels, in cells; as learned position embeddings have them, no fractions.
    cfg.MODEL.JC2A.BINS = (60, 30, 15, 8)
    cfg.MODEL.JC2A.P2P = True  # Table 3: point-to-point attention (P2P and P2B together are HPAM)
    cfg.MODEL.JC2A.P2B = True  # Table 3: point-to-block attention
    cfg.MODEL.JC2A.CKMM = True  # Table 3: the class-agnostic map
    cfg.MODEL.JC2A.BLOCK_SIDES = (3, 3, 3, 2)  # m of P2B's blocks, one a level, in cells
    cfg.MODEL.JC2A.TOP_BLOCKS = (60, 20, 5, 3)  # k blocks that show most of the object, one a level
    # Table 4: "linear" (ours), "normalized_linear" (NLA), "softmax" (NA), "cosine".
    cfg.MODEL.JC2A.ATTENTION = "linear"
    cfg.MODEL.JC2A.POSITION_EMBEDDING = True  # of point-to-block attention
    cfg.MODEL.JC2A.ATTENTION_MERGE = "add"  # of P2P and P2B (Table 6): "multiply", "concat"
    # Of the attention's answer and the class-agnostic map (Table 6): "concat", "add", "multiply".
    cfg.MODEL.JC2A.AGNOSTIC_MERGE = "concat"
    cfg.MODEL.JC2A.AUX_WEIGHT = 1.0  # of the mean loss of the pyramid's levels


AGNOSTIC_MERGES = ("concat", "add", "multiply")


@META_ARCH_REGISTRY.register()
class JC2A(FewShotSegmentor):
    """PFENet's pyramid, guided by attention to the support and by a map of all objects (Huang et al., 2022).

    At each level of the pyramid the query's features are joined with the support's prototype, with what
    they are answered by the support's points and blocks (HPAM, `PointBlockAttention`), and with the
    class-agnostic map (CKMM, `BaseKnowledge`), instead of PFENet's prior (MIA, Eq. 14). The rest is
    `FeatureEnrichment`. One reduction serves query and supports. No stage behind the features runs.

    K supports are K one-shot passes whose probabilities are averaged, in training as well; what is
    the query's own is computed once.

    With CKMM the prototypes of the base classes must have been built: `fss_d2.engine.base_prototypes`.

    Example:
        >>> model = build_model(cfg)  # MODEL.META_ARCHITECTURE: JC2A, MODEL.WEIGHTS: a trained checkpoint
        >>> support = model.encode_support(images, masks)  # (1, K, 3, H, W), (1, K, H, W)
        >>> logits = model.segment(queries, support)  # any number of queries
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        in_features: Sequence[str] = ("res4", "res3"),
        dim: int = 256,
        dropout: float = 0.5,
        sides: Sequence[int] = (60, 30, 15, 8),
        attention: Mapping[str, Any] | None = None,
        knowledge: BaseKnowledge | None = None,
        agnostic_merge: str = "concat",
        **base: Any,
    ) -> None:
        """
        Args:
            backbone: the feature extractor.
            in_features: middle features, joined in this order at the first one's size.
            dim: channels C that they are reduced to.
            dropout: of the reduced features, channel by channel.
            sides: of the pyramid's levels, in cells.
            attention: arguments of `PointBlockAttention`, `dim` and `sides` apart; None leaves it out.
            knowledge: gives the class-agnostic map; None leaves it out.
            agnostic_merge: of the attention's answer and the map (Table 6): "concat", "add" or "multiply".
            base: see `FewShotSegmentor`.

        Raises:
            ValueError: unknown kinds, no level, or numbers that do not go together.
            KeyError: the backbone lacks an output.
        """
        if agnostic_merge not in AGNOSTIC_MERGES:
            raise ValueError(
                f"unknown MODEL.JC2A.AGNOSTIC_MERGE {agnostic_merge!r}: choose from "
                f"{', '.join(AGNOSTIC_MERGES)}"
            )
        if not sides or min(sides) < 1 or not in_features:
            raise ValueError(
                f"MODEL.JC2A.BINS {tuple(sides)} must be positive numbers of cells, one at least, and "
                f"MODEL.JC2A.IN_FEATURES {tuple(in_features)} needs a name"
            )
        super().__init__(backbone=backbone, align_corners=True, **base)
        self.in_features = tuple(in_features)
        self.sides = tuple(sides)
        self.agnostic_merge = agnostic_merge
        self.knowledge = knowledge
        backbone.select([*self.in_features, *(knowledge.in_features if knowledge else ())])
        channels = sum(backbone.available[name].channels for name in self.in_features)
        self.reduce = FeatureReduction(channels, dim, dropout)
        self.attention = PointBlockAttention(dim, sides, **attention) if attention is not None else None
        answered = self.attention.out_channels if self.attention else 0
        joined = knowledge is not None and (agnostic_merge == "concat" or not answered)
        self.enrich = FeatureEnrichment(2 * dim + answered + joined, dim, len(self.sides))
        self.classify = classifier(dim)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments from MODEL.JC2A, MODEL.BASE_KNOWLEDGE, and the backbone's keys."""
        c = cfg.MODEL.JC2A
        backbone = build_few_shot_backbone(cfg)
        attention = {
            "p2p": c.P2P,
            "p2b": c.P2B,
            "block_sides": c.BLOCK_SIDES,
            "kept_blocks": c.TOP_BLOCKS,
            "attention": c.ATTENTION,
            "position_embedding": c.POSITION_EMBEDDING,
            "merge": c.ATTENTION_MERGE,
        }
        return {
            **cls.base_arguments(cfg),
            "backbone": backbone,
            "in_features": c.IN_FEATURES,
            "dim": c.DIM,
            "dropout": c.DROPOUT,
            "sides": c.BINS,
            "attention": attention if c.P2P or c.P2B else None,
            "knowledge": build_base_knowledge(cfg, backbone) if c.CKMM else None,
            "agnostic_merge": c.AGNOSTIC_MERGE,
            "aux_weight": c.AUX_WEIGHT,
        }

    def _encode(self, images: Tensor, masks: Tensor) -> dict[str, Tensor]:
        shape = images.shape[:2]
        features = self.extract(images.flatten(0, 1))
        reduced = self.reduce([features[name] for name in self.in_features])  # (B*K, C, h, w)
        weights = soft_mask(masks, reduced.shape[-2:])
        tensors = {"prototypes": shot_prototypes(reduced.unflatten(0, shape), weights)}  # (B, K, C)
        for level, side in enumerate(self.sides if self.attention else ()):
            pooled = F.adaptive_avg_pool2d(reduced, side)
            mask = soft_mask(masks, (side, side)).flatten(0, 1)
            for name, tensor in self.attention.encode(level, pooled, mask).items():
                tensors[f"{name}.{level}"] = tensor.unflatten(0, shape)
        return tensors

    def _decode(self, images: Tensor, support: SupportSet) -> tuple[Tensor, dict[str, Tensor]]:
        features = self.extract(images)
        reduced = self.reduce([features[name] for name in self.in_features])
        agnostic = None if self.knowledge is None else self.knowledge(features)
        pyramid = [F.adaptive_avg_pool2d(reduced, side) for side in self.sides]
        queries = [self.attention.queries(j, x) for j, x in enumerate(pyramid)] if self.attention else []
        shots: list[list[Tensor]] = []  # K times the final logits and those of each level
        for s in range(support.shots):
            shot = {name: tensor[:, s] for name, tensor in support.tensors.items()}
            levels = [self._guide(j, x, queries, agnostic, shot) for j, x in enumerate(pyramid)]
            merged, logits = self.enrich(levels, reduced.shape[-2:])
            shots.append([resize(self.classify(merged), images.shape[-2:]), *logits])
        logits, *inner = (
            mean_log_probability([x.float() for x in each]) if len(each) > 1 else each[0]
            for each in zip(*shots, strict=True)
        )
        aux = {f"level{j}": x for j, x in enumerate(inner)}
        return logits, aux if agnostic is None else aux | {"agnostic": agnostic}

    def _guide(
        self,
        level: int,
        query: Tensor,
        queries: Sequence[Mapping[str, Tensor]],
        agnostic: Tensor | None,
        shot: Mapping[str, Tensor],
    ) -> Tensor:
        """Query features (B, C, b, b) joined with all that guides them, (B, channels, b, b) (Eq. 14)."""
        parts = [query, shot["prototypes"][:, :, None, None].expand_as(query)]
        guides = []
        if self.attention is not None:
            guides.append(self.attention(queries[level], {n: shot[f"{n}.{level}"] for n in queries[level]}))
        if agnostic is not None:
            guides.append(resize(agnostic, query.shape[-2:]))
        if len(guides) == 2 and self.agnostic_merge != "concat":
            first, second = guides
            guides = [first + second if self.agnostic_merge == "add" else first * second]
        return torch.cat([*parts, *guides], dim=1)
