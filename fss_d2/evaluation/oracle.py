"""What a perfect choice among the proposals would score."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch

from fss_d2.soft_masks import soft_iou

from .few_shot_evaluation import FewShotEvaluator
from .proposal_frame import THRESHOLD, proposals_in_frame

__all__ = ["OracleEvaluator"]


class OracleEvaluator(FewShotEvaluator):
    """Score each episode's best proposal, the upper bound of a method that takes one ("oracle" of MM-Former).

    The best has the highest soft IoU with the target, ignored pixels taken as background; it is binarised
    at 0.5. From there on everything is as in `FewShotEvaluator`, whose arguments it takes.
    """

    task: ClassVar[str] = "oracle"

    def predict(self, episode: Mapping[str, Any], output: Mapping[str, Any]) -> np.ndarray:
        """Binarise the proposal that fits best.

        Args:
            episode: the mapper's dict, with "target" (height, width).
            output: "aux" with "proposals" (N, h, w) in [0, 1].

        Returns:
            (height, width) bool.

        Raises:
            ValueError: no proposals.
        """
        masks = proposals_in_frame(episode, output, method=self.method)
        target = torch.as_tensor(episode["target"], device=masks.device)
        best = soft_iou(masks[None], target[None])[0].argmax()
        return (masks[best] > THRESHOLD).cpu().numpy()
