"""MM-Former: segment everything first, then choose with the supports (Jiao et al., NeurIPS 2022)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from fss_d2.modeling.backbone import STAGES, FeatureBackbone
from fss_d2.modeling.build import build_few_shot_backbone
from fss_d2.modeling.keys import at_least, choose, config_keys, require
from fss_d2.modeling.layers import resize, soft_iou, two_channel_dice
from fss_d2.modeling.layers.alignment import CROSS_ALIGNMENTS, CrossAlignment, channel_weights, self_alignment
from fss_d2.modeling.proposals.criterion import ProposalCriterion
from fss_d2.modeling.proposals.head import MaskPredictions, ProposalHead
from fss_d2.modeling.proposals.pixel_decoder import LEVELS

from .contract import Encoding, Output, Target
from .few_shot import Episode, FewShotSegmentor, Maps, SegmentorOptions
from .proposal_segmenter import check_unused_losses, proposal_criterion_arguments, proposal_head_arguments

__all__ = [
    "MMFormer",
    "MaskMatching",
    "Matching",
    "contrastive_loss",
    "fuse_masks",
    "pool_masks",
    "standardized",
]

_LEAST_DOUBT = 1e-6  # a mask of exactly 0 or 1 has no logit to change

FEATURES = ("backbone", "pixel_decoder")
_ALIGNED = ("features", "gates", "masks", "memory", "positions")  # fields of `ShotEncoding` by level


@config_keys
def add_keys(cfg: CfgNode) -> None:
    """Add the keys of MM-Former (Jiao et al., NeurIPS 2022), stage 2: the mask matching module."""
    cfg.MODEL.MM_FORMER = CfgNode()
    # Table 3b: features matched, "backbone" (before MSDeformAttn) or "pixel_decoder" (after it).
    cfg.MODEL.MM_FORMER.FEATURES = "backbone"
    cfg.MODEL.MM_FORMER.SELF_ALIGNMENT = True  # Table 3a: SA
    # Table 3a: CA "learned", "parameter_free" (CA*) or "none".
    cfg.MODEL.MM_FORMER.CROSS_ALIGNMENT = "learned"
    # Table 3a: LM; False takes the proposal most similar to the support.
    cfg.MODEL.MM_FORMER.LEARNABLE_MATCHING = True
    cfg.MODEL.MM_FORMER.DIM = 256  # channels of the aligned features
    cfg.MODEL.MM_FORMER.NUM_HEADS = 4
    cfg.MODEL.MM_FORMER.NUM_LAYERS = 2
    cfg.MODEL.MM_FORMER.FEEDFORWARD = 512
    # Not in the paper: similarities reach the matching network with mean 0 and deviation 1 in each image.
    cfg.MODEL.MM_FORMER.STANDARDIZE_SIMILARITY = False
    cfg.MODEL.MM_FORMER.MATCHING_WIDTH = 500  # hidden units of the matching MLP
    cfg.MODEL.MM_FORMER.MEMORY_SIDE = 15  # shorter side of the maps attended to, pixels
    cfg.MODEL.MM_FORMER.DICE_WEIGHT = 10.0  # lambda_1, of the fused mask's Dice loss
    cfg.MODEL.MM_FORMER.CONTRASTIVE_WEIGHT = 6.0  # lambda_2, of L_co (Eq. 5); 0 leaves it out
    # Table 3c: False freezes the proposal segmenter (stage 2), True trains both together (end to end).
    cfg.MODEL.MM_FORMER.TRAIN_PROPOSALS = False


@dataclass(frozen=True)
class ShotEncoding(Encoding):
    """Of each support; a prototype without cross-alignment, else the other fields, by level."""

    prototype: Tensor | None = None  # (B, K, levels * dim)
    features: dict[str, Tensor] = field(default_factory=dict)  # (B, K, dim, h, w), zero outside the object
    gates: dict[str, Tensor] = field(default_factory=dict)  # (B, K, h, w), the mask that made them so
    masks: dict[str, Tensor] = field(default_factory=dict)  # (B, K, h, w), the mask that pools them
    memory: dict[str, Tensor] = field(default_factory=dict)  # (B, K, dim, h', w'), what queries attend to
    positions: dict[str, Tensor] = field(default_factory=dict)  # as memory


@dataclass(frozen=True)
class QueryEncoding(Encoding):
    """Of each query: level -> (B, dim, h, w) features to match, and soft masks (B, N, h, w) of proposals."""

    embedded: dict[str, Tensor]
    proposals: Tensor


@dataclass(frozen=True)
class TrainedQueryEncoding(QueryEncoding):
    """With the predictions of every decoder layer, for the losses of the proposals."""

    predictions: MaskPredictions | None = None


@dataclass(frozen=True)
class Matching:
    """How N proposals of each of B queries compare with the supports."""

    query: Tensor  # (B, N, C) prototypes of the proposals, averaged over the supports
    support: Tensor  # (B, C) prototype of the object, averaged over the supports
    similarity: Tensor  # (B, N) cosines of the two, in [-1, 1]
    coefficients: Tensor  # (B, N) weights of the proposals in the result; unbounded


@dataclass(frozen=True)
class MMFormerOutput(Output):
    """With what the losses read."""

    proposals: Tensor | None = None  # (B, N, h, w) soft masks
    matching: Matching | None = None  # the similarities behind the logits
    predictions: MaskPredictions | None = None  # of every decoder layer, where proposals are trained

    def probability(self) -> Tensor:
        """(B, H, W): the fused mask, in [0, 1]; the logits are 1 - mask and mask, not logarithms."""
        return self.logits[:, 1].float().clamp(0, 1)

    def log_probability(self) -> Tensor:
        """As in the base class, of the fused mask."""
        mask = self.probability()
        return torch.stack([1 - mask, mask], dim=1).clamp(min=1e-7).log()

    def lowered(self, by: Tensor) -> Self:
        """The output whose mask has its probability's logit lowered by (B, H, W)."""
        certain = 1 - _LEAST_DOUBT
        lead = self.logits[:, 1].float().clamp(_LEAST_DOUBT, certain).logit() - by
        mask = lead.sigmoid().to(self.logits.dtype)
        return replace(self, logits=torch.stack([1 - mask, mask], dim=1))


class MaskMatching(nn.Module):
    """From features and proposals to one coefficient per proposal (MM-Former, Sec. 2.3).

    Any map size works, and supports may differ in size from the query. Where neither cross-alignment nor
    matching is learned, features are matched at their own channels, without projection: the paper's heuristic
    baseline and its parameter-free rows (Table 3a). Supports' features are set to zero outside the object for
    cross-alignment, as in the reference code; without it the mask enters in the prototype only.
    """

    def __init__(
        self,
        channels: Mapping[str, int],  # level -> channels, in the order in which prototypes are joined
        *,
        num_proposals: int = 100,  # N, inputs and outputs of the matching network
        dim: int = 256,
        num_heads: int = 4,  # this and the next two: see `CrossAlignment`, also memory_side
        num_layers: int = 2,
        feedforward: int = 512,
        width: int = 500,  # hidden units of the matching network
        memory_side: int = 15,
        self_alignment: bool = True,
        cross_alignment: str = "learned",
        # False: 1 for the proposal most similar to the support, 0 for others.
        learnable_matching: bool = True,
        standardize: bool = False,  # unscaled similarities are close together; a short training ignores them
    ) -> None:
        """See also the keys of MODEL.MM_FORMER above. Raises ValueError for settings that do not fit."""
        super().__init__()
        choose("cross_alignment", cross_alignment, (*CROSS_ALIGNMENTS, "none"))
        self.levels = tuple(channels)
        self.self_alignment, self.cross_alignment = self_alignment, cross_alignment
        self.learnable_matching, self.standardize = learnable_matching, standardize
        self.reduce, self.align = nn.ModuleDict(), nn.ModuleDict()
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

    def embed(self, features: Maps) -> dict[str, Tensor]:
        """Self-align and project: level -> (B, C, h, w) to level -> (B, dim, h, w), of our levels alone."""
        embedded = {}
        for level in self.levels:
            x = self_alignment(features[level]) if self.self_alignment else features[level]
            embedded[level] = self.reduce[level](x) if self.reduce else x
        return embedded

    def encode(self, features: Maps, masks: Tensor) -> ShotEncoding:
        """Encode N supports.

        The features are level -> (N, C, h, w); in the masks (N, H, W) 1 is object, anything else (255 too)
        background. The fields of the result are (N, ...) each.
        """
        masks = (masks == 1).float()[:, None]
        parts: dict[str, dict[str, Tensor]] = {name: {} for name in _ALIGNED}
        pooled = []
        for level, x in self.embed(features).items():
            mask = resize(masks, x.shape[-2:])  # (N, 1, h, w)
            if not self.align:
                pooled.append(pool_masks(x, mask, 1e-7)[:, 0])
                continue
            gate = resize(masks, x.shape[-2:], align_corners=False)
            x = x * gate
            memory, positions = self.align[level].support_memory(x, gate[:, 0])
            for name, tensor in zip(_ALIGNED, (x, gate[:, 0], mask[:, 0], memory, positions), strict=True):
                parts[name][level] = tensor
        return ShotEncoding(**parts) if self.align else ShotEncoding(prototype=torch.cat(pooled, dim=1))

    def forward(self, embedded: Maps, proposals: Tensor, support: ShotEncoding) -> Matching:
        """Compare proposals, soft masks (B, N, h, w) in [0, 1], with supports, (B, K, ...) each.

        ``embedded`` is what `embed` gave for the queries.
        """
        query, prototypes = self.prototypes(embedded, proposals, support)
        similarity = F.cosine_similarity(query, prototypes[:, None], dim=2)  # Eq. 4
        if self.learnable_matching:
            known = standardized(similarity) if self.standardize else similarity
            coefficients = self.fc2(self.fc1(known).relu())
        else:
            coefficients = F.one_hot(similarity.argmax(dim=1), similarity.shape[1]).to(similarity.dtype)
        return Matching(query, prototypes, similarity, coefficients)

    def prototypes(self, embedded: Maps, proposals: Tensor, support: ShotEncoding) -> tuple[Tensor, Tensor]:
        """Prototypes of proposals (B, N, levels * dim) and object (B, levels * dim): means over supports."""
        if self.align:
            pairs = [self._aligned(level, x, support) for level, x in embedded.items()]
            embedded = {level: query for level, (query, _) in zip(embedded, pairs, strict=True)}
            prototype = torch.cat([part for _, part in pairs], dim=1)
        else:
            prototype = support.prototype.mean(dim=1)
        pooled = [pool_masks(x, resize(proposals, x.shape[-2:])) for x in embedded.values()]
        return torch.cat(pooled, dim=2), prototype

    def _aligned(self, level: str, query: Tensor, support: ShotEncoding) -> tuple[Tensor, Tensor]:
        """Aligned query features (B, dim, h, w) and the object's prototype (B, dim): means over supports.

        The mean of the features gives the mean of the prototypes: pooling is linear in them.
        """
        kept = [getattr(support, name)[level] for name in _ALIGNED]
        B, K = kept[0].shape[:2]
        maps, gate, mask, memory, positions = (t.flatten(0, 1) for t in kept)
        aligned, objects = self.align[level](query, maps, gate, (memory, positions))
        pooled = pool_masks(objects, mask[:, None], 1e-7)[:, 0]
        return aligned.unflatten(0, (B, K)).mean(dim=1), pooled.unflatten(0, (B, K)).mean(dim=1)


def pool_masks(features: Tensor, masks: Tensor, epsilon: float = 0.0) -> Tensor:
    """Mean feature under each soft mask, ``sum(F M) / (sum(M) + epsilon)``; zeros under an empty one.

    Features (B, C, h, w) and masks (B, N, h, w) in [0, 1] to (B, N, C). The reference code adds 1e-7 to the
    area for supports, 0 for proposals.
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
    """Weighted sum of soft masks, ``sum_n c_n M_n`` (MM-Former, Eq. 4), resized to ``size`` (H, W).

    Coefficients (B, N) and masks (B, N, h, w) to (B, H, W), unbounded.
    """
    fused = (coefficients.float()[:, :, None, None] * masks).sum(dim=1, keepdim=True)
    return resize(fused, size, align_corners=False)[:, 0]  # resizing is linear: one map instead of N


def contrastive_loss(similarity: Tensor, iou: Tensor, counts: Tensor | None = None) -> Tensor:
    """Raise the similarity of the best proposal and lower that of the worst (MM-Former, Eq. 5, L_co).

    From the similarities (B, N) and IoUs (B, N) of the proposals with the truth: the mean over the images of
    ``-(log S_pos + log(1 - S_neg)) / 2``. Similarities of an image are first scaled to [0, 1]; logarithms
    are at least -100 (as in torch's binary cross entropy), and a saturated one has no gradient. Only images
    of ``counts`` (B,) bool count, as without an object no proposal is the best; None = all.
    """
    similarity = similarity.float()
    low, high = similarity.amin(dim=1, keepdim=True), similarity.amax(dim=1, keepdim=True)
    scaled = (similarity - low) / (high - low + 1e-8)
    positive = scaled.gather(1, iou.argmax(dim=1, keepdim=True))
    negative = 1 - scaled.gather(1, iou.argmin(dim=1, keepdim=True))
    chances = torch.cat([positive, negative], dim=1)  # (B, 2)
    logs = chances.clamp(min=torch.finfo(chances.dtype).tiny).log()
    logs = torch.where(chances > 0, logs, -100.0)
    return -logs.mean() if counts is None else -(logs.mean(dim=1) * counts).sum() / counts.sum().clamp(min=1)


@META_ARCH_REGISTRY.register()
class MMFormer(FewShotSegmentor):
    """Proposals of the query, weighted by how well each matches the supports.

    Stage 2 of its training: backbone and proposal segmenter (`PotentialObjectsSegmenter`, stage 1) are
    frozen, and the matching is trained by "loss_fewshot", the reference code's two-channel Dice of the fused
    mask, and "loss_co", L_co (Eq. 5). With ``train_proposals`` both parts are trained together (Table 3c)
    and the losses of `ProposalCriterion` are added, without stage 1's own few-shot term.

    Without learnable matching (Table 3a) the result is one proposal: "loss_fewshot" is its Dice and has no
    gradient for the alignment, which L_co alone trains. Without learned alignment as well only the proposals
    can be trained, and `trainable` is False where they are frozen.

    Pixels marked 255 are background in losses and supports, as in the reference code.
    """

    starts_without = ("matching.",)  # a training may start from stage 1, which has no matching

    @configurable
    def __init__(
        self,
        *,
        backbone: FeatureBackbone,  # gives res2 to res5
        head: Mapping[str, Any] | None = None,  # for `ProposalHead`, but the input shape
        criterion: Mapping[str, Any] | None = None,  # for `ProposalCriterion`, used with train_proposals
        matching: Mapping[str, Any] | None = None,  # for `MaskMatching`, but channels and number of proposals
        features: str = "backbone",
        train_proposals: bool = False,
        mask_weight: float = 10.0,
        contrastive_weight: float = 6.0,
        options: SegmentorOptions | None = None,
    ) -> None:
        """See also the keys of MODEL.MM_FORMER above.

        In the options, corners are aligned and ignored pixels are background in any case, and the weights of
        other losses are not used. Raises ValueError for unknown features or numbers that do not go together,
        KeyError for a stage that the backbone lacks.
        """
        choose("features", features, FEATURES)
        options = replace(options or SegmentorOptions(), ignore_as_background=True, align_corners=True)
        super().__init__(backbone, options)
        backbone.select(STAGES)
        shapes = backbone.output_shape()
        self.proposals = ProposalHead(shapes, **(head or {}))
        query_embed = self.proposals.predictor.query_embed
        decoded = features == "pixel_decoder"
        self.matching = MaskMatching(
            {level: query_embed.embedding_dim if decoded else shapes[level].channels for level in LEVELS},
            num_proposals=query_embed.num_embeddings,
            **(matching or {}),
        )
        self.features, self.train_proposals = features, train_proposals
        self.mask_weight, self.contrastive_weight = mask_weight, contrastive_weight
        self.criterion = ProposalCriterion(**(criterion or {})) if train_proposals else None
        if not train_proposals:
            self.proposals.requires_grad_(False)
        if not self.matching.learnable_matching and not contrastive_weight:
            self.matching.requires_grad_(False)  # nothing gives the alignment a gradient

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments from MODEL.MM_FORMER, MODEL.PROPOSALS, and the backbone's keys."""
        c = cfg.MODEL.MM_FORMER
        check_unused_losses(cfg, "MODEL.MM_FORMER.DICE_WEIGHT and CONTRASTIVE_WEIGHT")
        weights = [
            at_least(f"MODEL.MM_FORMER.{k}_WEIGHT", c[f"{k}_WEIGHT"], 0) for k in ("DICE", "CONTRASTIVE")
        ]
        return {
            "backbone": build_few_shot_backbone(cfg, own_decoder=True),
            "head": proposal_head_arguments(cfg),
            "criterion": proposal_criterion_arguments(cfg),
            "features": choose("MODEL.MM_FORMER.FEATURES", c.FEATURES, FEATURES),
            "train_proposals": c.TRAIN_PROPOSALS,
            "mask_weight": weights[0],
            "contrastive_weight": weights[1],
            "matching": _matching_arguments(cfg),
            "options": SegmentorOptions.from_config(cfg),
        }

    def train(self, mode: bool = True) -> Self:
        """Set the mode; frozen proposals stay in eval mode."""
        super().train(mode)
        if not self.train_proposals:
            self.proposals.eval()
        return self

    def propose(self, features: Maps) -> MaskPredictions:
        """Proposals from backbone features; without gradient if they are frozen."""
        with self._proposal_gradient():
            return self.proposals(features)

    def _proposal_gradient(self) -> torch.set_grad_enabled:
        return torch.set_grad_enabled(torch.is_grad_enabled() and self.train_proposals)

    @property
    def frozen_parts(self) -> dict[str, nn.Module]:
        """The backbone, and proposals that are not trained."""
        proposals = {} if self.train_proposals else {f"proposals, {self.features}": self.proposals}
        return super().frozen_parts | proposals

    def stored_maps(self, images: Tensor) -> dict[str, Tensor]:
        """The backbone's maps, and what comes of them in proposals that are not trained."""
        features = super().stored_maps(images)
        return features if self.train_proposals else features | self._proposed(self.propose(features))

    def _proposed(self, predictions: MaskPredictions) -> dict[str, Tensor]:
        """ "proposals", their logits (B, N, h, w), and decoded maps if these are matched."""
        decoded = self._decoded(predictions.levels) if self.features == "pixel_decoder" else {}
        return {"proposals": predictions.masks[-1], **decoded}

    @staticmethod
    def _decoded(maps: Sequence[Tensor]) -> dict[str, Tensor]:
        return {f"pixel_decoder.{level}": x for level, x in zip(LEVELS, maps, strict=True)}

    def _matched(self, features: Maps) -> dict[str, Tensor]:
        """The maps that are matched, by level."""
        prefix = "pixel_decoder." if self.features == "pixel_decoder" else ""
        return {level: features[prefix + level] for level in LEVELS}

    @torch.no_grad()
    def channel_weights(self, images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """What self-alignment sees of images (B, 3, H, W), 0 to 255, and its weights (Fig. 5).

        Returns level -> features (B, C, h, w) and weights (B, C). Raises ValueError without self-alignment.
        """
        if not self.matching.self_alignment:
            raise ValueError("there is no self-alignment: set MODEL.MM_FORMER.SELF_ALIGNMENT True")
        features = self.extract(self.normalise(images))
        if self.features == "pixel_decoder":
            features = self._decoded(self.proposals.decode_pixels(features)[1])
        return {level: (x, channel_weights(x)) for level, x in self._matched(features).items()}

    def _encode_support(self, features: Maps, masks: Tensor) -> ShotEncoding:
        if self.features == "pixel_decoder" and "proposals" not in features:
            with self._proposal_gradient():
                features = self._decoded(self.proposals.decode_pixels(features)[1])
        encoded = self.matching.encode(self._matched(features), masks.flatten(0, 1))
        return encoded.map(lambda t: t.unflatten(0, masks.shape[:2]))

    def _encode_query(self, features: Maps) -> QueryEncoding:
        predictions = None
        if "proposals" not in features:
            predictions = self.propose(features)
            features = {**features, **self._proposed(predictions)}
        proposals = features["proposals"].float().sigmoid()  # (B, N, h, w)
        encoded = QueryEncoding(self.matching.embed(self._matched(features)), proposals)
        trained = self.training and self.train_proposals
        return TrainedQueryEncoding(**vars(encoded), predictions=predictions) if trained else encoded

    def _match(self, query: QueryEncoding, support: ShotEncoding, size: tuple[int, int]) -> MMFormerOutput:
        matching = self.matching(query.embedded, query.proposals, support)
        fused = fuse_masks(matching.coefficients, query.proposals, size)
        maps = {
            "proposals": query.proposals,
            "similarity": matching.similarity[:, :, None, None],
            "coefficients": matching.coefficients[:, :, None, None],
        }
        return MMFormerOutput(
            torch.stack([1 - fused, fused], dim=1),
            maps,
            proposals=query.proposals,
            matching=matching,
            predictions=getattr(query, "predictions", None),
        )

    def _target(self, episodes: list[Episode]) -> Target:
        for episode in episodes if self.train_proposals else ():
            if "segments" not in episode:
                raise ValueError(
                    f"episode {episode.get('episode_index', '?')}: no 'segments' to train proposals on; set "
                    "INPUT.SEGMENTS to 'semantic' or 'instance', or MODEL.MM_FORMER.TRAIN_PROPOSALS to False"
                )
        return super()._target(episodes)

    def losses(self, output: MMFormerOutput, target: Target) -> dict[str, Tensor]:
        """ "loss_fewshot", "loss_co", and those of the proposals where they are trained; see the class."""
        losses = {"loss_fewshot": self.mask_weight * two_channel_dice(output.logits.float(), target.mask)}
        if self.contrastive_weight:
            size = target.mask.shape[-2:]
            proposals = resize(output.proposals.detach(), size, align_corners=False)
            iou = soft_iou(proposals, target.mask)
            counts = target.shows_object if self.negatives else None
            contrast = contrastive_loss(output.matching.similarity, iou, counts)
            losses["loss_co"] = self.contrastive_weight * contrast
        if self.criterion is not None:
            labels = target.labels if output.predictions.classes else None
            losses |= self.criterion(output.predictions, target.segments, labels)
        return losses

    def _untrainable(self) -> str:
        return (
            "MMFormer is training-free with these settings: evaluate it, or set "
            "MODEL.MM_FORMER.LEARNABLE_MATCHING True, or CROSS_ALIGNMENT learned and CONTRASTIVE_WEIGHT "
            "above 0"
        )


def _matching_arguments(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of `MaskMatching` from MODEL.MM_FORMER, all but the channels and the number of proposals."""
    c = cfg.MODEL.MM_FORMER
    counts = ("DIM", "NUM_HEADS", "NUM_LAYERS", "FEEDFORWARD", "MATCHING_WIDTH", "MEMORY_SIDE")
    dim, heads, layers, feedforward, width, side = (
        at_least(f"MODEL.MM_FORMER.{key}", c[key], 1) for key in counts
    )
    kind = choose("MODEL.MM_FORMER.CROSS_ALIGNMENT", c.CROSS_ALIGNMENT, (*CROSS_ALIGNMENTS, "none"))
    if kind == "learned":
        rule = f"a multiple of 4 (position codes) and of MODEL.MM_FORMER.NUM_HEADS {heads}"
        require(dim % 4 == 0 and dim % heads == 0, "MODEL.MM_FORMER.DIM", dim, rule)
    return {
        "dim": dim,
        "num_heads": heads,
        "num_layers": layers,
        "feedforward": feedforward,
        "width": width,
        "memory_side": side,
        "self_alignment": c.SELF_ALIGNMENT,
        "cross_alignment": kind,
        "learnable_matching": c.LEARNABLE_MATCHING,
        "standardize": c.STANDARDIZE_SIMILARITY,
    }
