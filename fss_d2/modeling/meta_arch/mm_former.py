"""MM-Former: segment everything first, then choose with the help of the supports."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from torch import Tensor
from typing_extensions import Self

from fss_d2.modeling.backbone.base import STAGES
from fss_d2.modeling.build import build_few_shot_backbone
from fss_d2.modeling.keys import config_keys
from fss_d2.modeling.layers import resize, soft_iou, two_channel_dice
from fss_d2.modeling.proposals.criterion import ProposalCriterion
from fss_d2.modeling.proposals.head import ProposalHead
from fss_d2.modeling.proposals.predictions import LEVELS, MaskPredictions

from .few_shot import Episode, FewShotSegmentor
from .mask_matching import MaskMatching, contrastive_loss, fuse_masks
from .proposal_segmenter import proposal_criterion_arguments, proposal_head_arguments
from .support import SupportSet

__all__ = ["MMFormer"]


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
    # Not in the paper: similarities reach the matching network with mean 0 and deviation 1 an image.
    cfg.MODEL.MM_FORMER.STANDARDIZE_SIMILARITY = False
    cfg.MODEL.MM_FORMER.MATCHING_WIDTH = 500  # hidden units of the matching MLP
    cfg.MODEL.MM_FORMER.MEMORY_SIDE = 15  # shorter side of the maps attended to, pixels
    cfg.MODEL.MM_FORMER.DICE_WEIGHT = 10.0  # lambda_1, of the fused mask's Dice loss
    cfg.MODEL.MM_FORMER.CONTRASTIVE_WEIGHT = 6.0  # lambda_2, of L_co (Eq. 5); 0 leaves it out
    # Table 3c: False freezes the proposal segmenter (stage 2), True trains both together (end to end).
    cfg.MODEL.MM_FORMER.TRAIN_PROPOSALS = False


FEATURES = ("backbone", "pixel_decoder")


@META_ARCH_REGISTRY.register()
class MMFormer(FewShotSegmentor):
    """Proposals of the query, weighted by how well each matches the supports (Jiao et al., NeurIPS 2022).

    Stage 2 of its training: backbone and proposal segmenter (`PotentialObjectsSegmenter`, stage 1) are
    frozen, and the matching is trained by "loss_fewshot", the reference code's two-channel Dice of the fused
    mask, and "loss_co", L_co (Eq. 5). With ``train_proposals`` both parts are trained together (Table 3c)
    and the losses of `ProposalCriterion` are added; of stage 1's own few-shot term there is no need.

    Without learnable matching (Table 3a) the result is one proposal: "loss_fewshot" is its Dice and has no
    gradient for the alignment, which L_co alone trains. Without learned alignment as well there is
    nothing to train but the proposals, and `trainable` is False where they are frozen.

    Pixels marked 255 are background in losses and supports, as in the reference code.

    Example:
        >>> model = build_model(cfg)  # MODEL.META_ARCHITECTURE: MMFormer, MODEL.WEIGHTS: of stage 1 or 2
        >>> support = model.encode_support(images, masks)  # (1, K, 3, H, W), (1, K, H, W)
        >>> scores = model.segment(queries, support)  # background is 1 - object; object unbounded
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: Mapping[str, Any] | None = None,
        criterion: Mapping[str, Any] | None = None,
        matching: Mapping[str, Any] | None = None,
        features: str = "backbone",
        train_proposals: bool = False,
        mask_weight: float = 10.0,
        contrastive_weight: float = 6.0,
        **image_model: Any,
    ) -> None:
        """
        Args:
            backbone: gives res2 to res5.
            head: arguments of `ProposalHead`, the input shape apart.
            criterion: arguments of `ProposalCriterion`, used with ``train_proposals``.
            matching: arguments of `MaskMatching`, the channels and the number of proposals apart.
            features: matched ones, "backbone" or "pixel_decoder" (before or after MSDeformAttn, Table 3b).
            train_proposals: train end to end (Table 3c).
            mask_weight: lambda_1, of the fused mask's Dice.
            contrastive_weight: lambda_2, of L_co; 0 leaves it out.
            image_model: see `ImageModel`.

        Raises:
            ValueError: unknown features, or numbers that do not go together.
            KeyError: the backbone lacks a stage.
        """
        if features not in FEATURES:
            raise ValueError(
                f"unknown MODEL.MM_FORMER.FEATURES {features!r}: choose from {', '.join(FEATURES)}"
            )
        super().__init__(backbone=backbone, ignore_as_background=True, align_corners=True, **image_model)
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
        self.features = features
        self.train_proposals = train_proposals
        self.mask_weight = mask_weight
        self.contrastive_weight = contrastive_weight
        self.criterion = ProposalCriterion(**(criterion or {})) if train_proposals else None
        if not train_proposals:
            self.proposals.requires_grad_(False)
        learnable = self.matching.learnable_matching, self.matching.cross_alignment
        self.trainable = _learns(train_proposals, *learnable, contrastive_weight)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments from MODEL.MM_FORMER, MODEL.PROPOSALS, and the backbone's keys."""
        c = cfg.MODEL.MM_FORMER
        return {
            **cls.image_arguments(cfg),
            "backbone": build_few_shot_backbone(cfg, own_decoder=True),
            "head": proposal_head_arguments(cfg),
            "criterion": proposal_criterion_arguments(cfg),
            "features": c.FEATURES,
            "train_proposals": c.TRAIN_PROPOSALS,
            "mask_weight": c.DICE_WEIGHT,
            "contrastive_weight": c.CONTRASTIVE_WEIGHT,
            "matching": {
                "dim": c.DIM,
                "num_heads": c.NUM_HEADS,
                "num_layers": c.NUM_LAYERS,
                "feedforward": c.FEEDFORWARD,
                "width": c.MATCHING_WIDTH,
                "memory_side": c.MEMORY_SIDE,
                "self_alignment": c.SELF_ALIGNMENT,
                "cross_alignment": c.CROSS_ALIGNMENT,
                "learnable_matching": c.LEARNABLE_MATCHING,
                "standardize": c.STANDARDIZE_SIMILARITY,
            },
        }

    @classmethod
    def learns(cls, cfg: CfgNode) -> bool:
        """Not so where neither proposals nor alignment nor matching get a gradient; see the class."""
        c = cfg.MODEL.MM_FORMER
        return _learns(c.TRAIN_PROPOSALS, c.LEARNABLE_MATCHING, c.CROSS_ALIGNMENT, c.CONTRASTIVE_WEIGHT)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; frozen proposals stay in eval mode."""
        super().train(mode)
        if not self.train_proposals:
            self.proposals.eval()
        return self

    def propose(self, features: Mapping[str, Tensor]) -> MaskPredictions:
        """Proposals from backbone features; without gradient if they are frozen."""
        with self._proposal_gradient():
            return self.proposals(features)

    def _proposal_gradient(self) -> torch.set_grad_enabled:
        return torch.set_grad_enabled(torch.is_grad_enabled() and self.train_proposals)

    def _encode(self, images: Tensor, masks: Tensor) -> dict[str, Tensor]:
        # Support by support takes less memory, and on a CPU no more time.
        step = 1 if images.device.type == "cpu" and not self.training else images.shape[1]
        parts = []
        for some, theirs in zip(images.split(step, dim=1), masks.split(step, dim=1), strict=True):
            features = self.extract(some.flatten(0, 1))
            if self.features == "pixel_decoder":
                with self._proposal_gradient():
                    features = _by_level(self.proposals.decode_pixels(features)[1])
            encoded = self.matching.encode(features, theirs.flatten(0, 1))
            parts.append({name: t.unflatten(0, some.shape[:2]) for name, t in encoded.items()})
        return {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}

    def _decode(self, images: Tensor, support: SupportSet) -> tuple[Tensor, dict[str, Any]]:
        features = self.extract(images)
        predictions = self.propose(features)
        proposals = predictions.masks[-1].float().sigmoid()  # (B, N, h, w)
        if self.features == "pixel_decoder":
            features = _by_level(predictions.levels)
        matching = self.matching(features, proposals, support.tensors)
        fused = fuse_masks(matching.coefficients, proposals, images.shape[-2:])
        maps: dict[str, Any] = {
            "proposals": proposals,
            "similarity": matching.similarity[:, :, None, None],
            "coefficients": matching.coefficients[:, :, None, None],
        }
        if self.training and self.train_proposals:
            maps["predictions"] = predictions
        return torch.stack([1 - fused, fused], dim=1), maps

    def _run(self, episodes: list[Episode]) -> tuple[Tensor, dict[str, Any]]:
        """As the base class; for the losses of stage 1 the maps also hold "predictions" and "segments"."""
        if not (self.training and self.train_proposals):
            return super()._run(episodes)
        for episode in episodes:
            if "segments" not in episode:
                raise ValueError(
                    f"episode {episode.get('episode_index', '?')}: no 'segments' to train proposals on; set "
                    "INPUT.SEGMENTS to 'semantic' or 'instance', or MODEL.MM_FORMER.TRAIN_PROPOSALS to False"
                )
        logits, maps = super()._run(episodes)
        maps["segments"] = [e["segments"].to(self.device) for e in episodes]
        if maps["predictions"].classes:
            maps["labels"] = [e["segment_labels"].to(self.device) for e in episodes]
        return logits, maps

    def _losses(self, logits: Tensor, aux: Mapping[str, Any], target: Tensor) -> dict[str, Tensor]:
        losses = {"loss_fewshot": self.mask_weight * two_channel_dice(logits.float(), target)}
        if self.contrastive_weight:
            proposals = resize(aux["proposals"].detach(), target.shape[-2:], align_corners=False)
            similarity = aux["similarity"][:, :, 0, 0]
            contrast = contrastive_loss(similarity, soft_iou(proposals, target))
            losses["loss_co"] = self.contrastive_weight * contrast
        if self.criterion is not None:
            losses |= self.criterion(aux["predictions"], aux["segments"], aux.get("labels"))
        return losses

    def _training_losses(self, batched_inputs: list[Episode]) -> dict[str, Tensor]:
        if not self.trainable:
            raise RuntimeError(
                "MMFormer is training-free so: evaluate it, or set MODEL.MM_FORMER.LEARNABLE_MATCHING True, "
                "or CROSS_ALIGNMENT learned and CONTRASTIVE_WEIGHT above 0"
            )
        return super()._training_losses(batched_inputs)


def _learns(
    proposals: bool, learnable_matching: bool, cross_alignment: str, contrastive_weight: float
) -> bool:
    """Whether anything gets a gradient: learned alignment alone gets its from L_co."""
    return proposals or learnable_matching or (cross_alignment == "learned" and contrastive_weight > 0)


def _by_level(maps: Sequence[Tensor]) -> dict[str, Tensor]:
    """The pixel decoder's maps by the stages they come from."""
    return dict(zip(LEVELS, maps, strict=True))
