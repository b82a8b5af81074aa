"""What the processes of a training decide together: when to write a log line, and when a signal ends it."""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventWriter, get_event_storage
from torch import Tensor

from .signals import Interrupted, StopRequest

__all__ = ["Agreement", "ConsoleLines", "ConsolePrinter", "PeriodicEvaluation", "StopOnSignal"]

_SECONDS = 10.0  # between two lines on the console, at most


class Agreement(HookBase):
    """Decides once an iteration, in all processes alike, whether to log and whether to stop.

    Several processes exchange two numbers while an iteration runs and use them in the next; none waits.

    Args:
        request: the signals of this process.
    """

    def __init__(self, request: StopRequest) -> None:
        self.log = False  # whether this iteration is to be logged
        self._request = request
        self._stop = 0  # number of the signal that any process has received
        self._logged = 0.0
        self._several = comm.get_world_size() > 1
        self._numbers: Tensor | None = None
        self._exchange: dist.Work | None = None

    @property
    def stop(self) -> int:
        """Number of the signal that stops the training after this iteration; 0 for none."""
        return self._stop if self._several else self._request.number or 0

    def logged(self) -> None:
        """Count the seconds to the next log line from now on."""
        self._logged = time.monotonic()

    def before_train(self) -> None:
        """Make the group of processes that exchanges these numbers."""
        self._group = dist.new_group(backend="gloo") if self._several else None

    def before_step(self) -> None:
        """Decide; the first iteration is always logged."""
        due = time.monotonic() - self._logged >= _SECONDS
        if self._several:
            due = self._from_all(due)
        self.log = due or self.trainer.iter == self.trainer.start_iter

    def _from_all(self, due: bool) -> bool:
        """The clock of the main process and the signals of all, as they were one iteration ago."""
        wanted = False
        if self._exchange is not None and self._numbers is not None:
            self._exchange.wait()
            self._stop, wanted = self._numbers[0].item(), bool(self._numbers[1])
        mine = [self._request.number or 0, due and comm.is_main_process()]
        self._numbers = torch.tensor(mine, dtype=torch.int64)
        self._exchange = dist.all_reduce(self._numbers, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return wanted


class ConsolePrinter(CommonMetricPrinter):
    """Detectron2's console line, at most one per iteration."""

    _written = -1

    def write(self) -> None:
        """Write the line of the current iteration, if it is not there yet."""
        iteration = get_event_storage().iter
        if iteration != self._written:
            self._written = iteration
            super().write()


class ConsoleLines(hooks.PeriodicWriter):
    """Console lines: the first iteration, then every ``period`` iterations, at least every ten seconds."""

    def __init__(self, printer: EventWriter, period: int, agreement: Agreement) -> None:
        super().__init__([printer], period)
        self._agreement = agreement

    def after_step(self) -> None:
        """Write if it is time."""
        periodic = (self.trainer.iter + 1) % self._period == 0
        if periodic or self._agreement.log or self.trainer.iter == self.trainer.max_iter - 1:
            self._agreement.logged()
            for writer in self._writers:
                writer.write()


class StopOnSignal(HookBase):
    """Ends the training after an iteration in which a signal came; the last hook of all."""

    def __init__(self, agreement: Agreement) -> None:
        self._agreement = agreement

    def after_step(self) -> None:
        """Call the trainer's ``stop``, which raises `Interrupted`."""
        if self._agreement.stop:
            self.trainer.stop(self._agreement.stop, together=True)


class PeriodicEvaluation(hooks.EvalHook):
    """Detectron2's hook; an evaluation that a signal interrupts is done when the training is resumed.

    Args:
        period: iterations between evaluations.
        evaluate: gives nested scores.
        request: the signals of this process.
    """

    def __init__(self, period: int, evaluate: Callable[[], Any], request: StopRequest) -> None:
        super().__init__(period, evaluate)
        self._request = request
        self._due = False

    def before_train(self) -> None:
        """Do the evaluation that is due, in the iteration before."""
        if self._due:
            self.trainer.iter -= 1
            self.trainer.storage.iter -= 1
            self._evaluate()
            self.trainer.storage.iter += 1
            self.trainer.iter += 1

    def after_step(self) -> None:
        """Evaluate after each period, but not after the last iteration: `after_train` does."""
        done = self.trainer.iter + 1
        if done % self._period == 0 and done != self.trainer.max_iter:
            self._evaluate()

    def state_dict(self) -> dict[str, Any]:
        """Whether an evaluation is due."""
        return {"due": True} if self._due else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self._due = state["due"]

    def _evaluate(self) -> None:
        """Evaluate; a signal stops the training at once."""
        try:
            with self._request.at_once():
                self._do_eval()
        except Interrupted as stop:
            self._due = True
            self.trainer.stop(stop.number)
        self._due = False
