"""MM-Former's second stage: which proposals show what the supports show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fss_d2.modeling.layers import resize
from fss_d2.modeling.layers.alignment import CROSS_ALIGNMENTS, CrossAlignment, self_alignment

__all__ = ["MaskMatching", "Matching", "contrastive_loss", "fuse_masks", "pool_masks", "standardized"]

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Matching:
    """How N proposals of each of B queries compare with the supports.

    Attributes:
        query: (B, N, C) prototypes of the proposals, averaged over the supports.
        support: (B, C) prototype of the object, averaged over the supports.
        similarity: (B, N) cosines of the two, in [-1, 1].
        coefficients: (B, N) weights of the proposals in the result; unbounded.
    """

    query: Tensor
    support: Tensor
    similarity: Tensor
    coefficients: Tensor


class MaskMatching(nn.Module):
    """From features and proposals to one coefficient a proposal (MM-Former, Sec. 2.3).

    What depends on the supports alone is done in `encode`. Any map size works, and supports may differ in
    size from the query. Where neither cross-alignment nor matching is learned, features are matched at their
    own channels, without projection: the paper's heuristic baseline and its parameter-free rows (Table 3a).
    Supports' features are set to zero outside the object for cross-alignment, as in the reference code;
    without cross-alignment the mask enters in the prototype alone.
    """

    def __init__(
        self,
        channels: Mapping[str, int],
        *,
        num_proposals: int = 100,
        dim: int = 256,
        num_heads: int = 4,
        num_layers: int = 2,
        feedforward: int = 512,
        width: int = 500,
        memory_side: int = 15,
        self_alignment: bool = True,
        cross_alignment: str = "learned",
        learnable_matching: bool = True,
        standardize: bool = False,
    ) -> None:
        """
        Args:
            channels: level -> channels of its features, in the order in which prototypes are joined.
            num_proposals: N, inputs and outputs of the matching network.
            dim: channels that features are projected to.
            num_heads, num_layers, feedforward, memory_side: see `CrossAlignment`.
            width: hidden units of the matching network.
            self_alignment: weigh the channels first (Table 3a, SA).
            cross_alignment: "learned", "parameter_free" (CA*) or "none" (Table 3a, CA).
            learnable_matching: learn the coefficients (Table 3a, LM); otherwise the proposal most similar to
                the support gets 1, the others 0.
            standardize: give the matching network an image's similarities with mean 0 and deviation 1 (not in
                the paper). As they are they lie close together, and a short training learns to ignore them.

        Raises:
            ValueError: unknown cross-alignment, or heads that do not divide ``dim``.
        """
        super().__init__()
        if cross_alignment not in (*CROSS_ALIGNMENTS, "none"):
            choices = ", ".join((*CROSS_ALIGNMENTS, "none"))
            raise ValueError(
                f"unknown MODEL.MM_FORMER.CROSS_ALIGNMENT {cross_alignment!r}: choose from {choices}"
            )
        self.levels = tuple(channels)
        self.self_alignment = self_alignment
        self.cross_alignment = cross_alignment
        self.learnable_matching = learnable_matching
        self.standardize = standardize
        self.reduce = nn.ModuleDict()
        self.align = nn.ModuleDict()
        projected = learnable_matching or cross_alignment == "learned"
        for level, width_in in channels.items():
            if projected:
                self.reduce[level] = nn.Conv2d(width_in, dim, 1, bias=False)
            if cross_alignment != "none":
                self.align[level] = CrossAlignment(
                    dim if projected else width_in,
                    num_heads=num_heads,
                    num_layers=num_layers,
                    feedforward=feedforward,
                    memory_side=memory_side,
                    kind=cross_alignment,
                )
        if learnable_matching:
            self.fc1 = nn.Linear(num_proposals, width)
            self.fc2 = nn.Linear(width, num_proposals)

    def embed(self, features: Tensors) -> dict[str, Tensor]:
        """Self-align and project: level -> (B, C, h, w) to level -> (B, dim, h, w), of our levels alone."""
        embedded = {}
        for level in self.levels:
            x = self_alignment(features[level]) if self.self_alignment else features[level]
            embedded[level] = self.reduce[level](x) if self.reduce else x
        return embedded

    def encode(self, features: Tensors, masks: Tensor) -> dict[str, Tensor]:
        """Do for N supports what needs no query.

        Args:
            features: level -> (N, C, h, w).
            masks: (N, H, W), 1 object, anything else (255 too) background.

        Returns:
            Without cross-alignment "prototype" (N, levels * dim). Otherwise for each level
            "features.<level>" (N, dim, h, w) zero outside the object, "gate.<level>" (N, h, w) the mask that
            made it so, "mask.<level>" (N, h, w) the mask that pools it, "memory.<level>" and
            "position.<level>" (N, dim, h', w') what queries attend to.
        """
        masks = (masks == 1).float()[:, None]
        encoded, pooled = {}, []
        for level, x in self.embed(features).items():
            mask = resize(masks, x.shape[-2:])  # (N, 1, h, w)
            if not self.align:
                pooled.append(pool_masks(x, mask, 1e-7)[:, 0])
                continue
            gate = resize(masks, x.shape[-2:], align_corners=False)
            encoded[f"features.{level}"] = x = x * gate
            encoded[f"gate.{level}"], encoded[f"mask.{level}"] = gate[:, 0], mask[:, 0]
            memory, positions = self.align[level].support_memory(x, gate[:, 0])
            encoded[f"memory.{level}"], encoded[f"position.{level}"] = memory, positions
        return encoded if self.align else {"prototype": torch.cat(pooled, dim=1)}

    def forward(self, features: Tensors, proposals: Tensor, support: Tensors) -> Matching:
        """Compare proposals with supports.

        Args:
            features: level -> (B, C, h, w) of the queries.
            proposals: (B, N, h, w) soft masks in [0, 1].
            support: what `encode` gave, each (B, K, ...).
        """
        query, prototypes = self.prototypes(features, proposals, support)
        similarity = F.cosine_similarity(query, prototypes[:, None], dim=2)  # Eq. 4
        if self.learnable_matching:
            known = standardized(similarity) if self.standardize else similarity
            coefficients = self.fc2(self.fc1(known).relu())
        else:
            coefficients = F.one_hot(similarity.argmax(dim=1), similarity.shape[1]).to(similarity.dtype)
        return Matching(query, prototypes, similarity, coefficients)

    def prototypes(self, features: Tensors, proposals: Tensor, support: Tensors) -> tuple[Tensor, Tensor]:
        """Prototypes of proposals (B, N, levels * dim) and object (B, levels * dim): means over supports."""
        embedded = self.embed(features)
        if self.align:
            pairs = [self._aligned(level, x, support) for level, x in embedded.items()]
            embedded = {level: query for level, (query, _) in zip(embedded, pairs, strict=True)}
            prototype = torch.cat([part for _, part in pairs], dim=1)
        else:
            prototype = support["prototype"].mean(dim=1)
        pooled = [pool_masks(x, resize(proposals, x.shape[-2:])) for x in embedded.values()]
        return torch.cat(pooled, dim=2), prototype

    def _aligned(self, level: str, query: Tensor, support: Tensors) -> tuple[Tensor, Tensor]:
        """Aligned query features (B, dim, h, w) and the object's prototype (B, dim): means over supports.

        The mean of the features gives the mean of the prototypes: pooling is linear in them.
        """
        parts = ("features", "gate", "mask", "memory", "position")
        kept = [support[f"{part}.{level}"] for part in parts]
        B, K = kept[0].shape[:2]
        maps, gate, mask, memory, positions = (t.flatten(0, 1) for t in kept)
        aligned, objects = self.align[level](query, maps, gate, (memory, positions))
        pooled = pool_masks(objects, mask[:, None], 1e-7)[:, 0]
        return aligned.unflatten(0, (B, K)).mean(dim=1), pooled.unflatten(0, (B, K)).mean(dim=1)


def pool_masks(features: Tensor, masks: Tensor, epsilon: float = 0.0) -> Tensor:
    """Mean feature under each soft mask, ``sum(F M) / (sum(M) + epsilon)``; zeros under an empty one.

    Args:
        features: (B, C, h, w).
        masks: (B, N, h, w) in [0, 1].
        epsilon: added to the area (reference code: 1e-7 for supports, 0 for proposals).

    Returns:
        (B, N, C).
    """
    # In float32: cosines of one image's proposals differ by less than half precision resolves.
    with torch.autocast(features.device.type, enabled=False):
        masks, features = masks.float(), features.float()
        weights = masks / (masks.sum(dim=(2, 3), keepdim=True) + epsilon).clamp(min=1e-30)
        return torch.einsum("bnhw,bchw->bnc", weights, features)


def standardized(similarity: Tensor) -> Tensor:
    """Similarities (B, N) with mean 0 and deviation 1 over the proposals of an image."""
    deviation, mean = torch.std_mean(similarity, dim=1, keepdim=True)
    return (similarity - mean) / (deviation + 1e-6)


def fuse_masks(coefficients: Tensor, masks: Tensor, size: Sequence[int]) -> Tensor:
    """Weighted sum of soft masks, ``sum_n c_n M_n`` (MM-Former, Eq. 4), resized.

    Args:
        coefficients: (B, N).
        masks: (B, N, h, w).
        size: (H, W) of the result.

    Returns:
        (B, H, W), unbounded.
    """
    fused = (coefficients.float()[:, :, None, None] * masks).sum(dim=1, keepdim=True)
    return resize(fused, size, align_corners=False)[:, 0]  # resizing is linear: one map instead of N


def contrastive_loss(similarity: Tensor, iou: Tensor) -> Tensor:
    """Draw the similarity of the best proposal up and that of the worst down (MM-Former, Eq. 5, L_co).

    Similarities of an image are first scaled to [0, 1]; logarithms are at least -100 (as in torch's binary
    cross entropy), and a saturated one has no gradient.

    Args:
        similarity: (B, N).
        iou: (B, N) of the proposals with the truth.

    Returns:
        The mean over the images of ``-(log S_pos + log(1 - S_neg)) / 2``.
    """
    similarity = similarity.float()
    low, high = similarity.amin(dim=1, keepdim=True), similarity.amax(dim=1, keepdim=True)
    scaled = (similarity - low) / (high - low + 1e-8)
    positive = scaled.gather(1, iou.argmax(dim=1, keepdim=True))
    negative = 1 - scaled.gather(1, iou.argmin(dim=1, keepdim=True))
    chances = torch.cat([positive, negative], dim=1)  # (B, 2)
    logs = chances.clamp(min=torch.finfo(chances.dtype).tiny).log()
    return -torch.where(chances > 0, logs, -100.0).mean()
