"""One-to-one assignment of proposals to the segments of an image."""

from collections.abc import Sequence

import torch
from detectron2.projects.point_rend.point_features import point_sample
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Assignment", "HungarianMatcher", "cross_entropy_cost", "dice_cost"]

Assignment = tuple[Tensor, Tensor]
"""Indices of the matched proposals and of the segments they are matched to, int64 and of one length."""


def cross_entropy_cost(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross entropy of each proposal with each segment, mean over the points.

    Args:
        logits: (Q, P) of the proposals at P points.
        targets: (M, P) of the segments at the same points, in [0, 1].

    Returns:
        (Q, M), at least 0.
    """
    # t softplus(-z) + (1 - t) softplus(z) = softplus(z) - t z
    return F.softplus(logits).mean(dim=1)[:, None] - logits @ targets.T / logits.shape[1]


def dice_cost(logits: Tensor, targets: Tensor) -> Tensor:
    """Dice loss, 1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1), of each proposal with each segment.

    Args:
        logits: (Q, P) of the proposals at P points; p is their sigmoid.
        targets: (M, P) of the segments at the same points, in [0, 1].

    Returns:
        (Q, M) in [0, 1).
    """
    probability = logits.sigmoid()
    total = probability.sum(dim=1)[:, None] + targets.sum(dim=1)
    return 1 - (2 * probability @ targets.T + 1) / (total + 1)


class HungarianMatcher(nn.Module):
    """Matching with the lowest total cost (Carion et al., ECCV 2020); costs are computed at random points.

    The cost is ``mask_weight * cross entropy + dice_weight * Dice - class_weight * probability`` of the
    segment's class. All masks of an image use the same points (Cheng et al., CVPR 2022, Sec. 3.3).

    Args:
        mask_weight: weight of the cross entropy.
        dice_weight: weight of the Dice loss.
        class_weight: weight of the class probability; 0 matches by the masks alone.
        num_points: points per image.

    Raises:
        ValueError: no weight above 0, or no points.
    """

    def __init__(
        self,
        *,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        class_weight: float = 0.0,
        num_points: int = 12544,
    ) -> None:
        super().__init__()
        if max(mask_weight, dice_weight, class_weight) <= 0:
            raise ValueError("the weights of the matching costs are all 0: give at least one above 0")
        if num_points < 1:
            raise ValueError(f"num_points is {num_points}: give at least 1")
        self.mask_weight, self.dice_weight, self.class_weight = mask_weight, dice_weight, class_weight
        self.num_points = num_points

    @torch.no_grad()
    def forward(
        self,
        masks: Tensor,
        segments: Sequence[Tensor],
        classes: Tensor | None = None,
        labels: Sequence[Tensor] | None = None,
    ) -> list[Assignment]:
        """Assign proposals to segments, image by image; without segments the assignment is empty.

        Args:
            masks: (B, Q, h, w) logits.
            segments: for each image (M_i, H_i, W_i), 0 or 1 of any dtype, on the device of ``masks``; M_i may
                be 0 or above Q (then Q of the segments are matched), sizes may differ.
            classes: (B, Q, classes + 1) logits; needed if the class weight is not 0.
            labels: for each image (M_i,) integers below classes; needed with ``classes``.

        Returns:
            For each image the proposal indices, ascending, and the segment indices, (min(Q, M_i),) each, on
            the device of ``masks``.

        Raises:
            ValueError: a class weight without ``classes`` or ``labels``.
            FloatingPointError: a cost that is not finite; the model has diverged.
        """
        if self.class_weight and (classes is None or labels is None):
            raise ValueError(
                f"class_weight is {self.class_weight} but there are no classes or labels: give both"
            )
        costs = []
        with torch.autocast(masks.device.type, enabled=False):
            for i, image_segments in enumerate(segments):
                cost = self.mask_costs(masks[i], image_segments)
                if self.class_weight and classes is not None and labels is not None:
                    cost = cost - self.class_weight * classes[i].float().softmax(dim=-1)[:, labels[i].long()]
                costs.append(cost)
        # All costs are queued before the first one is read back; scipy needs them on the CPU.
        return [_assign(cost.cpu(), i, masks.device) for i, cost in enumerate(costs)]

    def mask_costs(self, masks: Tensor, segments: Tensor) -> Tensor:
        """Weighted mask and Dice costs (Q, M) of logits (Q, h, w) with segments (M, H, W)."""
        if not len(segments):
            return masks.new_zeros(len(masks), 0, dtype=torch.float32)
        points = torch.rand(1, self.num_points, 2, device=masks.device)  # (x, y)
        logits = point_sample(masks.float()[None], points, align_corners=False)[0]  # (Q, P)
        targets = point_sample(segments.float()[None], points, align_corners=False)[0]  # (M, P)
        mask, dice = cross_entropy_cost(logits, targets), dice_cost(logits, targets)
        return self.mask_weight * mask + self.dice_weight * dice


def _assign(cost: Tensor, index: int, device: torch.device) -> Assignment:
    if not cost.isfinite().all():
        raise FloatingPointError(
            f"matching costs of image {index} of the batch are not finite: the model has diverged, lower "
            "the learning rate or clip gradients"
        )
    proposals, segments = linear_sum_assignment(cost.numpy())
    return torch.from_numpy(proposals).to(device), torch.from_numpy(segments).to(device)
