"""The training-free baseline: masked average pooling and cosine similarity."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor
from torch.nn import functional as F

from fss_d2.modeling.backbone import FeatureBackbone
from fss_d2.modeling.keys import at_least, config_keys
from fss_d2.modeling.layers import area_fraction, resize, weighted_sum
from fss_d2.modeling.matching import backward_votes, cosine_kmeans, grid_mask

from .contract import Encoding, Output
from .few_shot import SegmentorOptions
from .training_free import UNIT, TrainingFree, Tuned, restrict

__all__ = ["Prototype"]


@config_keys
def add_keys(cfg: CfgNode) -> None:
    """Keys of the training-free baseline."""
    cfg.MODEL.PROTOTYPE = CfgNode()
    cfg.MODEL.PROTOTYPE.IN_FEATURES = ("res4", "res5")  # resized to the first one and joined
    cfg.MODEL.PROTOTYPE.TEMPERATURE = 0.05  # of the two cosines in the softmax
    # Number of prototypes, by k-means of cosines where there are several; the most similar one counts. With
    # several of the background that is the object against its hardest background.
    cfg.MODEL.PROTOTYPE.OBJECT_PROTOTYPES = 1
    cfg.MODEL.PROTOTYPE.BACKGROUND_PROTOTYPES = 1
    # Object is only what most supports vote for: a support does if its most similar cell shows the object.
    cfg.MODEL.PROTOTYPE.BACKWARD_VOTES = False


@dataclass(frozen=True)
class RegionSums(Encoding):
    """Of background and object of each support: feature sums (B, K, 2, C) and areas (B, K, 2) in cells."""

    sums: Tensor
    areas: Tensor
    cells: Tensor | None = None  # (B, K, C, h, w) unit vectors, where more than sums is needed
    shares: Tensor | None = None  # (B, K, 2, h, w) of background and object in each cell
    objects: Tensor | None = None  # (B, K, h, w) 1 in the object's cells
    trial: dict[str, Tensor] | None = None


@dataclass(frozen=True)
class Prototypes(Tuned):
    """Unit prototypes (B, 2 + N, C): background, object, and N further ones of background and negatives."""

    prototypes: Tensor
    parts: Tensor | None = None  # (B, n, C): several prototypes of the object
    cells: Tensor | None = None  # these three as in `RegionSums`
    shares: Tensor | None = None
    objects: Tensor | None = None


@dataclass(frozen=True)
class UnitFeatures(Encoding):
    """Unit feature vectors (B, C, h, w) of queries."""

    features: Tensor


@META_ARCH_REGISTRY.register()
class Prototype(TrainingFree):
    """Cosine similarity to one object prototype and one background prototype, or several of each.

    A prototype is the mean over all its pixels in all supports together, not the mean of one prototype per
    support: a support that shows little of the object then adds little noise. A cell counts by the share of
    its pixels in the mask; pixels marked 255 are in neither prototype.
    """

    query_kind = UnitFeatures

    @configurable
    def __init__(
        self,
        *,
        backbone: FeatureBackbone,
        in_features: Sequence[str],
        temperature: float = 0.05,
        object_prototypes: int = 1,
        background_prototypes: int = 1,
        backward_votes: bool = False,
        leave_one_out: Sequence[str] = (),
        options: SegmentorOptions | None = None,
    ) -> None:
        """Raises ValueError for a value out of range, KeyError for a feature that the backbone lacks."""
        super().__init__(
            backbone=backbone,
            in_features=in_features,
            temperature=temperature,
            leave_one_out=leave_one_out,
            options=options,
        )
        self.counts = (
            at_least("background_prototypes", background_prototypes, 1),
            at_least("object_prototypes", object_prototypes, 1),
        )
        self.backward_votes = backward_votes
        self.keeps_cells = max(self.counts) > 1 or backward_votes

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments from MODEL.PROTOTYPE and the backbone's keys."""
        c, numbers = cfg.MODEL.PROTOTYPE, ("OBJECT_PROTOTYPES", "BACKGROUND_PROTOTYPES")
        return {
            **cls.shared_arguments(cfg, "PROTOTYPE"),
            **{name.lower(): at_least(f"MODEL.PROTOTYPE.{name}", c[name], 1) for name in numbers},
            "backward_votes": c.BACKWARD_VOTES,
        }

    def _encode_shots(self, maps: Mapping[str, Tensor], masks: Tensor) -> RegionSums:
        cells = maps[UNIT].unflatten(0, masks.shape[:2])  # (B, K, C, h, w)
        shares = torch.stack([area_fraction(masks == v, cells.shape[-2:]) for v in (0, 1)], dim=2)
        sums = RegionSums(weighted_sum(cells, shares), shares.sum(dim=(3, 4)))
        if not self.keeps_cells:
            return sums
        objects = grid_mask(masks == 1, cells.shape[-2:])
        return replace(sums, cells=cells, shares=shares, objects=objects)

    def _fit(self, encoded: RegionSums, channels: Tensor | None) -> Prototypes:
        means = encoded.sums.sum(dim=1) / encoded.areas.sum(dim=1).clamp(min=1e-6)[..., None]
        prototypes = F.normalize(means if channels is None else means * channels[:, None], dim=2)
        if not self.keeps_cells:
            return Prototypes(prototypes)
        maps = restrict(encoded.cells, channels)
        cells = maps.transpose(2, 1).flatten(2).transpose(1, 2)  # (B, K*h*w, C)
        grounds, parts = (
            cosine_kmeans(cells, encoded.shares[:, :, i].flatten(1), count) if count > 1 else None
            for i, count in enumerate(self.counts)
        )
        if grounds is not None:
            prototypes = torch.cat([prototypes, grounds], dim=1)
        if not self.backward_votes:
            return Prototypes(prototypes, parts)
        return Prototypes(prototypes, parts, maps, encoded.shares, encoded.objects)

    def _encode_negatives(self, features: Mapping[str, Tensor], masks: Tensor) -> RegionSums:
        return self._encode_shots(features, masks)

    def _add_negatives(self, joined: Prototypes, negatives: RegionSums) -> Prototypes:
        sums = negatives.sums[:, :, 0]  # (B, N, C)
        sums = sums if joined.tuned is None else sums * joined.tuned["channels"][:, None]
        return replace(joined, prototypes=torch.cat([joined.prototypes, F.normalize(sums, dim=2)], dim=1))

    def _encode_query(self, features: Mapping[str, Tensor]) -> UnitFeatures:
        return UnitFeatures(features[UNIT])

    def _planes(self, query: UnitFeatures, support: Prototypes, channels: Tensor | None) -> Tensor:
        """Cosines to the background and to the object, (B, 2, h, w)."""
        features = restrict(query.features, channels)
        cosine = torch.einsum("bchw,bnc->bnhw", features, support.prototypes)
        ground, shown = cosine[:, 0], cosine[:, 1]
        if cosine.shape[1] > 2:  # the most similar background counts
            ground = torch.maximum(ground, cosine[:, 2:].amax(dim=1))
        if support.parts is not None:
            shown = torch.einsum("bchw,bnc->bnhw", features, support.parts).amax(dim=1)
        if support.cells is not None:
            # Where too few vote for it, the object is below the background by as much as it leads.
            shown = torch.where(
                self._voted(features, support), shown, torch.minimum(shown, 2 * ground - shown)
            )
        return torch.stack([ground, shown], dim=1)

    def _voted(self, features: Tensor, support: Prototypes) -> Tensor:
        """Whether half of the supports or more vote for a cell: (B, h, w)."""
        cells = support.cells.flatten(3).transpose(2, 3)  # (B, K, h*w, C)
        known = (support.shares.sum(dim=2) > 0).flatten(2)
        queries = features.flatten(2).transpose(1, 2)
        votes = backward_votes(queries, cells, support.objects.flatten(2), known)
        return (2 * votes >= cells.shape[1]).unflatten(1, features.shape[-2:])

    def _lead(self, planes: Tensor) -> Tensor:
        return planes[:, 1] - planes[:, 0]

    def _output(
        self, planes: Tensor, threshold: Tensor, temperature: Tensor, size: tuple[int, int]
    ) -> Output:
        half = threshold.view(-1, 1, 1) / 2
        cosine = torch.stack([planes[:, 0] + half, planes[:, 1] - half], dim=1)
        logits = cosine / temperature.view(-1, 1, 1, 1)
        return Output(resize(logits, size, align_corners=self.align_corners), maps={"cosine": planes})
