"""One training iteration, in full or mixed precision, and the hooks around it."""

import json
import logging
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import HookBase, SimpleTrainer
from detectron2.engine.hooks import BestCheckpointer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fss_d2.io.files import read_json_object, write_atomic, write_json

from .solver import GradientClipper

__all__ = ["AMP_DTYPES", "AutocastTrainer", "EpisodeStream", "KeepBest", "NonFiniteLoss"]
__all__ += ["SeedIterations", "SetModelIteration", "cut_metrics", "seed_iteration"]

logger = logging.getLogger(__name__)

AMP_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class EpisodeStream:
    """Endless batches of the loader that ``build`` makes; the start can move until the first one is read."""

    def __init__(self, build: Callable[[int], Iterable[list[dict[str, Any]]]]) -> None:
        self._build = build
        self._loader: Iterable[list[dict[str, Any]]] | None = None

    def start_at(self, iteration: int) -> None:
        """Build the loader that continues after this number of iterations."""
        self._loader = self._build(iteration)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        if self._loader is None:
            self.start_at(0)
        yield from self._loader


class NonFiniteLoss(FloatingPointError):
    """A loss that is infinite or NaN.

    Args:
        iteration: counted from 0.
        losses: means over the processes, by name.
        rank: of the first process whose loss it is.
        episodes: numbers of the episodes of that process's batch.
    """

    TEXT = "Loss became infinite or NaN at iteration="

    def __init__(
        self, iteration: int, losses: Mapping[str, float], rank: int = 0, episodes: Sequence[int] = ()
    ) -> None:
        super().__init__(f"{self.TEXT}{iteration}! loss_dict = {dict(losses)}")
        self.iteration, self.losses, self.rank, self.episodes = iteration, losses, rank, episodes


@dataclass(frozen=True)
class _Unread:
    """Losses of one iteration that are still on their device."""

    iteration: int
    data_time: float
    losses: dict[str, Tensor]
    episodes: list[int]  # their numbers


class AutocastTrainer(SimpleTrainer):
    """Detectron2's `SimpleTrainer` with mixed precision and gradient clipping; it seldom waits for the GPU.

    Unlike Detectron2's `AMPTrainer` it also runs on CPUs, in bfloat16, and clips unscaled gradients.

    Args:
        model: returns a dict of losses for what the loader yields; may be wrapped for distributed training.
        data_loader: lists of episodes without end; its iterator is a generator.
        clip: see `build_gradient_clipper`.
        amp_dtype: one of `AMP_DTYPES`, or None for full precision. On a CPU float16 is slow and becomes
            bfloat16, with a warning.
        reads_losses: whether an iteration, counted from 0, copies the losses from the device and checks them,
            with those of the iterations before it that were not read.
        describe: makes the message of the error for a loss that is infinite or NaN, in all processes.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[list[dict[str, Any]]],
        optimizer: torch.optim.Optimizer,
        *,
        clip: GradientClipper | None = None,
        amp_dtype: str | None = None,
        reads_losses: Callable[[int], bool] = lambda iteration: True,
        describe: Callable[[NonFiniteLoss], str] = str,
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        if amp_dtype is not None and amp_dtype not in AMP_DTYPES:
            raise ValueError(f"SOLVER.AMP.DTYPE is {amp_dtype!r}; use one of {', '.join(AMP_DTYPES)}")
        self._clip = clip
        self._reads_losses = reads_losses
        self._describe = describe
        self._unread: list[_Unread] = []
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._device_type = self._parameters[0].device.type
        if amp_dtype == "float16" and self._device_type == "cpu":
            logger.warning("SOLVER.AMP on a CPU runs in bfloat16, not in float16.")
            amp_dtype = "bfloat16"
        self._amp_dtype = None if amp_dtype is None else AMP_DTYPES[amp_dtype]
        # Only float16 gradients underflow; disabled, the scaler passes everything through.
        self.grad_scaler = torch.amp.GradScaler(self._device_type, enabled=amp_dtype == "float16")

    def run_step(self) -> None:
        """Run one iteration. It raises FloatingPointError if a loss that it reads is infinite or NaN."""
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        losses = self.losses(self.model, batch)
        total = sum(losses.values())
        self.optimizer.zero_grad(set_to_none=True)
        self.grad_scaler.scale(total).backward()
        self._keep(losses, data_time, batch)
        if self._clip is not None:
            self.grad_scaler.unscale_(self.optimizer)
            self._clip(self._parameters)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def losses(self, model: nn.Module, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The losses of a batch in the precision of the training."""
        with torch.autocast(self._device_type, self._amp_dtype, enabled=self._amp_dtype is not None):
            return model(batch)

    def _keep(self, losses: Mapping[str, Tensor], data_time: float, batch: Sequence[Any]) -> None:
        """Keep the losses on their device until an iteration that reads them."""
        iteration = get_event_storage().iter
        detached = {name: loss.detach() for name, loss in losses.items()}
        numbers = [e["episode_index"] for e in batch if isinstance(e, Mapping) and "episode_index" in e]
        self._unread.append(_Unread(iteration, data_time, detached, numbers))
        if self._reads_losses(iteration):
            self.read_losses()

    def read_losses(self) -> None:
        """Check the losses that were not read and put them into the event storage, in all processes."""
        unread, self._unread = self._unread, []
        try:
            if unread:
                _record(unread)
        except NonFiniteLoss as error:
            raise FloatingPointError(self._describe(error)) from error

    def close(self) -> None:
        """Release the loader's workers; left to the garbage collector they take seconds to end."""
        self._data_loader_iter.close()

    def state_dict(self) -> dict[str, Any]:
        """Iteration, optimizer and scaler."""
        return super().state_dict() | {"grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` gave; a scaler saved in another precision is left out.

        ValueError for the state of another kind of optimizer, whose numbers torch would take.
        """
        saved, own = (o["param_groups"][0] for o in (state_dict["optimizer"], self.optimizer.state_dict()))
        if ("betas" in saved) != ("betas" in own):
            raise ValueError("its SOLVER.OPTIMIZER is another")
        super().load_state_dict(state_dict)
        if self.grad_scaler.is_enabled() and state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def _record(unread: Sequence[_Unread]) -> None:
    """Check losses and put their means over all processes into the event storage, under their iterations.

    Copies from the device once and exchanges with the other processes once.
    """
    values = iter(torch.stack([loss for each in unread for loss in each.losses.values()]).tolist())
    mine = [(each.data_time, {name: next(values) for name in each.losses}) for each in unread]
    storage = get_event_storage()
    now = storage.iter
    for each, of_processes in zip(unread, zip(*comm.all_gather(mine), strict=True), strict=True):
        names = of_processes[0][1]
        losses = {name: np.mean([losses[name] for _, losses in of_processes]) for name in names}
        total = sum(losses.values())
        if not np.isfinite(total):
            wrong = [not np.isfinite(sum(losses.values())) for _, losses in of_processes]
            rank = wrong.index(True) if any(wrong) else 0
            raise NonFiniteLoss(each.iteration, losses, rank, comm.all_gather(each.episodes)[rank])
        storage.iter = each.iteration
        storage.put_scalar("data_time", max(data_time for data_time, _ in of_processes))
        storage.put_scalar("total_loss", total)
        if len(losses) > 1:
            storage.put_scalars(**losses)
    storage.iter = now


class SeedIterations(HookBase):
    """Seed each iteration with the base seed, its number and the process.

    A resumed training therefore draws the same random numbers (dropout) as an uninterrupted one, whatever an
    evaluation in between has drawn. Episodes have their own seeds.
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
        (model.module if isinstance(model, DistributedDataParallel) else model).iteration = self.trainer.iter


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
        period: iterations between evaluations, that of the `EvalHook` before this hook.
        checkpointer: saves the weights; it should not tag them as the last checkpoint.
        metric: its name in the event storage, "periodic/glyphs_fold0_val/1shot/few_shot_seg/mIoU".
    """

    def __init__(self, period: int, checkpointer: DetectionCheckpointer, metric: str) -> None:
        super().__init__(period, checkpointer, metric)
        self._record = Path(checkpointer.save_dir) / "model_best.json"

    def before_train(self) -> None:
        """Read the best value of the training that is resumed."""
        if self.trainer.start_iter > 0 and self._record.is_file():
            best = read_json_object(self._record, "remove it, and the next evaluation counts as the best")
            fits = best.keys() >= {"iteration", "value"} and best.get("metric") == self._val_metric
            if fits and best["iteration"] <= self.trainer.start_iter:
                self.best_metric, self.best_iter = best["value"], best["iteration"]
        if self._val_metric in self.trainer.storage.latest():  # of an evaluation that was due at the resume
            self._best_checking()

    def _update_best(self, val: float, iteration: int) -> bool:
        updated = super()._update_best(val, iteration)
        if updated and comm.is_main_process():
            record = {"metric": self._val_metric, "value": val, "iteration": iteration}
            write_json(self._record, record, indent=None)
        return updated


def cut_metrics(path: Path, start_iter: int) -> None:
    """Drop the lines of ``metrics.json`` from iteration ``start_iter`` on: they will be written again."""
    if not path.is_file():
        return
    text = path.read_text(errors="replace")
    kept = [line for line in text.splitlines() if _iteration(line) < start_iter]
    write_atomic(path, "".join(f"{line}\n" for line in kept).encode())


def _iteration(line: str) -> float:
    """The iteration of a line of metrics; infinite for a line that was cut short."""
    try:
        return int(json.loads(line)["iteration"])
    except (ValueError, KeyError, TypeError):
        return math.inf
