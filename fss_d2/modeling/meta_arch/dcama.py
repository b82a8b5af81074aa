"""DCAMA: Dense Cross-Query-and-Support Attention Weighted Mask Aggregation."""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from torch import Tensor

from fss_d2.modeling.build import build_base_knowledge, build_few_shot_backbone
from fss_d2.modeling.keys import config_keys
from fss_d2.modeling.kshot import FUSIONS, guidance_weights
from fss_d2.modeling.layers import BaseKnowledge

from .dcama_head import DCAMAHead
from .few_shot import FewShotSegmentor
from .support import SupportSet

__all__ = ["DCAMA"]


@config_keys
def add_keys(cfg: CfgNode) -> None:
    """Keys of DCAMA."""
    cfg.MODEL.DCAMA = CfgNode()
    cfg.MODEL.DCAMA.ATTENTION_LEVELS = ("res3", "res4", "res5")  # Table S4; fine to coarse
    cfg.MODEL.DCAMA.SKIP_LEVELS = ("res2", "res3")  # Table S3
    cfg.MODEL.DCAMA.SKIP_SUPPORT = True  # Table S5 (a): also skip-connect the support features
    cfg.MODEL.DCAMA.SUPPORT_BACKGROUND = True  # Table 3: False zeroes the support's background
    cfg.MODEL.DCAMA.REGION_PIXELS = 0  # Table S5 (b): pixels of each region kept; 0 keeps all
    # Aggregate each layer also over the mean object and the mean background token (not in the paper).
    cfg.MODEL.DCAMA.REGION_MEANS = False
    # Table 4: "one_pass", "vote", "average", "normalized_vote" (HSNet), "cross_guided" (SCL).
    cfg.MODEL.DCAMA.KSHOT = "one_pass"
    cfg.MODEL.DCAMA.NUM_HEADS = 8
    # "linear": learned query and key projections; "cosine": none, unit vectors over a temperature.
    cfg.MODEL.DCAMA.PROJECTION = "linear"
    cfg.MODEL.DCAMA.TEMPERATURE = 0.1  # of PROJECTION "cosine"
    cfg.MODEL.DCAMA.POSITION_ENCODING = True
    cfg.MODEL.DCAMA.DROPOUT = 0.5  # on tokens and attention weights (reference code, not the paper)
    # Of the convolutions on the aggregated masks, and of the mixer blocks.
    cfg.MODEL.DCAMA.WIDTHS = (16, 64, 128)
    cfg.MODEL.DCAMA.MIXER_WIDTHS = (128, 64, 16)
    cfg.MODEL.DCAMA.FUSED_ATTENTION = True  # False writes the attention maps out
    # True: pixels marked 255 count as background in the loss (reference code); False: left out.
    cfg.MODEL.DCAMA.IGNORE_AS_BACKGROUND = True
    # JC2A's class-agnostic map beside the aggregated masks (not in the paper; MODEL.BASE_KNOWLEDGE).
    cfg.MODEL.DCAMA.CKMM = False


STRATEGIES = ("one_pass", *FUSIONS)
AGNOSTIC = "agnostic"  # the class-agnostic map among the features


@META_ARCH_REGISTRY.register()
class DCAMA(FewShotSegmentor):
    """Every query pixel takes the attention-weighted mean of the support mask (Shi et al., ECCV 2022).

    Where the reference code adds to the paper or differs from it, a setting selects; the defaults are the
    reference's, which gave the published numbers: features before a ResNet block's last ReLU (a backbone
    setting), dropout 0.5 on tokens and attention weights, support pixels marked 255 taken as background,
    target pixels marked 255 as well (``ignore_as_background``). Unlike there, several episodes with several
    supports each may share a batch, and images need be neither square nor a multiple of 8.

    Example:
        >>> model = build_model(cfg)  # MODEL.META_ARCHITECTURE: DCAMA
        >>> support = model.encode_support(images, masks)  # (1, K, 3, H, W), (1, K, H, W)
        >>> logits = model.segment(queries, support)  # any number of queries
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        attention_levels: Sequence[str] = ("res3", "res4", "res5"),
        skip_levels: Sequence[str] = ("res2", "res3"),
        kshot: str = "one_pass",
        head: dict[str, Any] | None = None,
        knowledge: BaseKnowledge | None = None,
        ignore_as_background: bool = True,
        **base: Any,
    ) -> None:
        """
        Args:
            backbone: its blocks are `FeatureBackbone.blocks(level)`.
            attention_levels: levels whose blocks are all cross-attended (Table S4), fine to coarse.
            skip_levels: levels whose last block is joined to the masks (Table S3), fine to coarse.
            kshot: "one_pass", or one of `FUSIONS`, at inference, of K one-shot predictions (Table 4).
            head: further arguments of `DCAMAHead`.
            knowledge: its class-agnostic map is joined to the mixer's input (CKMM of JC2A; not in the paper).
            ignore_as_background: target pixels marked 255 count as background in the loss.
            base: see `FewShotSegmentor`.

        Raises:
            ValueError: unknown strategy.
            KeyError: the backbone lacks a level.
        """
        if kshot not in STRATEGIES:
            raise ValueError(f"unknown MODEL.DCAMA.KSHOT {kshot!r}: choose from {', '.join(STRATEGIES)}")
        super().__init__(
            backbone=backbone, ignore_as_background=ignore_as_background, align_corners=True, **base
        )
        self.kshot = kshot
        blocks = {level: backbone.blocks(level) for level in attention_levels}
        skips = [backbone.blocks(level)[-1] for level in skip_levels]
        channels = {name: spec.channels for name, spec in backbone.available.items()}
        self.head = DCAMAHead(
            {level: {name: channels[name] for name in names} for level, names in blocks.items()},
            {name: channels[name] for name in skips},
            extras={} if knowledge is None else {AGNOSTIC: 1},
            **(head or {}),
        )
        self.knowledge = knowledge
        names = [name for level in blocks.values() for name in level]
        known = () if knowledge is None else knowledge.in_features
        backbone.select(list(dict.fromkeys([*skips, *names, *known])))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments from MODEL.DCAMA, MODEL.BASE_KNOWLEDGE, and the backbone's keys."""
        c = cfg.MODEL.DCAMA
        backbone = build_few_shot_backbone(cfg)
        return {
            **cls.base_arguments(cfg),
            "backbone": backbone,
            "knowledge": build_base_knowledge(cfg, backbone) if c.CKMM else None,
            "attention_levels": c.ATTENTION_LEVELS,
            "skip_levels": c.SKIP_LEVELS,
            "kshot": c.KSHOT,
            "ignore_as_background": c.IGNORE_AS_BACKGROUND,
            "head": {
                "skip_support": c.SKIP_SUPPORT,
                "support_background": c.SUPPORT_BACKGROUND,
                "region_pixels": c.REGION_PIXELS,
                "region_means": c.REGION_MEANS,
                "num_heads": c.NUM_HEADS,
                "projection": c.PROJECTION,
                "temperature": c.TEMPERATURE,
                "position_encoding": c.POSITION_ENCODING,
                "dropout": c.DROPOUT,
                "fused": c.FUSED_ATTENTION,
                "widths": c.WIDTHS,
                "mixer_widths": c.MIXER_WIDTHS,
            },
        }

    def _encode(self, images: Tensor, masks: Tensor) -> dict[str, Tensor]:
        K = images.shape[1]
        # Support by support takes less memory, and on a CPU less time.
        step = 1 if images.device.type == "cpu" and not self.training else K
        parts = []
        for some, theirs in zip(images.split(step, dim=1), masks.split(step, dim=1), strict=True):
            features = self.extract(some.flatten(0, 1))  # block -> (B*step, C, h, w)
            parts.append(self.head.encode(features, (theirs == 1).float()))
        support = self.head.collect(parts, joint=self.kshot == "one_pass")
        if self.kshot == "cross_guided":
            support["weights"] = self._guidance(images, support, masks)  # (B, K)
        return support

    def _read_query(self, images: Tensor) -> dict[str, Tensor]:
        """Features of normalised queries, and their class-agnostic map where there is one."""
        features = self.extract(images)
        if self.knowledge is None:
            return features
        return features | {AGNOSTIC: self.knowledge(features)}

    def _decode(self, images: Tensor, support: SupportSet) -> tuple[Tensor, dict[str, Tensor]]:
        features = self._read_query(images)
        size = images.shape[-2:]
        if self.kshot == "one_pass":
            logits, aggregated = self.head(features, _shot(support.tensors, 0), size)
        elif self.training and support.shots > 1:
            raise RuntimeError(f"MODEL.DCAMA.KSHOT {self.kshot!r} is for inference: train with 'one_pass'")
        else:
            logits, aggregated = self._fuse(features, support, size)
        maps = {f"aggregated_{level}": masks for level, masks in aggregated.items()}
        return logits, maps | {name: features[name] for name in self.head.extras}

    def _fuse(
        self, features: dict[str, Tensor], support: SupportSet, size: Sequence[int]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Join K one-shot predictions; a softmax over the logits returned gives the joint probability."""
        shots = [self.head(features, _shot(support.tensors, s), size) for s in range(support.shots)]
        aggregated = {level: torch.stack([a[level] for _, a in shots]).mean(dim=0) for level in shots[0][1]}
        if len(shots) == 1:
            return shots[0][0], aggregated
        probability = torch.stack([_foreground(logits) for logits, _ in shots], dim=1)  # (B, K, H, W)
        weights = [support.tensors["weights"]] if self.kshot == "cross_guided" else []
        joint = FUSIONS[self.kshot](probability, *weights).clamp(1e-4, 1 - 1e-4)
        return torch.stack([1 - joint, joint], dim=1).log(), aggregated

    def _guidance(self, images: Tensor, support: dict[str, Tensor], masks: Tensor) -> Tensor:
        """Segment every support with every support: the weights (B, K) of cross-guided averaging."""
        K, size = images.shape[1], images.shape[-2:]
        guided = []
        for query in range(K):
            features = self._read_query(images[:, query])
            logits = [self.head(features, _shot(support, shot), size)[0] for shot in range(K)]
            guided.append(torch.stack([_foreground(x) for x in logits], dim=1))  # (B, K, H, W)
        return guidance_weights(torch.stack(guided, dim=2), masks)

    @torch.no_grad()
    def attention_map(self, images: Tensor, support: SupportSet, point: tuple[float, float]) -> Tensor:
        """Where in the supports the query pixel at ``point`` looks (Fig. S5).

        Args:
            images: (B, 3, H, W) RGB queries, 0 to 255.
            support: of B episodes, or of one.
            point: (y, x) as fractions of the query's height and width, in [0, 1).

        Returns:
            (B, K, Hs, Ws): resized to the supports' size, before which a layer's weights sum to 1.
        """
        features = self.extract(self.normalise(images))
        tensors = support.expand(images.shape[0]).tensors
        passes = 1 if self.kshot == "one_pass" else support.shots
        maps = [
            self.head.attention_map(features, _shot(tensors, s), point, support.size) for s in range(passes)
        ]
        return torch.cat(maps, dim=1)


def _shot(tensors: Any, index: int) -> dict[str, Tensor]:
    """Slice [:, index] of what `DCAMAHead.collect` made."""
    return {name: t[:, index] for name, t in tensors.items() if name != "weights"}


def _foreground(logits: Tensor) -> Tensor:
    """Foreground probability: (B, 2, H, W) to (B, H, W)."""
    return logits.softmax(dim=1)[:, 1]
