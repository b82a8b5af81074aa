"""JC2A: joint class-aware and class-agnostic alignment (Huang et al., 2022)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor
from torch.nn import functional as F

from fss_d2.modeling.backbone import FeatureBackbone
from fss_d2.modeling.build import build_base_knowledge, build_few_shot_backbone, feature_names
from fss_d2.modeling.keys import at_least, choose, config_keys, require, share
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
from fss_d2.modeling.layers.point_block_attention import ATTENTIONS, MERGES

from .contract import Encoding, Output
from .few_shot import FewShotSegmentor, Maps, SegmentorOptions

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


@dataclass(frozen=True)
class ShotEncoding(Encoding):
    """Of each support: prototype (B, K, C), and by "<kind>.<level>" what the attention keeps, (B, K, ...)."""

    prototypes: Tensor
    attended: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class QueryEncoding(Encoding):
    """Of each query."""

    pyramid: dict[str, Tensor]  # level -> (B, C, b, b) reduced features
    cells: Tensor  # (B, 1, h, w), read for its size only, that of the reduced features
    asked: dict[str, Tensor] = field(default_factory=dict)  # "<kind>.<level>" -> (B, b*b, C)
    agnostic: Tensor | None = None  # (B, 1, h, w) class-agnostic map


@META_ARCH_REGISTRY.register()
class JC2A(FewShotSegmentor):
    """PFENet's pyramid, guided by attention to the support and by a map of all objects (Huang et al., 2022).

    At each level of the pyramid the query's features are joined with the support's prototype, with what they
    are answered by the support's points and blocks (HPAM, `PointBlockAttention`), and with the
    class-agnostic map (CKMM, `BaseKnowledge`), instead of PFENet's prior (MIA, Eq. 14). The rest is
    `FeatureEnrichment`. One reduction serves query and supports. No stage behind the features runs.

    K supports are K one-shot passes whose probabilities are averaged, in training as well; what is the
    query's own is computed once.

    With CKMM the prototypes of the base classes must have been built: `fss_d2.engine.base_prototypes`.
    """

    own_fusion = "average"
    score_layer = "classify.3"

    @configurable
    def __init__(
        self,
        *,
        backbone: FeatureBackbone,
        in_features: Sequence[str] = ("res4", "res3"),
        dim: int = 256,
        dropout: float = 0.5,
        sides: Sequence[int] = (60, 30, 15, 8),
        # For `PointBlockAttention`, but dim and sides; None: none.
        attention: Mapping[str, Any] | None = None,
        knowledge: BaseKnowledge | None = None,  # gives the class-agnostic map; None leaves it out
        agnostic_merge: str = "concat",
        options: SegmentorOptions | None = None,  # corners are aligned in any case
    ) -> None:
        """See also the keys of MODEL.JC2A above.

        Raises ValueError for unknown kinds, no level, or numbers that do not go together; KeyError for a
        feature that the backbone lacks.
        """
        choose("agnostic_merge", agnostic_merge, MERGES)
        _check_cells("sides", sides)
        super().__init__(backbone, replace(options or SegmentorOptions(), align_corners=True))
        self.in_features, self.sides = tuple(in_features), tuple(sides)
        self.agnostic_merge, self.knowledge = agnostic_merge, knowledge
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
        _check_cells("MODEL.JC2A.BINS", c.BINS)
        for key in ("BLOCK_SIDES", "TOP_BLOCKS") if c.P2P or c.P2B else ():
            _check_cells(f"MODEL.JC2A.{key}", c[key])
            number = f"as many numbers as MODEL.JC2A.BINS {tuple(c.BINS)}"
            require(len(c[key]) == len(c.BINS), f"MODEL.JC2A.{key}", tuple(c[key]), number)
        attention = {
            "p2p": c.P2P,
            "p2b": c.P2B,
            "block_sides": c.BLOCK_SIDES,
            "kept_blocks": c.TOP_BLOCKS,
            "attention": choose("MODEL.JC2A.ATTENTION", c.ATTENTION, ATTENTIONS),
            "position_embedding": c.POSITION_EMBEDDING,
            "merge": choose("MODEL.JC2A.ATTENTION_MERGE", c.ATTENTION_MERGE, MERGES),
        }
        backbone = build_few_shot_backbone(cfg)
        aux_weight = at_least("MODEL.JC2A.AUX_WEIGHT", c.AUX_WEIGHT, 0)
        return {
            "backbone": backbone,
            "in_features": feature_names("MODEL.JC2A.IN_FEATURES", c.IN_FEATURES, backbone),
            "dim": at_least("MODEL.JC2A.DIM", c.DIM, 1),
            "dropout": share("MODEL.JC2A.DROPOUT", c.DROPOUT),
            "sides": c.BINS,
            "attention": attention if c.P2P or c.P2B else None,
            "knowledge": build_base_knowledge(cfg, backbone) if c.CKMM else None,
            "agnostic_merge": choose("MODEL.JC2A.AGNOSTIC_MERGE", c.AGNOSTIC_MERGE, MERGES),
            "options": replace(SegmentorOptions.from_config(cfg), aux_weight=aux_weight),
        }

    def _encode_support(self, features: Maps, masks: Tensor) -> ShotEncoding:
        shape = masks.shape[:2]
        reduced = self.reduce([features[name] for name in self.in_features])  # (B*K, C, h, w)
        weights = soft_mask(masks, reduced.shape[-2:])
        attended = {}
        for level, side in enumerate(self.sides if self.attention else ()):
            pooled = F.adaptive_avg_pool2d(reduced, side)
            mask = soft_mask(masks, (side, side)).flatten(0, 1)
            for kind, tensor in self.attention.encode(level, pooled, mask).items():
                attended[f"{kind}.{level}"] = tensor.unflatten(0, shape)
        return ShotEncoding(shot_prototypes(reduced.unflatten(0, shape), weights), attended)

    def _encode_query(self, features: Maps) -> QueryEncoding:
        reduced = self.reduce([features[name] for name in self.in_features])
        agnostic = None if self.knowledge is None else self.knowledge(features)
        pyramid = {str(j): F.adaptive_avg_pool2d(reduced, side) for j, side in enumerate(self.sides)}
        asked = {}
        for level, maps in pyramid.items() if self.attention else ():
            for kind, tokens in self.attention.queries(int(level), maps).items():
                asked[f"{kind}.{level}"] = tokens
        return QueryEncoding(pyramid, reduced[:, :1], asked, agnostic)

    def _match(self, query: QueryEncoding, support: ShotEncoding, size: tuple[int, int]) -> Output:
        shot = support.map(lambda t: t[:, 0])
        levels = [self._guide(level, query, shot) for level in query.pyramid]
        merged, inner = self.enrich(levels, query.cells.shape[-2:])
        maps = {} if query.agnostic is None else {"agnostic": query.agnostic}
        return Output(resize(self.classify(merged), size), maps, levels=inner)

    def _guide(self, level: str, query: QueryEncoding, shot: ShotEncoding) -> Tensor:
        """Query features (B, C, b, b) joined with all that guides them, (B, channels, b, b) (Eq. 14)."""
        features = query.pyramid[level]
        parts = [features, shot.prototypes[:, :, None, None].expand_as(features)]
        guides = []
        if self.attention is not None:
            guides.append(self.attention(_of_level(query.asked, level), _of_level(shot.attended, level)))
        if query.agnostic is not None:
            guides.append(resize(query.agnostic, features.shape[-2:]))
        if len(guides) == 2 and self.agnostic_merge != "concat":
            first, second = guides
            guides = [first + second if self.agnostic_merge == "add" else first * second]
        return torch.cat([*parts, *guides], dim=1)


def _check_cells(name: str, numbers: Sequence[int]) -> None:
    fits = bool(numbers) and min(numbers) > 0
    require(fits, name, tuple(numbers), "numbers of cells above 0, at least one")


def _of_level(tensors: Maps, level: str) -> dict[str, Tensor]:
    """Those named "<kind>.<level>", by kind."""
    named = ((name.rpartition("."), tensor) for name, tensor in tensors.items())
    return {kind: tensor for (kind, _, of), tensor in named if of == level}
