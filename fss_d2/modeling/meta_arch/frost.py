"""FROST: few-shot segmentation by densities of frozen features, without training (Park, arXiv 2606.31136)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor
from torch.nn import functional as F

from fss_d2.modeling.backbone import FeatureBackbone
from fss_d2.modeling.keys import at_least, config_keys, require
from fss_d2.modeling.layers import resize
from fss_d2.modeling.matching import (
    backward_votes,
    bandwidth,
    class_whitener,
    forward_cells,
    grown,
    log_density,
    propagate,
)

from .contract import Encoding, Output
from .few_shot import Maps, SegmentorOptions
from .insid3 import mean_prototype, object_and_known
from .training_free import DEBIASED, UNIT, TrainingFree, Tuned, Variant, restrict

__all__ = ["FROST"]

_MIRRORED = "mirrored."  # prefix of the maps of mirrored supports
_COLOURS = "colours"
_NEIGHBOURS = 3
_MOST_RADIUS = 4
_SURE = 10.0  # the largest lead, in temperatures; so many logits below 0 where the gate is shut


@config_keys
def add_keys(cfg: CfgNode) -> None:
    """Keys of FROST."""
    cfg.MODEL.FROST = CfgNode()
    cfg.MODEL.FROST.IN_FEATURES = ("res5",)  # resized to the first one and joined; published: the last block
    # Directions of position that are removed, as in INSID3. Published: 250 of the 1024 of DINOv3 ViT-L.
    cfg.MODEL.FROST.POSITIONAL_RANK = 0
    # Each support also counts mirrored, as published; a second pass of the backbone for each support.
    cfg.MODEL.FROST.MIRRORED = True
    # Of the densities; among several, those of the supports decide. Published: these.
    cfg.MODEL.FROST.BANDWIDTHS = (0.05, 0.1, 0.2, 0.5, 1.0)
    cfg.MODEL.FROST.STEPS = 10  # of propagation, as published; 0: none
    cfg.MODEL.FROST.TEMPERATURE = (
        1.0  # of the log density ratio in the sigmoid; the mask does not depend on it
    )


@dataclass(frozen=True)
class Views(Encoding):
    """Debiased unit features of V views of each support, and what their cells show."""

    cells: Tensor  # (B, K, V, C, h, w)
    objects: Tensor  # (B, K, V, h, w) bool
    known: Tensor  # (B, K, V, h, w) bool: not marked 255
    share: Tensor  # (B, K) of the object in the support
    trial: dict[str, Tensor] | None = None


@dataclass(frozen=True)
class Anchors(Tuned):
    """Whitened cells of all V views of the supports, with what the densities need."""

    whitener: Tensor  # (B, C, C)
    cells: Tensor  # (B, V, M, C)
    objects: Tensor  # (B, V, M) bool
    known: Tensor  # (B, V, M) bool
    prototype: Tensor  # (B, C)
    sigma: Tensor  # (B,)
    radius: Tensor  # (B,) by which the gate grows, in cells
    negatives: Tensor | None = None  # (B, N, M, C) whitened cells of N negatives
    regions: Tensor | None = None  # (B, N, M) bool, those of them that count


@dataclass(frozen=True)
class Picture(Encoding):
    """Unit features of queries, as they are and debiased, and their mean colours."""

    features: Tensor  # (B, C, h, w)
    debiased: Tensor  # (B, C, h, w)
    colours: Tensor  # (B, 3, h, w) in [0, 1]


@META_ARCH_REGISTRY.register()
class FROST(TrainingFree):
    """Log ratio of two densities, of the object's and of the background's support cells, at each query cell.

    Features are whitened by the scatter within both sets. Scores spread over similar neighbours. A gate of
    candidates, as in `INSID3`, shuts out the rest. A cell above 0 is object; a picture with no such cell does
    not show it. Negatives are further background: at each cell the largest of the background densities
    counts, that of the supports or that of one negative, so that many negatives do not thin the supports'
    own background.
    """

    query_kind = Picture

    @configurable
    def __init__(
        self,
        *,
        backbone: FeatureBackbone,
        in_features: Sequence[str],
        temperature: float = 1.0,
        positional_rank: int = 0,
        mirrored: bool = True,
        bandwidths: Sequence[float] = (0.05, 0.1, 0.2, 0.5, 1.0),
        steps: int = 10,
        leave_one_out: Sequence[str] = (),
        options: SegmentorOptions | None = None,
    ) -> None:
        """Raises ValueError for a value out of range, KeyError for a feature that the backbone lacks."""
        super().__init__(
            backbone=backbone,
            in_features=in_features,
            temperature=temperature,
            positional_rank=positional_rank,
            leave_one_out=leave_one_out,
            options=options,
        )
        require(bool(bandwidths) and min(bandwidths) > 0, "bandwidths", bandwidths, "numbers above 0")
        self.bandwidths, self.mirrored = tuple(bandwidths), mirrored
        self.steps = at_least("steps", steps, 0)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments from MODEL.FROST and the backbone's keys."""
        c, key = cfg.MODEL.FROST, "MODEL.FROST"
        sigmas = tuple(c.BANDWIDTHS)
        require(bool(sigmas) and min(sigmas) > 0, f"{key}.BANDWIDTHS", sigmas, "numbers above 0")
        arguments = cls.shared_arguments(cfg, "FROST")
        return {
            **arguments,
            "positional_rank": cls._rank(cfg, "FROST", arguments),
            "mirrored": c.MIRRORED,
            "bandwidths": sigmas,
            "steps": at_least(f"{key}.STEPS", c.STEPS, 0),
        }

    # -- what is read of images --------------------------------------------------------------------------

    def _extract_queries(self, images: Tensor, features: Maps | None) -> Maps:
        """Adds the mean colours of the cells, which a feature cache has instead of the image."""
        maps = super()._extract_queries(images, features)
        return maps if _COLOURS in maps else {**maps, _COLOURS: self._colours(images, maps)}

    def _colours(self, images: Tensor, maps: Maps) -> Tensor:
        pixels = images.to(self.device, torch.float32).clamp(0, 255) / 255
        return F.adaptive_avg_pool2d(pixels, maps[self.in_features[0]].shape[-2:])

    @property
    def _variants(self) -> dict[str, Variant]:
        mirrored: dict[str, Variant] = {_MIRRORED: lambda images, _: images.flip(-1)}
        return super()._variants | (mirrored if self.mirrored else {})

    def _stored_once(self, images: Tensor) -> dict[str, Tensor]:
        maps = super()._stored_once(images)
        return {**maps, _COLOURS: self._colours(images * self.pixel_std + self.pixel_mean, maps)}

    # -- supports ----------------------------------------------------------------------------------------

    def _encode_shots(self, maps: Maps, masks: Tensor) -> Views:
        views, shown = [maps[DEBIASED]], [masks]
        if self.mirrored:
            views, shown = [*views, maps[_MIRRORED + DEBIASED]], [masks, masks.flip(-1)]
        cells = torch.stack([view.unflatten(0, masks.shape[:2]) for view in views], dim=2)
        found = [object_and_known(view, cells.shape[-2:]) for view in shown]
        objects, known = (torch.stack(parts, dim=2) for parts in zip(*found, strict=True))
        return Views(cells, objects, known, (masks == 1).float().mean(dim=(2, 3)))

    def _fit(self, encoded: Views, channels: Tensor | None) -> Anchors:
        cells = restrict(encoded.cells, channels).flatten(1, 2).flatten(3).transpose(2, 3)  # (B, V, M, C)
        objects, known = (t.flatten(1, 2).flatten(2) for t in (encoded.objects, encoded.known))  # (B, V, M)
        shown, ground = objects.flatten(1), (known & ~objects).flatten(1)
        whitener = class_whitener(cells.flatten(1, 2), shown.float(), ground.float())
        cells = torch.einsum("bvmc,bcd->bvmd", cells, whitener)
        sigma = bandwidth(F.normalize(cells, dim=3).flatten(1, 2), shown, ground, self.bandwidths)
        radius = (_MOST_RADIUS * encoded.share.mean(dim=1)).round()
        prototype = mean_prototype(cells, objects)
        return Anchors(whitener, cells, objects, known, prototype, sigma, radius)

    def _encode_negatives(self, features: Maps, masks: Tensor) -> Views:
        encoded = self._encode_shots(features, masks)
        views = [masks, masks.flip(-1)] if self.mirrored else [masks]
        regions = [object_and_known(1 - view // 255, encoded.cells.shape[-2:])[0] for view in views]
        return replace(encoded, known=torch.stack(regions, dim=2))

    def _add_negatives(self, joined: Anchors, negatives: Views) -> Anchors:
        channels = joined.tuned and joined.tuned["channels"]
        cells = restrict(negatives.cells, channels).flatten(4)  # (B, N, V, C, h*w)
        cells = cells.transpose(3, 4).flatten(2, 3)  # (B, N, M, C)
        whitened = torch.einsum("bnmc,bcd->bnmd", cells, joined.whitener)
        return replace(joined, negatives=whitened, regions=negatives.known.flatten(2))

    # -- queries -----------------------------------------------------------------------------------------

    def _encode_query(self, features: Maps) -> Picture:
        return Picture(features[UNIT], features[DEBIASED], features[_COLOURS])

    def _planes(self, query: Picture, support: Anchors, channels: Tensor | None) -> Tensor:
        """The scores after propagation, the gate, and the scores before: (B, 3, h, w)."""
        debiased = restrict(query.debiased, channels)
        size = debiased.shape[-2:]
        cells = torch.einsum("bnc,bcd->bnd", debiased.flatten(2).transpose(1, 2), support.whitener)
        similarity = torch.einsum("bnc,bc->bn", cells, support.prototype)
        votes = backward_votes(cells, support.cells, support.objects, support.known, _NEIGHBOURS)
        candidates = (forward_cells(similarity) & (2 * votes >= support.cells.shape[1])).float()
        ratio, comparable = self._log_ratio(F.normalize(cells, dim=2), support)
        features = restrict(query.features, channels)
        scores = ratio.unflatten(1, size)
        maps = zip(scores, features, query.colours, strict=True)
        smooth = torch.stack([propagate(*map_, self.steps) for map_ in maps]) if self.steps else scores
        smooth = torch.where(comparable[:, None, None], smooth, _SURE)
        gate = grown(candidates.unflatten(1, size), support.radius * comparable, _MOST_RADIUS)
        return torch.stack([smooth, gate, scores], dim=1)

    def _log_ratio(self, queries: Tensor, support: Anchors) -> tuple[Tensor, Tensor]:
        """Log density ratio (B, N) of queries (B, N, C), and (B,) whether there is anything on both sides."""
        anchors = F.normalize(support.cells, dim=3).flatten(1, 2)
        shown, known = support.objects.flatten(1), support.known.flatten(1)
        ground = known & ~shown
        grounds = [log_density(queries, anchors, ground, support.sigma)]
        comparable = ground.any(dim=1)
        if support.negatives is not None and support.regions is not None:
            comparable = comparable | support.regions.flatten(1).any(dim=1)
            pairs = zip(support.negatives.unbind(1), support.regions.unbind(1), strict=True)
            grounds += [log_density(queries, F.normalize(n, dim=2), r, support.sigma) for n, r in pairs]
        comparable = comparable & shown.any(dim=1)
        ratio = log_density(queries, anchors, shown, support.sigma) - torch.stack(grounds).amax(dim=0)
        return torch.where(comparable[:, None], ratio, 0.0), comparable

    def _lead(self, planes: Tensor) -> Tensor:
        return torch.where(planes[:, 1] > 0, planes[:, 0], planes[:, 0].clamp(max=-_SURE * self.temperature))

    def _output(
        self, planes: Tensor, threshold: Tensor, temperature: Tensor, size: tuple[int, int]
    ) -> Output:
        """The mask is that of the code: scores and gate are resized, then compared with 0 and 0.5."""
        scores = (planes[:, 0] - threshold.view(-1, 1, 1)) / temperature.view(-1, 1, 1)
        resized = resize(torch.stack([scores, planes[:, 1]], dim=1), size, align_corners=False)
        half = torch.minimum(resized[:, 0], _SURE * (2 * resized[:, 1] - 1)) / 2
        maps = {"score": planes[:, :1], "gate": planes[:, 1:2]}
        return Output(torch.stack([-half, half], dim=1), maps=maps)
