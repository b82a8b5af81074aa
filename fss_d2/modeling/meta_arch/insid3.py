"""INSID3: in-context segmentation with one frozen ViT and no training (Cuttano et al., CVPR 2026)."""

from collections.abc import Sequence
from dataclasses import dataclass
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
    average_linkage,
    backward_votes,
    cluster_means,
    forward_cells,
    grid_mask,
)

from .contract import Encoding, Output
from .few_shot import Maps, SegmentorOptions
from .training_free import DEBIASED, UNIT, TrainingFree, Tuned, restrict

__all__ = ["INSID3"]


@config_keys
def add_keys(cfg: CfgNode) -> None:
    """Keys of INSID3; all but the first three are those of the paper's code."""
    cfg.MODEL.INSID3 = CfgNode()
    cfg.MODEL.INSID3.IN_FEATURES = ("res5",)  # resized to the first one and joined; published: the last block
    # Directions of position that are removed before supports and query are compared, from a black picture.
    # Published: 500 of the 1024 channels of DINOv3 ViT-L. 0 removes none.
    cfg.MODEL.INSID3.POSITIONAL_RANK = 0
    cfg.MODEL.INSID3.TEMPERATURE = 0.05  # of the scores in the sigmoid; the mask does not depend on it
    cfg.MODEL.INSID3.CLUSTER_SIMILARITY = 0.6  # mean cosine down to which clusters merge (tau)
    cfg.MODEL.INSID3.THRESHOLD = 0.2  # score above which a cluster is object (theta)


@dataclass(frozen=True)
class References(Encoding):
    """Debiased unit features of supports and what their cells show."""

    cells: Tensor  # (B, K, C, h, w)
    objects: Tensor  # (B, K, h, w) bool
    known: Tensor  # (B, K, h, w) bool: not marked 255
    trial: dict[str, Tensor] | None = None


@dataclass(frozen=True)
class Prompt(Tuned):
    """The object's unit prototype, and the `References` as lists of cells."""

    prototype: Tensor  # (B, C)
    cells: Tensor  # (B, K, M, C)
    objects: Tensor  # (B, K, M)
    known: Tensor  # (B, K, M)


@dataclass(frozen=True)
class Clustered(Encoding):
    """Unit features of queries, as they are and debiased, and the clusters of the former."""

    features: Tensor  # (B, C, h, w)
    debiased: Tensor  # (B, C, h, w)
    clusters: Tensor  # (B, h, w) int64


@META_ARCH_REGISTRY.register()
class INSID3(TrainingFree):
    """Clusters of the query that resemble the object, around the one that resembles it most.

    Candidates are cells that are similar to the object's prototype and whose most similar support cell shows
    the object. The cluster among them that is most similar to the prototype is the seed. The score of a
    cluster is the product of its similarity to the prototype, its similarity to the seed, and its share of
    candidates. The mask is the union of the clusters above the threshold, and may be empty.
    """

    query_kind = Clustered
    least_threshold = 0.0  # clusters without candidates have a score of 0

    @configurable
    def __init__(
        self,
        *,
        backbone: FeatureBackbone,
        in_features: Sequence[str],
        temperature: float = 0.05,
        positional_rank: int = 0,
        cluster_similarity: float = 0.6,
        threshold: float = 0.2,
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
        require(-1 < cluster_similarity < 1, "cluster_similarity", cluster_similarity, "between -1 and 1")
        self.cluster_similarity = cluster_similarity
        self.threshold = at_least("threshold", threshold, 0)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments from MODEL.INSID3 and the backbone's keys."""
        c, key = cfg.MODEL.INSID3, "MODEL.INSID3"
        similarity = c.CLUSTER_SIMILARITY
        require(-1 < similarity < 1, f"{key}.CLUSTER_SIMILARITY", similarity, "between -1 and 1")
        arguments = cls.shared_arguments(cfg, "INSID3")
        return {
            **arguments,
            "positional_rank": cls._rank(cfg, "INSID3", arguments),
            "cluster_similarity": similarity,
            "threshold": at_least(f"{key}.THRESHOLD", c.THRESHOLD, 0),
        }

    def _encode_shots(self, maps: Maps, masks: Tensor) -> References:
        cells = maps[DEBIASED].unflatten(0, masks.shape[:2])
        return References(cells, *object_and_known(masks, cells.shape[-2:]))

    def _fit(self, encoded: References, channels: Tensor | None) -> Prompt:
        cells = restrict(encoded.cells, channels).flatten(3).transpose(2, 3)  # (B, K, M, C)
        objects, known = encoded.objects.flatten(2), encoded.known.flatten(2)
        return Prompt(mean_prototype(cells, objects), cells, objects, known)

    def _encode_query(self, features: Maps) -> Clustered:
        unit = features[UNIT]
        return Clustered(unit, features[DEBIASED], average_linkage(unit, self.cluster_similarity))

    def _planes(self, query: Clustered, support: Prompt, channels: Tensor | None) -> Tensor:
        """The score of each cell's cluster, and whether the cell is a candidate: (B, 2, h, w)."""
        debiased, features = (
            restrict(maps, channels).flatten(2).transpose(1, 2) for maps in (query.debiased, query.features)
        )
        similarity = torch.einsum("bnc,bc->bn", debiased, support.prototype)
        votes = backward_votes(debiased, support.cells, support.objects, support.known)
        candidates = forward_cells(similarity) & (2 * votes >= support.cells.shape[1])
        scores = cluster_scores(
            debiased, features, query.clusters.flatten(1), similarity, candidates.float(), support.prototype
        )
        return torch.stack([scores, candidates.float()], dim=1).unflatten(2, query.clusters.shape[-2:])

    def _lead(self, planes: Tensor) -> Tensor:
        return planes[:, 0]

    def _output(
        self, planes: Tensor, threshold: Tensor, temperature: Tensor, size: tuple[int, int]
    ) -> Output:
        """The mask is that of the code: the union of clusters, resized, above 0.5.

        The sure lead of a pixel is how far the scores around it are from the threshold.
        """
        lead = planes[:, 0] - threshold.view(-1, 1, 1)
        mask = (lead > 0).float()
        mask, sure = resize(torch.stack([mask, lead.abs()], dim=1), size, align_corners=False).unbind(dim=1)
        half = (mask - 0.5) * sure / temperature.view(-1, 1, 1)
        maps = {"score": planes[:, :1], "candidates": planes[:, 1:]}
        return Output(torch.stack([-half, half], dim=1), maps=maps)


def object_and_known(masks: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The cells of masks (B, K, H, W) that show the object, and those not marked 255: (B, K, h, w) bool."""
    objects = grid_mask(masks == 1, size)
    marked = F.interpolate((masks == 255).float(), tuple(size), mode="bilinear", align_corners=False) > 0.5
    return objects, objects | ~marked


def mean_prototype(cells: Tensor, objects: Tensor) -> Tensor:
    """The object's unit prototype (B, C): mean over the supports of each one's mean cell.

    Args:
        cells: (B, K, M, C).
        objects: (B, K, M) bool; a support without the object counts for nothing.
    """
    weights = objects.to(cells.dtype)
    means = torch.einsum("bkm,bkmc->bkc", weights, cells) / weights.sum(dim=2).clamp(min=1)[..., None]
    return F.normalize(means.sum(dim=1) / objects.any(dim=2).sum(dim=1).clamp(min=1)[:, None], dim=1)


def cluster_scores(
    debiased: Tensor,
    features: Tensor,
    labels: Tensor,
    similarity: Tensor,
    candidates: Tensor,
    prototype: Tensor,
) -> Tensor:
    """The score (B, N) of the cluster of each cell; zeros without candidates.

    Args:
        debiased, features: (B, N, C) unit vectors.
        labels: (B, N), clusters of the cells.
        similarity: (B, N) of the cells to the prototype.
        candidates: (B, N) in {0, 1}.
        prototype: (B, C), of the debiased features.
    """
    cells = torch.stack([candidates, similarity], dim=2)
    share, cross = cluster_means(cells, labels).unbind(dim=2)  # (B, N), by number of the cluster
    centres = F.normalize(cluster_means(debiased, labels), dim=2)
    nearness = torch.einsum("bkc,bc->bk", centres, prototype).masked_fill(share == 0, -torch.inf)
    seed = nearness.argmax(dim=1, keepdim=True)  # (B, 1)
    means = F.normalize(cluster_means(features, labels), dim=2)
    chosen = means.gather(1, seed[..., None].expand(-1, 1, means.shape[2]))[:, 0]
    intra = torch.einsum("bkc,bc->bk", means, chosen)
    seeded = share.scatter(1, seed, 1.0) * candidates.amax(dim=1, keepdim=True)
    return (cross * intra * seeded).gather(1, labels)
