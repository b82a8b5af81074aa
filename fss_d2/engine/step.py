"""One training iteration: data, loss, gradient, update; in full or mixed precision."""

import logging
import time
from collections.abc import Iterable
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from torch import nn

from .solver import GradientClipper

__all__ = ["AMP_DTYPES", "EpisodeStep"]

logger = logging.getLogger(__name__)

AMP_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class EpisodeStep(SimpleTrainer):
    """Detectron2's `SimpleTrainer` with mixed precision and gradient clipping on today's torch.

    Args:
        model: returns a dict of losses for what the loader yields; may be wrapped for distributed training.
        data_loader: an iterable of lists of episodes that does not end, whose iterator is a generator.
        optimizer: over the model's trainable parameters.
        clip: see `build_gradient_clipper`.
        amp_dtype: "float16", "bfloat16", or None for full precision. CPUs have no float16 worth using: there
            it becomes bfloat16, with a warning.

    Raises:
        ValueError: an unknown ``amp_dtype``.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[list[dict[str, Any]]],
        optimizer: torch.optim.Optimizer,
        *,
        clip: GradientClipper | None = None,
        amp_dtype: str | None = None,
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        if amp_dtype is not None and amp_dtype not in AMP_DTYPES:
            raise ValueError(f"SOLVER.AMP.DTYPE is {amp_dtype!r}; use one of {', '.join(AMP_DTYPES)}")
        self._clip = clip
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._device_type = self._parameters[0].device.type
        if amp_dtype == "float16" and self._device_type == "cpu":
            logger.warning("SOLVER.AMP on a CPU runs in bfloat16, not in float16.")
            amp_dtype = "bfloat16"
        self._amp_dtype = None if amp_dtype is None else AMP_DTYPES[amp_dtype]
        # Only float16 gradients underflow; disabled, the scaler passes everything through.
        self.grad_scaler = torch.amp.GradScaler(self._device_type, enabled=amp_dtype == "float16")

    def run_step(self) -> None:
        """Run one iteration and record its losses.

        Raises:
            FloatingPointError: a loss became infinite or NaN.
        """
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        with torch.autocast(self._device_type, self._amp_dtype, enabled=self._amp_dtype is not None):
            losses = self.model(batch)
            total = sum(losses.values())
        self.optimizer.zero_grad(set_to_none=True)
        self.grad_scaler.scale(total).backward()
        self._write_metrics(losses, data_time)
        if self._clip is not None:
            self.grad_scaler.unscale_(self.optimizer)
            self._clip(self._parameters)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def close(self) -> None:
        """Let go of the loader's workers; left to the garbage collector they take seconds to end."""
        self._data_loader_iter.close()

    def state_dict(self) -> dict[str, Any]:
        """Iteration, optimizer and scaler."""
        return super().state_dict() | {"grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` gave; a scaler saved in another precision is left out."""
        super().load_state_dict(state_dict)
        if self.grad_scaler.is_enabled() and state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
