"""Scores of class-agnostic proposals: their average recall, and the score of the best one (the oracle)."""

import itertools
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import Tensor

from fss_d2.soft_masks import resize, soft_iou

from .few_shot_evaluation import FewShotEvaluator
from .report import format_table

__all__ = ["BUDGETS", "IOU_THRESHOLDS", "THRESHOLD", "OracleEvaluator", "ProposalRecallEvaluator", "mask_iou"]
__all__ += ["mask_quality", "proposals_in_frame", "ranked", "ranks_of_finds"]

logger = logging.getLogger(__name__)

THRESHOLD = 0.5  # a pixel belongs to a proposal above it
BUDGETS = (10, 50, 100)  # proposals per image
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
DUPLICATE_IOU = 0.7


def proposals_in_frame(episode: Mapping[str, Any], output: Mapping[str, Any], *, method: str) -> Tensor:
    """Bring a model's proposals to the frame in which it is scored, still soft.

    They are resized to the network's image (align_corners False, as in Mask2Former), its padding is removed,
    and the rest is resized to the target's size (align_corners True, as few-shot scores are).

    Args:
        episode: "image" (3, H, W), "height" and "width", optionally "valid_size" (h, w).
        output: "aux" with "proposals" (N, h', w') in [0, 1].
        method: name of the model, for messages.

    Returns:
        (N, height, width) float32 on the device of the proposals.
    """
    proposals = _proposals(output, method)
    if proposals.isnan().any():
        index = episode.get("episode_index", "?")
        raise ValueError(f"episode {index}: the proposals hold NaN; check the model's weights and precision")
    return _in_frame(episode, proposals)


def _in_frame(episode: Mapping[str, Any], proposals: Tensor) -> Tensor:
    masks = resize(proposals[None].float(), episode["image"].shape[-2:], align_corners=False)  # (1, N, H, W)
    h, w = episode.get("valid_size", masks.shape[-2:])
    return resize(masks[:, :, :h, :w], (episode["height"], episode["width"]), align_corners=True)[0]


def _proposals(output: Mapping[str, Any], method: str) -> Tensor:
    proposals = output.get("aux", {}).get("proposals")
    if proposals is None:
        what = f"oracle and proposal_recall score proposals, and {method} gives none"
        raise ValueError(f"TEST.EVALUATORS: {what}; set it to ('few_shot_seg',)")
    return proposals


class OracleEvaluator(FewShotEvaluator):
    """Score the best proposal of each episode, the upper bound of a method that chooses one.

    MM-Former calls it "oracle". The best has the highest soft IoU with the target (ignored pixels count as
    background); it is binarised at 0.5. Everything else is as in `FewShotEvaluator`.
    """

    task: ClassVar[str] = "oracle"
    _scored: ClassVar[str] = "the proposals"

    def predict(self, episode: Mapping[str, Any], output: Mapping[str, Any]) -> Tensor:
        """The best proposal, binarised: (height, width) bool."""
        masks = _in_frame(episode, self._scores(output))
        target = torch.as_tensor(episode["target"]).to(masks.device, non_blocking=True)
        best = soft_iou(masks[None], target[None])[0].argmax(dim=0, keepdim=True)
        # Indexing by a tensor without dimensions would wait for the device.
        return masks.index_select(0, best)[0] > THRESHOLD

    def _scores(self, output: Mapping[str, Any]) -> Tensor:
        return _proposals(output, self.method)


def mask_quality(proposals: Tensor) -> Tensor:
    """Mean probability inside each binarised proposal (N, H, W): (N,), 0 for an empty one."""
    inside = proposals > THRESHOLD
    return (proposals * inside).sum(dim=(1, 2)) / inside.sum(dim=(1, 2)).clamp(min=1)


def mask_iou(masks: Tensor, others: Tensor) -> Tensor:
    """IoU of N masks (N, H, W) with M others (M, H, W), all bool: (N, M) float64; 0 where both are empty."""
    masks, others = masks.flatten(1).float(), others.flatten(1).float()  # exact below 2^24 pixels
    overlap = masks @ others.T
    union = masks.sum(dim=1)[:, None] + others.sum(dim=1) - overlap
    return overlap.double() / union.double().clamp(min=1)


def ranked(proposals: Tensor) -> Tensor:
    """Rank proposals (N, H, W) by `mask_quality`; those that repeat a better one come after all others.

    One repeats another if their IoU exceeds `DUPLICATE_IOU`. The background is proposed many times. Returns
    indices (N,) int64, best first.
    """
    order = mask_quality(proposals).argsort(descending=True, stable=True)
    inside = proposals[order] > THRESHOLD
    similar = (mask_iou(inside, inside) > DUPLICATE_IOU).cpu()
    kept: list[int] = []
    repeated: list[int] = []
    for rank in range(len(order)):
        (repeated if similar[rank, kept].any() else kept).append(rank)
    return order[torch.tensor(kept + repeated, device=order.device)]


def ranks_of_finds(iou: np.ndarray, thresholds: np.ndarray = IOU_THRESHOLDS) -> np.ndarray:
    """The rank of the proposal that finds each object, matched as in COCO.

    In order of rank, each proposal takes the free object with the highest IoU, if that reaches the threshold.

    Args:
        iou: (N, M) of proposals, best first, with objects.
        thresholds: (T,) of the IoU.

    Returns:
        (T, M) int64: 0 for the first proposal; N for an object that no proposal finds.
    """
    found = np.full((len(thresholds), iou.shape[1]), len(iou), np.int64)
    for row, threshold in zip(found, thresholds, strict=True):
        for rank in np.flatnonzero((iou >= threshold).any(axis=1)):
            free = np.where(row == len(iou), iou[rank], -1.0)
            best = len(free) - 1 - free[::-1].argmax()  # the last of equals
            if free[best] >= threshold:
                row[best] = rank
    return found


@dataclass(frozen=True)
class _ImageCounts:
    """The number of objects in one image, and how many are found, by IoU threshold and budget (T, 3)."""

    image_id: int | str
    objects: int
    found: np.ndarray


class ProposalRecallEvaluator(DatasetEvaluator):
    """Average recall of class-agnostic proposals, as COCO computes it (Hosang et al., TPAMI 2016).

    The recall, pooled over all objects of the novel (test) classes in the query images, is averaged over the
    IoU thresholds 0.5, 0.55, ..., 0.95. Proposals are binarised at 0.5 and `ranked`. Each image counts
    once, even if several episodes or processes use it.
    """

    task: ClassVar[str] = "proposal_recall"

    def __init__(self, dataset_name: str, *, method: str = "the model") -> None:
        self._dataset_name = dataset_name
        self._method = method
        self._images: dict[int | str, _ImageCounts] = {}

    @classmethod
    def from_config(
        cls, cfg: CfgNode, dataset_name: str, output_dir: str | Path | None = None
    ) -> "ProposalRecallEvaluator":
        """Build for MODEL.META_ARCHITECTURE; it writes nothing to ``output_dir``."""
        return cls(dataset_name, method=cfg.MODEL.META_ARCHITECTURE)

    def reset(self) -> None:
        """Remove the counts of all images seen so far."""
        self._images = {}

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Count a batch of query images.

        Args:
            inputs: per image "image_id", "image" (3, H, W), "height", "width", "target_segments"
                (M, height, width) bool, optionally "valid_size".
            outputs: per image "aux" with "proposals" (N, h, w) in [0, 1], not NaN.
        """
        for image, output in zip(inputs, outputs, strict=True):
            image_id = image["image_id"]
            if image_id in self._images:
                continue
            if "target_segments" not in image:
                fix = "load it with the EpisodeMapper of a config that names this evaluator"
                need = "no 'target_segments', which TEST.EVALUATORS 'proposal_recall' needs"
                raise ValueError(f"image {image_id}: {need}; {fix}")
            proposals = proposals_in_frame(image, output, method=self._method)
            segments = torch.as_tensor(image["target_segments"], device=proposals.device)
            order = ranked(proposals)[: max(BUDGETS)]
            iou = mask_iou(proposals[order] > THRESHOLD, segments)
            ranks = ranks_of_finds(iou.cpu().numpy())
            missed = ranks == len(iou)
            found = [((ranks < budget) & ~missed).sum(axis=1) for budget in BUDGETS]
            self._images[image_id] = _ImageCounts(image_id, len(segments), np.stack(found, axis=1))

    def evaluate(self) -> "OrderedDict[str, dict[str, float]]":
        """Join the images of all processes.

        Returns:
            ``{"proposal_recall": {"AR@10": ..., "recall50@10": ...}}`` in percent, both for all of `BUDGETS`,
            the second at the IoU threshold 0.5 alone; an image with fewer proposals than a budget uses all.
            Empty if there are no objects, and on every process except the main one.
        """
        gathered = comm.gather(list(self._images.values()))
        if not comm.is_main_process():
            return OrderedDict()
        images = {row.image_id: row for row in itertools.chain.from_iterable(gathered)}
        objects = sum(row.objects for row in images.values())
        if not objects:
            logger.warning("No object of %s in the evaluated images; there is no recall.", self._dataset_name)
            return OrderedDict()
        recall = 100 * sum(row.found for row in images.values()) / objects  # (T, 3)
        scores = {f"AR@{budget}": float(recall[:, i].mean()) for i, budget in enumerate(BUDGETS)}
        scores |= {f"recall50@{budget}": float(recall[0, i]) for i, budget in enumerate(BUDGETS)}
        results = OrderedDict({self.task: scores})
        found_in = f"{self._dataset_name}, {objects} objects in {len(images)} images"
        logger.info("%s:\n%s", found_in, format_table(results))
        return results
