"""Detectron2's loop over the episodes of an evaluation."""

import logging
import time
from collections.abc import Sequence
from typing import Any

from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, inference_on_dataset
from torch import nn
from torch.utils.data import DataLoader

__all__ = ["run_loop"]

logger = logging.getLogger(__name__)


def run_loop(model: nn.Module, loader: DataLoader, evaluators: Sequence[DatasetEvaluator]) -> Any:
    """Detectron2's loop, whose log begins with the 11th episode, and a line after the first one."""
    return inference_on_dataset(model, loader, DatasetEvaluators([_FirstEpisode(len(loader)), *evaluators]))


class _FirstEpisode(DatasetEvaluator):
    """Log how long the first episode took: what it loads and sets up makes it the slowest."""

    def __init__(self, count: int) -> None:
        self._count, self._start = count, 0.0

    def reset(self) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Write the line, once."""
        if self._start:
            seconds, self._start = time.perf_counter() - self._start, 0.0
            logger.info("Episode 1 of %d done in %.1f s", self._count, seconds)
