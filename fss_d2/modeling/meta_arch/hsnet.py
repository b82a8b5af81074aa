"""HSNet: Hypercorrelation Squeeze for Few-Shot Segmentation (Min, Kang and Cho, ICCV 2021)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from fss_d2.modeling.backbone import FeatureBackbone
from fss_d2.modeling.build import build_few_shot_backbone, feature_names
from fss_d2.modeling.keys import config_keys, require
from fss_d2.modeling.layers import (
    center_pivot_stack,
    conv_pair,
    correlate,
    mask_features,
    resize,
    resize_query,
    unit_features,
)

from .contract import Encoding, Output
from .few_shot import FewShotSegmentor, Maps, SegmentorOptions

__all__ = ["HSNet", "HSNetHead"]

_NORM_GROUPS = 4  # see `center_pivot_stack`


@config_keys
def add_keys(cfg: CfgNode) -> None:
    """Keys of HSNet."""
    cfg.MODEL.HSNET = CfgNode()
    cfg.MODEL.HSNET.LEVELS = ("res3", "res4", "res5")  # all their blocks are compared; fine to coarse
    cfg.MODEL.HSNET.WIDTHS = (16, 64, 128)  # of the three convolutions that squeeze a level
    cfg.MODEL.HSNET.SUPPORT_BACKGROUND = False  # True leaves the supports unmasked (a row of the paper)


@dataclass(frozen=True)
class ShotEncoding(Encoding):
    """Of each support: block -> (B, K, C, h, w) unit features, zeros outside of the object."""

    features: dict[str, Tensor]


@dataclass(frozen=True)
class QueryEncoding(Encoding):
    """Of each query: block -> (B, C, h, w) unit features."""

    features: dict[str, Tensor]


class HSNetHead(nn.Module):
    """From unit features of queries and supports to logits: pyramids of correlations, squeezed and mixed.

    The finer a level, the more its convolutions shrink the support, so that all levels end at the same number
    of positions, one for 256 x 256 pixels with the published levels.
    """

    def __init__(
        self,
        levels: Mapping[str, Sequence[str]],  # level -> its blocks, fine to coarse, shallow to deep
        strides: Mapping[str, int],  # of the levels' maps
        *,
        widths: Sequence[int] = (16, 64, 128),
    ) -> None:
        """Raises ValueError for no level, no width, or too few widths for the strides."""
        super().__init__()
        require(bool(levels), "levels", dict(levels), "of at least one level")
        self.levels = {level: tuple(blocks) for level, blocks in levels.items()}
        self.squeeze, self.merge = nn.ModuleDict(), nn.ModuleDict()
        coarsest, width = max(strides[level] for level in levels), widths[-1]
        for level, blocks in self.levels.items():
            finer = (coarsest // strides[level]).bit_length() - 1  # how often its side is doubled
            require(len(widths) >= finer, "widths", tuple(widths), f"at least {finer} numbers, for {level}")
            first = [i < finer for i in range(len(widths))]
            shrink = [4 if fine else 2 for fine in first]
            kernels = [5 if fine else 3 for fine in first]
            self.squeeze[level] = center_pivot_stack(len(blocks), widths, kernels, shrink, _NORM_GROUPS)
        for level in list(levels)[:-1]:
            self.merge[level] = center_pivot_stack(width, [width] * 3, [3] * 3, [1] * 3, _NORM_GROUPS)
        self.decoder1 = conv_pair(width, width, width // 2)
        self.decoder2 = conv_pair(width // 2, width // 2, 2, last_relu=False)

    def forward(self, queries: Maps, supports: Maps) -> Tensor:
        """Segment B queries with one support each, block -> (B, C, h, w) unit features.

        Returns logits (B, 2, 2 h, 2 w) with (h, w) the size of the finest level. Raises ValueError if the
        levels do not shrink the support to one size.
        """
        mixed: Tensor | None = None
        for level in reversed(self.levels):
            blocks = self.levels[level]
            squeezed = correlate([queries[name] for name in blocks], [supports[name] for name in blocks])
            squeezed = self.squeeze[level](squeezed)  # (B, C, h, w, h', w')
            if mixed is not None:
                _check_positions(level, squeezed, mixed)
                squeezed = self.merge[level](resize_query(mixed, squeezed.shape[2:4]) + squeezed)
            mixed = squeezed
        decoded = self.decoder1(mixed.mean(dim=(4, 5)))
        return self.decoder2(resize(decoded, [2 * side for side in decoded.shape[-2:]]))


@META_ARCH_REGISTRY.register()
class HSNet(FewShotSegmentor):
    """4D convolutions squeeze the correlations of all query positions with all positions of the object.

    Every block of the levels gives one correlation; the backbone's features, taken before a block's last ReLU
    (a backbone setting), are not read otherwise. With K supports there are K one-shot predictions, whose
    votes are counted (`normalized_vote`); training, published with one support, averages probabilities.
    Pixels marked 255 are background, in supports and in the loss. Images need not be square.
    """

    own_fusion = "normalized_vote"

    @configurable
    def __init__(
        self,
        *,
        backbone: FeatureBackbone,
        levels: Sequence[str] = ("res3", "res4", "res5"),  # fine to coarse
        widths: Sequence[int] = (16, 64, 128),
        support_background: bool = False,
        options: SegmentorOptions | None = None,  # corners are aligned, and 255 is background, in any case
    ) -> None:
        """See also the keys of MODEL.HSNET above. Raises KeyError for a level that the backbone lacks."""
        options = replace(options or SegmentorOptions(), align_corners=True, ignore_as_background=True)
        super().__init__(backbone, options)
        self.support_background = support_background
        blocks = {level: backbone.blocks(level) for level in levels}
        strides = {level: backbone.available[names[0]].stride for level, names in blocks.items()}
        self.head = HSNetHead(blocks, strides, widths=widths)
        backbone.select([name for names in blocks.values() for name in names])

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments from MODEL.HSNET, and the backbone's keys."""
        c, backbone = cfg.MODEL.HSNET, build_few_shot_backbone(cfg)
        fits = len(c.WIDTHS) == 3 and all(width > 0 and width % _NORM_GROUPS == 0 for width in c.WIDTHS)
        rule = f"three multiples of {_NORM_GROUPS} (norm groups)"
        require(fits, "MODEL.HSNET.WIDTHS", tuple(c.WIDTHS), rule)
        return {
            "backbone": backbone,
            "levels": feature_names("MODEL.HSNET.LEVELS", c.LEVELS, backbone, stages=True),
            "widths": tuple(c.WIDTHS),
            "support_background": c.SUPPORT_BACKGROUND,
            "options": SegmentorOptions.from_config(cfg),
        }

    def _unit(self, features: Maps, masks: Tensor | None = None) -> dict[str, Tensor]:
        """Unit features of the blocks; of supports those of the object, under masks (N, H, W)."""
        maps = {name: features[name] for names in self.head.levels.values() for name in names}
        if masks is not None:
            maps = {name: mask_features(x, masks) for name, x in maps.items()}
        return {name: unit_features(x) for name, x in maps.items()}

    def _encode_support(self, features: Maps, masks: Tensor) -> ShotEncoding:
        maps = self._unit(features, None if self.support_background else masks.flatten(0, 1))
        return ShotEncoding({name: x.unflatten(0, masks.shape[:2]) for name, x in maps.items()})

    def _encode_query(self, features: Maps) -> QueryEncoding:
        return QueryEncoding(self._unit(features))

    def _match(self, query: QueryEncoding, support: ShotEncoding, size: tuple[int, int]) -> Output:
        shot = support.map(lambda t: t[:, 0])
        return Output(resize(self.head(query.features, shot.features), size))


def _check_positions(level: str, squeezed: Tensor, mixed: Tensor) -> None:
    """Raise ValueError if two levels do not have the same positions of the support."""
    ours, coarser = tuple(squeezed.shape[4:]), tuple(mixed.shape[4:])
    if ours != coarser:
        raise ValueError(
            f"HSNet shrinks {level} of the support to {ours} positions, the next level to {coarser}: this "
            "backbone rounds sizes down, so choose another INPUT.FEW_SHOT_SIZE, such as a multiple of 32"
        )
