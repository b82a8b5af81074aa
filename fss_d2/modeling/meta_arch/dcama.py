"""DCAMA: Dense Cross-Query-and-Support Attention Weighted Mask Aggregation (Shi et al., ECCV 2022)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from fss_d2.modeling.backbone import FeatureBackbone
from fss_d2.modeling.build import build_base_knowledge, build_few_shot_backbone, feature_names
from fss_d2.modeling.keys import at_least, choose, config_keys, require, share
from fss_d2.modeling.layers import (
    BaseKnowledge,
    MaskAggregation,
    area_fraction,
    balanced_regions,
    conv_pair,
    conv_stack,
    resize,
)
from fss_d2.modeling.layers.attention import PROJECTIONS

from .contract import Encoding, Output, SupportSet
from .few_shot import FewShotSegmentor, Maps, SegmentorOptions

__all__ = ["DCAMA", "DCAMAHead"]

NORM_GROUPS = 4  # of the convolutions on masks, see `conv_stack`
AGNOSTIC = "agnostic"  # the name of the class-agnostic map among the maps


@config_keys
def add_keys(cfg: CfgNode) -> None:
    """Keys of DCAMA."""
    cfg.MODEL.DCAMA = CfgNode()
    cfg.MODEL.DCAMA.ATTENTION_LEVELS = ("res3", "res4", "res5")  # Table S4; fine to coarse
    cfg.MODEL.DCAMA.SKIP_LEVELS = ("res2", "res3")  # Table S3
    cfg.MODEL.DCAMA.SKIP_SUPPORT = True  # Table S5 (a): also skip-connect the support features
    cfg.MODEL.DCAMA.SUPPORT_BACKGROUND = True  # Table 3: False zeroes the support's background
    cfg.MODEL.DCAMA.REGION_PIXELS = 0  # Table S5 (b): pixels of each region kept; 0 keeps all
    # Aggregate each layer once more, over the mean tokens of object and background (not in the paper).
    cfg.MODEL.DCAMA.REGION_MEANS = False
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
    # JC2A's class-agnostic map next to the aggregated masks (not in the paper; MODEL.BASE_KNOWLEDGE).
    cfg.MODEL.DCAMA.CKMM = False


@dataclass(frozen=True)
class ShotEncoding(Encoding):
    """Of each support."""

    keys: dict[str, Tensor]  # block -> (B, K, h*w, C) projected tokens
    masks: dict[str, Tensor]  # level -> (B, K, h, w), the mask at the level's size
    skips: dict[str, Tensor] = field(default_factory=dict)  # block -> (B, K, C, h, w), for the mixer


@dataclass(frozen=True)
class JoinedSupports(Encoding):
    """Of each episode, the supports taken together."""

    keys: dict[str, Tensor]  # block -> (B, N, C) tokens
    masks: dict[str, Tensor]  # level -> (B, K, h, w); of n pixels of each region (B, 1, 1, 2n), and N is 2n
    skips: dict[str, Tensor] = field(default_factory=dict)  # block -> (B, C, h, w), maximum over the supports
    means: dict[str, Tensor] = field(default_factory=dict)  # block -> (B, 2, C): object, background


@dataclass(frozen=True)
class QueryEncoding(Encoding):
    """Of each query: maps by block and extra name, (B, C, h, w); projected tokens by block, (B, h*w, C)."""

    maps: dict[str, Tensor]
    tokens: dict[str, Tensor] = field(default_factory=dict)


class DCAMAHead(nn.Module):
    """From backbone features of query and supports to logits (DCAMA, Sec. 3.2).

    Any map size works, and supports may differ in size from the query.
    """

    def __init__(
        self,
        # Level -> {block: channels}, fine to coarse, shallow to deep.
        attention: Mapping[str, Mapping[str, int]],
        skips: Mapping[str, int],  # block -> channels, fine to coarse
        *,
        extras: Mapping[str, int] | None = None,  # name -> channels of query maps joined to the mixer's input
        skip_support: bool = True,
        support_background: bool = True,
        region_pixels: int = 0,
        region_means: bool = False,  # needs less training data
        widths: Sequence[int] = (16, 64, 128),  # of the three convolutions on a level's masks
        mixer_widths: Sequence[int] = (128, 64, 16),  # the last block ends in the two logits
        aggregation: Mapping[str, Any] | None = None,  # for `MaskAggregation`, such as "num_heads"
    ) -> None:
        """See also the keys of MODEL.DCAMA above. Raises ValueError for no level or wrong widths."""
        super().__init__()
        require(bool(attention), "attention", dict(attention), "of at least one level")
        require(bool(widths), "widths", tuple(widths), "at least one number")
        require(len(mixer_widths) == 3, "mixer_widths", tuple(mixer_widths), "three numbers")
        self.blocks = {level: tuple(blocks) for level, blocks in attention.items()}
        self.skips, self.extras = tuple(skips), tuple(extras or ())
        self.skip_support, self.support_background = skip_support, support_background
        self.region_pixels, self.region_means = region_pixels, region_means
        self.attention, self.squeeze, self.merge = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        width = widths[-1]
        for depth, (level, blocks) in enumerate(reversed(attention.items())):  # coarse to fine
            self.attention[level] = MaskAggregation(tuple(blocks.values()), **(aggregation or {}))
            kernels = [5 if i < min(depth, 2) else 3 for i in range(len(widths))]
            self.squeeze[level] = conv_stack(len(blocks) * (1 + region_means), widths, kernels)
            if depth:
                self.merge[level] = conv_stack(width, [width] * 3, [3] * 3)
        mixed = width + sum(skips.values()) * (2 if skip_support else 1) + sum((extras or {}).values())
        first, second, third = mixer_widths
        self.mixers = nn.ModuleList(
            [
                conv_pair(mixed, first, second),
                conv_pair(second, second, third),
                conv_pair(third, third, 2, last_relu=False),
            ]
        )

    def encode(self, features: Maps, masks: Tensor) -> ShotEncoding:
        """Encode supports: block -> (B*K, C, h, w), and float masks (B, K, H, W), 1 object, 0 background."""
        shape = masks.shape[:2]
        keys, at_level = {}, {}
        for level, blocks in self.blocks.items():
            mask = resize(masks.flatten(0, 1)[:, None], features[blocks[0]].shape[-2:])  # (B*K, 1, h, w)
            at_level[level] = mask[:, 0].unflatten(0, shape)
            for name in blocks:
                tokens = features[name] if self.support_background else features[name] * mask
                keys[name] = self.attention[level].keys(tokens).unflatten(0, shape)
        skips = self.skips if self.skip_support else ()
        return ShotEncoding(keys, at_level, {name: features[name].unflatten(0, shape) for name in skips})

    def join(self, shots: ShotEncoding) -> JoinedSupports:
        """Take the tokens of all supports together, with the largest of their skip features (Sec. 3.3)."""
        masks = dict(shots.masks)
        keys = {n: k.flatten(1, 2) for n, k in shots.keys.items()}
        skips = {n: s.amax(dim=1) for n, s in shots.skips.items()}
        means: dict[str, Tensor] = {}
        for level, blocks in self.blocks.items():
            values = masks[level].flatten(1)  # (B, N)
            if self.region_pixels:
                chosen = balanced_regions(values, self.region_pixels)
                values = values.gather(1, chosen)
                masks[level] = values[:, None, None]
                for name in blocks:
                    keys[name] = keys[name].gather(1, chosen[..., None].expand(-1, -1, keys[name].shape[2]))
            for name in blocks if self.region_means else ():
                means[name] = self.attention[level].region_means(keys[name], values)
        return JoinedSupports(keys, masks, skips, means)

    def query_tokens(self, features: Maps) -> dict[str, Tensor]:
        """Project query features block -> (B, C, h, w) to tokens block -> (B, h*w, C)."""
        return {
            name: self.attention[level].queries(features[name])
            for level, blocks in self.blocks.items()
            for name in blocks
        }

    def forward(
        self, query: QueryEncoding, support: JoinedSupports, size: Sequence[int]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Segment B queries of ``size`` (H, W).

        Query tokens that are missing are projected here, block by block. Returns logits (B, 2, H, W), and
        level -> (B, layers, h, w) the aggregated masks.
        """
        aggregated = self.aggregate(query, support)
        return self.mix(self.integrate(aggregated), query.maps, support, size), aggregated

    def aggregate(self, query: QueryEncoding, support: JoinedSupports) -> dict[str, Tensor]:
        """Cross attention of every layer: level -> (B, layers, h, w) query masks, shallow to deep.

        With ``region_means`` every layer gives two masks, one after the other.
        """
        aggregated = {}
        for level, blocks in self.blocks.items():
            attention = self.attention[level]
            values = support.masks[level].flatten(1)  # (B, Ns)
            masks = []
            for name in blocks:
                tokens = query.tokens[name] if query.tokens else attention.queries(query.maps[name])
                masks.append(attention(tokens, support.keys[name], values))
                if self.region_means:
                    # 1 for the object's token, 0 for the background's; made on the device.
                    first = 1 - torch.arange(2, device=values.device, dtype=values.dtype)
                    masks.append(attention(tokens, support.means[name], first.expand(len(values), 2)))
            size = query.maps[blocks[0]].shape[-2:]
            aggregated[level] = torch.stack(masks, dim=1).unflatten(2, size)
        return aggregated

    def integrate(self, aggregated: Maps) -> Tensor:
        """From the coarse level down, add the levels up: (B, widths[-1], h, w) at the finest one's size."""
        mingled = None
        for level in reversed(self.blocks):
            masks = self.squeeze[level](aggregated[level])
            if mingled is not None:
                masks = self.merge[level](resize(mingled, masks.shape[-2:]) + masks)
            mingled = masks
        return mingled

    def mix(self, mingled: Tensor, features: Maps, support: JoinedSupports, size: Sequence[int]) -> Tensor:
        """Join features to the masks, coarse to fine, and mix them up to (B, 2, H, W) logits."""
        for name in reversed(self.skips):
            joined = [features[name], *([support.skips[name]] if self.skip_support else [])]
            finer = max(mingled.shape[-2:], joined[0].shape[-2:])
            mingled = torch.cat([resize(x, finer) for x in (mingled, *joined)], dim=1)
        for name in self.extras:
            mingled = torch.cat([mingled, resize(features[name], mingled.shape[-2:])], dim=1)
        for mixer, stride in zip(self.mixers, (4, 2, 1), strict=True):
            mingled = mixer(resize(mingled, [-(-side // stride) for side in size]))
        return mingled

    def attention_map(
        self, query: QueryEncoding, support: JoinedSupports, point: tuple[float, float], size: Sequence[int]
    ) -> Tensor:
        """Where in the supports one query pixel looks: mean over levels, layers and heads (Fig. S5).

        See `DCAMA.attention_map`; returns (B, K, height, width). Raises ValueError if only some support
        pixels were kept, so that there is no map.
        """
        if self.region_pixels:
            raise ValueError(
                "no attention map of a part of a support: set region_pixels (MODEL.DCAMA.REGION_PIXELS) to 0"
            )
        maps = []
        for level, blocks in self.blocks.items():
            grid = support.masks[level].shape[1:]  # (K, h, w)
            for name in blocks:
                h, w = query.maps[name].shape[-2:]
                pixel = int(point[0] * h) * w + int(point[1] * w)
                token = query.tokens[name][:, pixel : pixel + 1]
                weights = self.attention[level].weights(token, support.keys[name])  # (B, heads, 1, Ns)
                maps.append(resize(weights.mean(dim=1)[:, 0].unflatten(1, grid), size))
        return torch.stack(maps).mean(dim=0)


@META_ARCH_REGISTRY.register()
class DCAMA(FewShotSegmentor):
    """Every query pixel takes the attention-weighted mean of the support mask.

    Where the reference code adds to the paper or differs from it, a setting selects; the defaults are the
    reference's, which gave the published numbers: features before a ResNet block's last ReLU (a backbone
    setting), dropout 0.5 on tokens and attention weights, support pixels marked 255 taken as background,
    target pixels marked 255 as well (``ignore_as_background``). Unlike there, several episodes with several
    supports each may share a batch, and images need be neither square nor a multiple of 8.
    """

    score_layer = "head.mixers.2.2"

    @configurable
    def __init__(
        self,
        *,
        backbone: FeatureBackbone,  # its blocks are `FeatureBackbone.blocks(level)`
        attention_levels: Sequence[str] = ("res3", "res4", "res5"),  # all their blocks, fine to coarse
        skip_levels: Sequence[str] = ("res2", "res3"),  # their last blocks, fine to coarse
        head: Mapping[str, Any] | None = None,  # further arguments of `DCAMAHead`
        knowledge: BaseKnowledge | None = None,  # its map is joined to the mixer's input
        ignore_as_background: bool = True,
        options: SegmentorOptions | None = None,  # the two settings that it shares with DCAMA are DCAMA's
    ) -> None:
        """See also the keys of MODEL.DCAMA above.

        Raises KeyError for a level that the backbone lacks.
        """
        options = options or SegmentorOptions()
        options = replace(options, align_corners=True, ignore_as_background=ignore_as_background)
        super().__init__(backbone, options)
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
        levels = feature_names("MODEL.DCAMA.ATTENTION_LEVELS", c.ATTENTION_LEVELS, backbone, stages=True)
        skips = feature_names("MODEL.DCAMA.SKIP_LEVELS", c.SKIP_LEVELS, backbone, least=0, stages=True)
        return {
            "backbone": backbone,
            "knowledge": build_base_knowledge(cfg, backbone) if c.CKMM else None,
            "attention_levels": levels,
            "skip_levels": skips,
            "head": {
                "skip_support": c.SKIP_SUPPORT,
                "support_background": c.SUPPORT_BACKGROUND,
                "region_pixels": at_least("MODEL.DCAMA.REGION_PIXELS", c.REGION_PIXELS, 0),
                "region_means": c.REGION_MEANS,
                **_widths(c),
                "aggregation": _aggregation(c, backbone, levels),
            },
            "ignore_as_background": c.IGNORE_AS_BACKGROUND,
            "options": SegmentorOptions.from_config(cfg),
        }

    def _encode_support(self, features: Maps, masks: Tensor) -> ShotEncoding:
        return self.head.encode(features, (masks == 1).float())

    def _join(self, encoded: ShotEncoding) -> JoinedSupports:
        return self.head.join(encoded)

    def _encode_negatives(self, features: Maps, masks: Tensor) -> ShotEncoding:
        """Tokens of the region; those outside of it are replaced by the region's mean."""
        encoded = self.head.encode(features, torch.zeros_like(masks, dtype=torch.float32))
        keys = {}
        for level, blocks in self.head.blocks.items():
            inside = area_fraction(masks == 0, encoded.masks[level].shape[-2:]).flatten(2)[..., None]
            for name in blocks:
                kept = encoded.keys[name]  # (B, N, h*w, C)
                mean = (kept * inside).sum(dim=2, keepdim=True) / inside.sum(dim=2, keepdim=True)
                keys[name] = torch.where(inside >= 0.5, kept, mean.to(kept.dtype))
        return replace(encoded, keys=keys, skips={})

    def _add_negatives(self, joined: JoinedSupports, negatives: ShotEncoding) -> JoinedSupports:
        """Their tokens join those of the supports as background."""
        keys, masks = {}, {}
        for level, blocks in self.head.blocks.items():
            values = joined.masks[level].flatten(1)  # (B, N)
            for name in blocks:
                further = negatives.keys[name].flatten(1, 2)
                keys[name] = torch.cat([joined.keys[name], further], dim=1)
            nothing = values.new_zeros(len(values), further.shape[1])
            masks[level] = torch.cat([values, nothing], dim=1)[:, None, None]  # (B, 1, 1, tokens)
        return replace(joined, keys=keys, masks=masks)

    def _query_maps(self, features: Maps) -> dict[str, Tensor]:
        """The features, with the class-agnostic map where there is one."""
        if self.knowledge is None:
            return dict(features)
        return {**features, AGNOSTIC: self.knowledge(features)}

    def _query(self, maps: dict[str, Tensor]) -> QueryEncoding:
        # While training, tokens are made where they are used: less memory, and dropout draws in that order.
        return QueryEncoding(maps, {} if self.training else self.head.query_tokens(maps))

    def _encode_query(self, features: Maps) -> QueryEncoding:
        return self._query(self._query_maps(features))

    def _match(self, query: QueryEncoding, support: JoinedSupports, size: tuple[int, int]) -> Output:
        logits, aggregated = self.head(query, support, size)
        maps = {f"aggregated_{level}": masks for level, masks in aggregated.items()}
        return Output(logits, maps | {name: query.maps[name] for name in self.head.extras})

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
        maps = self._query_maps(self.extract(self.normalise(images)))
        query = QueryEncoding(maps, self.head.query_tokens(maps))
        plain = self.with_negatives(support, None).for_queries(len(images))
        passes = plain.each() if self.fusion else [plain.joined]
        return torch.cat([self.head.attention_map(query, p, point, support.size) for p in passes], dim=1)


def _widths(c: CfgNode) -> dict[str, Any]:
    """The widths of `DCAMAHead` from MODEL.DCAMA."""
    squeeze, mixers = tuple(c.WIDTHS), tuple(c.MIXER_WIDTHS)
    fits = bool(squeeze) and all(width > 0 and width % NORM_GROUPS == 0 for width in squeeze)
    require(fits, "MODEL.DCAMA.WIDTHS", squeeze, f"multiples of {NORM_GROUPS} (norm groups), at least one")
    require(len(mixers) == 3 and min(mixers) > 0, "MODEL.DCAMA.MIXER_WIDTHS", mixers, "three numbers above 0")
    return {"widths": squeeze, "mixer_widths": mixers}


def _aggregation(c: CfgNode, backbone: FeatureBackbone, levels: Sequence[str]) -> dict[str, Any]:
    """Arguments of `MaskAggregation` from MODEL.DCAMA."""
    choose("MODEL.DCAMA.PROJECTION", c.PROJECTION, PROJECTIONS)
    require(c.TEMPERATURE > 0, "MODEL.DCAMA.TEMPERATURE", c.TEMPERATURE, "above 0")
    at_least("MODEL.DCAMA.NUM_HEADS", c.NUM_HEADS, 1)
    if c.PROJECTION == "linear":
        channels = sorted({backbone.available[b].channels for x in levels for b in backbone.blocks(x)})
        fits = all(width % c.NUM_HEADS == 0 for width in channels)
        rule = f"a divisor of the channels of MODEL.DCAMA.ATTENTION_LEVELS: {', '.join(map(str, channels))}"
        require(fits, "MODEL.DCAMA.NUM_HEADS", c.NUM_HEADS, rule)
    return {
        "num_heads": c.NUM_HEADS,
        "projection": c.PROJECTION,
        "temperature": c.TEMPERATURE,
        "position_encoding": c.POSITION_ENCODING,
        "dropout": share("MODEL.DCAMA.DROPOUT", c.DROPOUT),
        "fused": c.FUSED_ATTENTION,
    }
