"""Scores of the masks that DCAMA aggregates at each scale, before it mixes them (Shi et al., ECCV 2022)."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator
from torch import Tensor
from torch.nn import functional as F

from fss_d2.soft_masks import otsu_mask

from .few_shot_evaluation import Draw, FewShotEvaluator

__all__ = ["AggregatedMaskEvaluator"]


class _LevelEvaluator(FewShotEvaluator):
    """Score "aggregated_<level>" (layers, h, w) of "aux": summed over layers, Otsu's threshold, resized."""

    level: str = ""
    _scored: ClassVar[str] = "the aggregated masks"

    def predict(self, episode: Mapping[str, Any], output: Mapping[str, Any]) -> Tensor:
        """The binary mask (height, width) bool of the level."""
        summed = self._scores(output).float().sum(dim=0)
        mask = torch.from_numpy(otsu_mask(summed.cpu().numpy()))[None, None].to(summed)
        whole = F.interpolate(mask, size=episode["image"].shape[-2:], mode="nearest")
        h, w = episode.get("valid_size", whole.shape[-2:])
        size = tuple(episode["target"].shape)
        return F.interpolate(whole[:, :, :h, :w], size=size, mode="nearest")[0, 0] > 0

    def _scores(self, output: Mapping[str, Any]) -> Tensor:
        maps = output.get("aux", {}).get(f"aggregated_{self.level}")
        if maps is None:
            raise ValueError(f"TEST.EVALUATORS: {self.method} aggregates no mask at {self.level}")
        return maps


class AggregatedMaskEvaluator(DatasetEvaluator):
    """Score the intermediate masks of each scale against the truth (DCAMA, Fig. 6).

    The masks of a scale are summed over its layers, binarised by Otsu's method and resized (nearest). All
    else is as in `FewShotEvaluator`.

    Args:
        levels: level -> its evaluator.
    """

    task: ClassVar[str] = "aggregated"

    def __init__(self, levels: Mapping[str, FewShotEvaluator]) -> None:
        self._levels = dict(levels)

    @classmethod
    def from_config(
        cls,
        cfg: CfgNode,
        dataset_name: str,
        output_dir: str | Path | None = None,
        *,
        draw: Draw | None = None,
    ) -> "AggregatedMaskEvaluator":
        """One evaluator for each of MODEL.DCAMA.ATTENTION_LEVELS, with a folder of its own."""
        levels = {}
        for level in cfg.MODEL.DCAMA.ATTENTION_LEVELS:
            folder = None if output_dir is None else Path(output_dir) / level
            levels[level] = _LevelEvaluator.from_config(cfg, dataset_name, folder, draw=draw)
            levels[level].level = level
        return cls(levels)

    def reset(self) -> None:
        """Remove the counts of all episodes scored so far."""
        for evaluator in self._levels.values():
            evaluator.reset()

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """As `FewShotEvaluator.process`, of "aggregated_<level>" (layers, h, w) of "aux"."""
        for evaluator in self._levels.values():
            evaluator.process(inputs, outputs)

    def evaluate(self) -> "OrderedDict[str, dict[str, float]]":
        """Scores as those of `FewShotEvaluator`, of every level: "aggregated_res3" and so on."""
        found: OrderedDict[str, dict[str, float]] = OrderedDict()
        for level, evaluator in self._levels.items():
            for scores in evaluator.evaluate().values():
                found[f"{self.task}_{level}"] = scores
        return found
