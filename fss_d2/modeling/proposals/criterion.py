"""Training losses of mask proposals."""

from collections.abc import Sequence

import torch
from detectron2.projects.point_rend.point_features import (
    get_uncertain_point_coords_with_randomness,
    point_sample,
)
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn import functional as F

from fss_d2.modeling.layers import dice_loss

from .mask_decoder import MaskPredictions
from .matcher import Assignment, HungarianMatcher

__all__ = ["ProposalCriterion"]


class ProposalCriterion(nn.Module):
    """Losses of Mask2Former (Cheng et al., CVPR 2022) on the proposals that are matched to segments.

    Every prediction is matched separately. Cross entropy and Dice of a matched mask are computed at
    ``num_points`` points: a share ``importance_ratio`` of them are the most uncertain (logit nearest 0) of
    ``oversample_ratio`` times as many random points, the rest are random. Both losses are summed over the
    matches and divided by the number of segments of the batch (mean over the processes, at least 1).
    Unmatched proposals get no mask loss. Everything is in float32; only the segments have image size.

    Args:
        mask_weight: weight of the cross entropy of masks, in the loss and in the matching.
        dice_weight: weight of the Dice loss of masks, in the loss and in the matching.
        class_weight: weight of the classification, in the loss and in the matching.
        no_object_weight: weight of an unmatched proposal in the classification; a matched one has 1.
        deep_supervision: train all predictions, not only the last.
        num_points: points per mask.
        oversample_ratio: candidates per point, at least 1.
        importance_ratio: share of the points chosen by uncertainty, in [0, 1].
        num_classes: classes of the classification (MM-Former, Table 4a) with the background, without
            "no object"; 0 for class-agnostic proposals.

    Raises:
        ValueError: a ratio out of its range, or weights or points that `HungarianMatcher` refuses.
    """

    class_weights: Tensor

    def __init__(
        self,
        *,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        class_weight: float = 0.0,
        no_object_weight: float = 0.1,
        deep_supervision: bool = True,
        num_points: int = 12544,
        oversample_ratio: float = 3.0,
        importance_ratio: float = 0.75,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        if oversample_ratio < 1 or not 0 <= importance_ratio <= 1:
            raise ValueError(
                f"oversample_ratio {oversample_ratio}, importance_ratio {importance_ratio}: give at least 1, "
                "and 0 to 1"
            )
        self.matcher = HungarianMatcher(
            mask_weight=mask_weight,
            dice_weight=dice_weight,
            class_weight=class_weight if num_classes else 0.0,
            num_points=num_points,
        )
        self.weights = {"loss_mask": mask_weight, "loss_dice": dice_weight, "loss_class": class_weight}
        self.deep_supervision = deep_supervision
        self.num_points, self.num_classes = num_points, num_classes
        self.oversample_ratio, self.importance_ratio = oversample_ratio, importance_ratio
        class_weights = torch.ones(num_classes + 1)
        class_weights[-1] = no_object_weight
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(
        self, predictions: MaskPredictions, segments: Sequence[Tensor], labels: Sequence[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Compute the weighted losses.

        Args:
            predictions: of B images.
            segments: for each image (M_i, H_i, W_i), 0 or 1 of any dtype and device; M_i may be 0, sizes may
                differ.
            labels: for each image (M_i,) integers, 0 for background or class id + 1; for the classification.

        Returns:
            Scalars "loss_mask", "loss_dice" and, with classification, "loss_class" of the last prediction.
            With deep supervision also those of the predictions before it, with suffix "_0" (start queries),
            "_1", ... Without segments, mask losses are 0 with gradients of 0.

        Raises:
            ValueError: segments or labels that do not fit the predictions or each other.
            FloatingPointError: predictions that are not finite.
        """
        masks = predictions.masks
        device = masks[-1].device
        labels = self._checked_labels(predictions, segments, labels)
        segments = [s.to(device) for s in segments]
        count = _mean_over_processes(sum(len(s) for s in segments), device)
        losses = {}
        auxiliary = range(len(masks) - 1) if self.deep_supervision else ()
        with torch.autocast(device.type, enabled=False):
            for index in (-1, *auxiliary):
                classes = predictions.classes[index].float() if self.num_classes else None
                suffix = "" if index < 0 else f"_{index}"
                one = self._losses(masks[index].float(), segments, classes, labels, count)
                losses |= {name + suffix: self.weights[name] * loss for name, loss in one.items()}
        return losses

    def _checked_labels(
        self, predictions: MaskPredictions, segments: Sequence[Tensor], labels: Sequence[Tensor] | None
    ) -> list[Tensor] | None:
        """Labels as int64 on the device of the predictions, or None without classification."""
        images = len(predictions.masks[-1])
        if len(segments) != images:
            raise ValueError(f"{len(segments)} sets of segments for {images} images: give one per image")
        if not self.num_classes:
            return None
        if labels is None or len(predictions.classes) != len(predictions.masks):
            raise ValueError(
                f"num_classes is {self.num_classes} but labels or class predictions are missing: give them, "
                "or num_classes 0"
            )
        if [len(part) for part in labels] != [len(s) for s in segments]:
            raise ValueError("labels and segments differ in number: give one label per segment")
        # Labels on a GPU are not read back: a transfer at every step would wait for it.
        known = [part for part in labels if part.device.type == "cpu"]
        wrong = [int(label) for part in known for label in part if not 0 <= label < self.num_classes]
        if wrong:
            raise ValueError(
                f"segment label {wrong[0]} but num_classes is {self.num_classes}: give 0 (background) or "
                "class id + 1, or raise num_classes"
            )
        return [part.to(predictions.masks[-1].device, torch.int64) for part in labels]

    def _losses(
        self,
        masks: Tensor,
        segments: list[Tensor],
        classes: Tensor | None,
        labels: list[Tensor] | None,
        count: Tensor,
    ) -> dict[str, Tensor]:
        """Unweighted losses of one prediction: masks (B, Q, h, w), classes (B, Q, classes + 1)."""
        matches = self.matcher(masks, segments, classes, labels)
        matched = [segments[i][chosen] for i, (_, chosen) in enumerate(matches)]
        images = torch.cat([torch.full_like(found, i) for i, (found, _) in enumerate(matches)])
        proposals = torch.cat([found for found, _ in matches])
        losses = self._mask_losses(masks[images, proposals], matched, count)
        if classes is not None and labels is not None:
            losses["loss_class"] = self._class_loss(classes, labels, matches)
        return losses

    def _mask_losses(self, masks: Tensor, segments: list[Tensor], count: Tensor) -> dict[str, Tensor]:
        """Cross entropy and Dice of R matched masks (R, h, w) with their segments, listed by image."""
        if not len(masks):
            zero = masks.sum()  # an empty sum, but with a gradient, which DDP needs in all processes
            return {"loss_mask": zero, "loss_dice": zero}
        masks = masks[:, None]  # (R, 1, h, w)
        with torch.no_grad():
            points = get_uncertain_point_coords_with_randomness(
                masks, _uncertainty, self.num_points, self.oversample_ratio, self.importance_ratio
            )  # (R, P, 2)
            targets = [
                point_sample(part[:, None].float(), part_points, align_corners=False)[:, 0]
                for part, part_points in zip(segments, points.split([len(s) for s in segments]), strict=True)
                if len(part)
            ]
            target = torch.cat(targets)  # (R, P)
        logits = point_sample(masks, points, align_corners=False)[:, 0]  # (R, P)
        cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(dim=1)
        dice = dice_loss(logits.sigmoid(), target)
        return {"loss_mask": cross_entropy.sum() / count, "loss_dice": dice.sum() / count}

    def _class_loss(self, classes: Tensor, labels: list[Tensor], matches: list[Assignment]) -> Tensor:
        """Cross entropy, weighted mean over all proposals; the class of unmatched ones is "no object"."""
        target = torch.full(classes.shape[:2], self.num_classes, device=classes.device)  # (B, Q)
        for i, (proposals, segments) in enumerate(matches):
            target[i, proposals] = labels[i][segments]
        return F.cross_entropy(classes.flatten(0, 1), target.flatten(), weight=self.class_weights)


def _uncertainty(logits: Tensor) -> Tensor:
    """Uncertainty of logits: largest where they are 0."""
    return -logits.abs()


def _mean_over_processes(count: int, device: torch.device) -> Tensor:
    """Mean of ``count`` over the processes, at least 1."""
    total = torch.full((), float(count), device=device)  # `torch.tensor` would wait for a GPU
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(total)
    return (total / comm.get_world_size()).clamp(min=1)
