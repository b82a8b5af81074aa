"""The class-agnostic proposal segmenter: Mask2Former without its classifier (stage 1 of MM-Former)."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from fss_d2.modeling.backbone import STAGES, FeatureBackbone
from fss_d2.modeling.build import build_few_shot_backbone, pixel_decoder_arguments
from fss_d2.modeling.keys import at_least, config_keys, require
from fss_d2.modeling.layers import resize, soft_iou, two_channel_dice
from fss_d2.modeling.proposals.criterion import ProposalCriterion
from fss_d2.modeling.proposals.head import MaskPredictions, ProposalHead

from .image_model import ImageModel, ImageOptions

__all__ = ["PotentialObjectsSegmenter", "proposal_criterion_arguments", "proposal_head_arguments"]


@config_keys
def add_keys(cfg: CfgNode) -> None:
    """Add the keys of the class-agnostic proposal segmenter, Mask2Former without classifier (stage 1)."""
    cfg.MODEL.PROPOSALS = CfgNode()
    cfg.MODEL.PROPOSALS.NUM_QUERIES = 100  # proposals per image (MM-Former, Table 4b: 10, 50, 100)
    cfg.MODEL.PROPOSALS.DIM = 256  # channels of tokens, queries and mask features
    cfg.MODEL.PROPOSALS.ENCODER_LAYERS = 6  # of the MSDeformAttn pixel decoder
    cfg.MODEL.PROPOSALS.ENCODER_FEEDFORWARD = 1024
    cfg.MODEL.PROPOSALS.DECODER_LAYERS = 9  # masked cross attention, self attention, feed-forward
    cfg.MODEL.PROPOSALS.DECODER_FEEDFORWARD = 2048
    cfg.MODEL.PROPOSALS.NUM_HEADS = 8
    # How deformable attention samples: "gather" (fast on a CPU), "grid", or "auto" (by device).
    cfg.MODEL.PROPOSALS.SAMPLING = "auto"
    # Maps that a dilated backbone gives at stride 8 are resized to strides 16 and 32 (MM-Former's later
    # code); False takes them as they are (its variant with trained singular values).
    cfg.MODEL.PROPOSALS.RESIZE_DILATED = True
    # Table 4a: True also classifies each proposal among the base classes and the background.
    cfg.MODEL.PROPOSALS.MASK_CLASSIFICATION = False
    cfg.MODEL.PROPOSALS.NUM_CLASSES = 81  # of that classifier: largest class id + 2, 0 is the background
    cfg.MODEL.PROPOSALS.LOSS = CfgNode()
    cfg.MODEL.PROPOSALS.LOSS.MASK_WEIGHT = 5.0  # cross entropy on points, also a matching cost
    cfg.MODEL.PROPOSALS.LOSS.DICE_WEIGHT = 5.0  # Dice on the same points, also a matching cost
    cfg.MODEL.PROPOSALS.LOSS.CLASS_WEIGHT = 2.0  # of MASK_CLASSIFICATION, also a matching cost
    cfg.MODEL.PROPOSALS.LOSS.NO_OBJECT_WEIGHT = 0.1  # of an unmatched proposal in the classification
    # Reference code, not in the paper: Dice between the drawn class's mask and the proposal that fits it
    # best; 0 leaves it out. FEW_SHOT_RANK 2 takes the second best, as MM-Former's later code does.
    cfg.MODEL.PROPOSALS.LOSS.FEW_SHOT_WEIGHT = 10.0
    cfg.MODEL.PROPOSALS.LOSS.FEW_SHOT_RANK = 1
    cfg.MODEL.PROPOSALS.LOSS.DEEP_SUPERVISION = True  # the same losses after every decoder layer
    cfg.MODEL.PROPOSALS.LOSS.NUM_POINTS = 12544  # sampled per mask
    cfg.MODEL.PROPOSALS.LOSS.OVERSAMPLE_RATIO = 3.0  # candidates per point that is kept for its uncertainty
    cfg.MODEL.PROPOSALS.LOSS.IMPORTANCE_RATIO = 0.75  # share of points kept for their uncertainty


def proposal_head_arguments(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of `ProposalHead` from MODEL.PROPOSALS, all but the input shape."""
    c = cfg.MODEL.PROPOSALS
    return {
        **pixel_decoder_arguments(cfg),
        "num_queries": at_least("MODEL.PROPOSALS.NUM_QUERIES", c.NUM_QUERIES, 1),
        "decoder_layers": at_least("MODEL.PROPOSALS.DECODER_LAYERS", c.DECODER_LAYERS, 1),
        "decoder_feedforward": at_least("MODEL.PROPOSALS.DECODER_FEEDFORWARD", c.DECODER_FEEDFORWARD, 1),
        "num_classes": _classes(cfg),
        "resize_dilated": c.RESIZE_DILATED,
    }


def _classes(cfg: CfgNode) -> int:
    """Number of classes that proposals are classified among; 0 without classification."""
    c = cfg.MODEL.PROPOSALS
    return at_least("MODEL.PROPOSALS.NUM_CLASSES", c.NUM_CLASSES, 1) if c.MASK_CLASSIFICATION else 0


def proposal_criterion_arguments(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of `ProposalCriterion` from MODEL.PROPOSALS."""
    key, loss, classes = "MODEL.PROPOSALS.LOSS.", cfg.MODEL.PROPOSALS.LOSS, _classes(cfg)
    weights = {
        name: at_least(f"{key}{name}_WEIGHT", loss[f"{name}_WEIGHT"], 0)
        for name in ("MASK", "DICE", "CLASS", "NO_OBJECT")
    }
    class_weight = weights["CLASS"] if classes else 0.0
    if not max(weights["MASK"], weights["DICE"], class_weight):
        raise ValueError(
            f"{key}MASK_WEIGHT and DICE_WEIGHT are 0: set one above 0, proposals are matched by it"
        )
    ratio = loss.IMPORTANCE_RATIO
    require(0 <= ratio <= 1, f"{key}IMPORTANCE_RATIO", ratio, "from 0 to 1")
    return {
        "mask_weight": weights["MASK"],
        "dice_weight": weights["DICE"],
        "class_weight": class_weight,
        "no_object_weight": weights["NO_OBJECT"],
        "deep_supervision": loss.DEEP_SUPERVISION,
        "num_points": at_least(f"{key}NUM_POINTS", loss.NUM_POINTS, 1),
        "oversample_ratio": at_least(f"{key}OVERSAMPLE_RATIO", loss.OVERSAMPLE_RATIO, 1),
        "importance_ratio": ratio,
        "num_classes": classes,
    }


def check_unused_losses(cfg: CfgNode, instead: str) -> None:
    """Raise ValueError if MODEL.LOSS is set, for models that have losses of their own."""
    for key, default in (("FOREGROUND_WEIGHT", 1.0), ("DICE_WEIGHT", 0.0)):
        if cfg.MODEL.LOSS[key] != default:
            raise ValueError(
                f"MODEL.LOSS.{key} {cfg.MODEL.LOSS[key]}: {cfg.MODEL.META_ARCHITECTURE} does not use it; "
                f"leave it at {default} and set {instead}"
            )


@META_ARCH_REGISTRY.register()
class PotentialObjectsSegmenter(ImageModel):
    """Masks of whatever may be an object: Mask2Former (Cheng et al., CVPR 2022) without its classifier.

    MM-Former (Jiao et al., NeurIPS 2022) trains it first, on the base classes' masks, and then learns to
    choose among its proposals. It reads no supports. Images need be neither square nor a multiple of 32.

    Example:
        >>> model = build_model(cfg)  # MODEL.META_ARCHITECTURE: PotentialObjectsSegmenter
        >>> masks = model.propose(images).masks[-1].sigmoid()  # (B, N, H/4, W/4) of images (B, 3, H, W)
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: FeatureBackbone,  # gives res2 to res5
        head: Mapping[str, Any] | None = None,  # for `ProposalHead`, but the input shape
        criterion: Mapping[str, Any] | None = None,  # for `ProposalCriterion`
        few_shot_weight: float = 10.0,
        few_shot_rank: int = 1,
        options: ImageOptions | None = None,
    ) -> None:
        """See also the keys of MODEL.PROPOSALS above.

        Raises ValueError for a rank that no proposal has, KeyError for a stage that the backbone lacks.
        """
        super().__init__(backbone, options or ImageOptions())
        backbone.select(STAGES)
        self.proposals = ProposalHead(backbone.output_shape(), **(head or {}))
        queries = self.proposals.predictor.query_feat.num_embeddings
        require(1 <= few_shot_rank <= queries, "few_shot_rank", few_shot_rank, f"1 (the best) to {queries}")
        self.criterion = ProposalCriterion(**(criterion or {}))
        self.few_shot_weight, self.few_shot_rank = few_shot_weight, few_shot_rank

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments from MODEL.PROPOSALS and the backbone's keys."""
        loss = cfg.MODEL.PROPOSALS.LOSS
        check_unused_losses(cfg, "the keys of MODEL.PROPOSALS.LOSS")
        for key, unused in (("REFINEMENT", ""), ("KSHOT", "own")):
            if (value := cfg.TEST[key]) != unused:
                raise ValueError(
                    f"TEST.{key} {value!r}: PotentialObjectsSegmenter gives proposals, no scores to refine "
                    f"or join; set it to {unused!r}"
                )
        head, rank = proposal_head_arguments(cfg), loss.FEW_SHOT_RANK
        rule = f"1 (the best) to {head['num_queries']} (MODEL.PROPOSALS.NUM_QUERIES)"
        require(1 <= rank <= head["num_queries"], "MODEL.PROPOSALS.LOSS.FEW_SHOT_RANK", rank, rule)
        return {
            "options": ImageOptions.from_config(cfg),
            "backbone": build_few_shot_backbone(cfg, own_decoder=True),
            "head": head,
            "criterion": proposal_criterion_arguments(cfg),
            "few_shot_weight": at_least("MODEL.PROPOSALS.LOSS.FEW_SHOT_WEIGHT", loss.FEW_SHOT_WEIGHT, 0),
            "few_shot_rank": rank,
        }

    def propose(self, images: Tensor) -> MaskPredictions:
        """Proposals of images (B, 3, H, W) RGB, 0 to 255, uint8 or float; raises ValueError for others."""
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"images are {tuple(images.shape)}: give (B, 3, H, W)")
        return self.proposals(self.extract(self.normalise(images)))

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Run images, which may differ in size and in number of segments.

        Args:
            batched_inputs: one dict per image; "support" is not read:
                "image": (3, H, W) RGB, 0 to 255, uint8 or float;
                "segments": (M, H, W) bool masks to propose, training only;
                "segment_labels": (M,) int64 classes of the segments, training with mask classification only;
                "sem_seg": (H, W) in {0, 1, 255}, the episode's class; in training, optional.

        Returns:
            Training: dict of weighted losses, averaged over the images; raises ValueError without segments.
            Inference: one dict per image, "aux": {"proposals": (N, ceil(H/4), ceil(W/4)) in [0, 1]}.
        """
        if self.training:
            return self._training_losses(batched_inputs)
        outputs: list[dict[str, Any]] = [{}] * len(batched_inputs)
        for indices in _group(batched_inputs):
            predictions = self.propose(torch.stack([batched_inputs[i]["image"] for i in indices]))
            for i, masks in zip(indices, predictions.masks[-1].float().sigmoid(), strict=True):
                outputs[i] = {"aux": {"proposals": masks}}
        return outputs

    def _training_losses(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        for image in batched_inputs:
            if "segments" not in image:
                raise ValueError(
                    f"image {image.get('image_id', '?')}: no 'segments' to train on; "
                    "set INPUT.SEGMENTS to 'semantic' or 'instance'"
                )
        groups = _group(batched_inputs)
        parts = [self.propose(torch.stack([batched_inputs[i]["image"] for i in group])) for group in groups]
        images = [batched_inputs[i] for group in groups for i in group]
        segments = [image["segments"] for image in images]
        labels = [image["segment_labels"] for image in images] if parts[0].classes else None
        losses = dict(self.criterion(_join(parts), segments, labels))
        if self.few_shot_weight and all("sem_seg" in image for image in images):
            logits = [proposals for part in parts for proposals in part.masks[-1]]
            targets = [image["sem_seg"].to(self.device) for image in images]
            losses["loss_few_shot"] = self.few_shot_weight * self._few_shot_loss(logits, targets)
        return losses

    def _few_shot_loss(self, logits: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """Mean over the images of the two-channel Dice of one proposal (N, h, w) with the target (H, W).

        The proposal is that whose soft IoU has `few_shot_rank`; a class that has left its image counts 0.
        """
        total = logits[0].sum() * 0
        for proposals, target in zip(logits, targets, strict=True):
            probability = proposals.float().sigmoid()
            masks = resize(probability.detach()[None], target.shape, align_corners=False)
            best = soft_iou(masks, target[None])[0].topk(self.few_shot_rank).indices[-1:]
            mask = probability.index_select(0, best)[None]
            mask = resize(mask, target.shape, align_corners=False)  # (1, 1, H, W)
            dice = two_channel_dice(torch.cat([1 - mask, mask], dim=1), target[None])
            total = total + torch.where((target == 1).any(), dice, 0.0)
        return total / len(targets)


def _group(images: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Indices of the images of one size, size by size."""
    groups: dict[torch.Size, list[int]] = defaultdict(list)
    for i, image in enumerate(images):
        groups[image["image"].shape].append(i)
    return list(groups.values())


def _join(parts: Sequence[MaskPredictions]) -> MaskPredictions:
    """Predictions of images of several sizes as one, for one call of the criterion in every process.

    The criterion samples logits at relative positions: smaller maps are resized to the largest.
    """
    if len(parts) == 1:
        return parts[0]
    size = [max(part.masks[-1].shape[axis] for part in parts) for axis in (-2, -1)]
    masks = zip(*(part.masks for part in parts), strict=True)  # layer by layer
    classes = zip(*(part.classes for part in parts), strict=True)
    return MaskPredictions(
        masks=[torch.cat([resize(m, size, align_corners=False) for m in layer]) for layer in masks],
        queries=torch.cat([part.queries for part in parts]),
        levels=(),
        classes=[torch.cat(layer) for layer in classes],
    )
