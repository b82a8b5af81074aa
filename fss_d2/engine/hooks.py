"""Training hooks: the random state of an iteration, the best model, one curve after a resume."""

import json
import random
from pathlib import Path

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import HookBase
from detectron2.engine.hooks import BestCheckpointer
from detectron2.utils import comm
from torch.nn.parallel import DistributedDataParallel

from fss_d2.files import write_atomic

__all__ = ["KeepBest", "SeedIterations", "SetModelIteration", "cut_metrics", "seed_iteration"]


class SeedIterations(HookBase):
    """Seed each iteration with the base seed, its number and the process.

    A resumed training therefore draws the same random numbers (dropout) as an uninterrupted one, whatever an
    evaluation in between has drawn. Episodes have their own seeds.

    Args:
        seed: the base seed.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def before_step(self) -> None:
        """Seed torch, numpy and Python's generator."""
        seed_iteration(self._seed, self.trainer.iter, comm.get_rank())


class SetModelIteration(HookBase):
    """Set ``model.iteration`` before each iteration, also after a resume; parts of a model may start late."""

    def before_step(self) -> None:
        """Set it on the model, which may be wrapped for distributed training."""
        model = self.trainer.model
        model = model.module if isinstance(model, DistributedDataParallel) else model
        model.iteration = self.trainer.iter


def seed_iteration(seed: int, iteration: int, rank: int) -> None:
    """Seed torch (CPU and GPUs), numpy and random from three numbers of at least 0."""
    state = np.random.SeedSequence((seed, iteration, rank)).generate_state(3)
    torch.manual_seed(int(state[0]))
    np.random.seed(int(state[1]))
    random.seed(int(state[2]))


class KeepBest(BestCheckpointer):
    """Keep ``model_best.pth``, the weights with the highest metric of the periodic evaluation.

    ``model_best.json`` records the metric, its value and the iteration: Detectron2's hook forgets the best
    value at a resume, and would let a worse model replace it.

    Args:
        period: iterations between evaluations, as given to the `EvalHook` before this hook.
        checkpointer: saves the weights; it should not tag them as the last checkpoint.
        metric: name of the metric in the event storage, "periodic/glyphs_fold0_val/1shot/few_shot_seg/mIoU".
    """

    def __init__(self, period: int, checkpointer: DetectionCheckpointer, metric: str) -> None:
        super().__init__(period, checkpointer, metric)
        self._record = Path(checkpointer.save_dir) / "model_best.json"

    def before_train(self) -> None:
        """Read the best value of the training that is resumed."""
        if self.trainer.start_iter > 0 and self._record.is_file():
            best = json.loads(self._record.read_text())
            if best["metric"] == self._val_metric and best["iteration"] <= self.trainer.start_iter:
                self.best_metric, self.best_iter = best["value"], best["iteration"]

    def _update_best(self, val: float, iteration: int) -> bool:
        updated = super()._update_best(val, iteration)
        if updated and comm.is_main_process():
            record = {"metric": self._val_metric, "value": val, "iteration": iteration}
            write_atomic(self._record, (json.dumps(record) + "\n").encode())
        return updated


def cut_metrics(path: Path, start_iter: int) -> None:
    """Drop the lines of ``metrics.json`` from iteration ``start_iter`` on: they will be written again."""
    if not path.is_file():
        return
    kept = [
        line for line in path.read_text().splitlines() if _iteration(line, default=start_iter) < start_iter
    ]
    write_atomic(path, "".join(line + "\n" for line in kept).encode())


def _iteration(line: str, default: int) -> int:
    """The iteration of a line of metrics; the default for a line that was cut short."""
    try:
        return int(json.loads(line)["iteration"])
    except (json.JSONDecodeError, KeyError):
        return default
