"""One iteration in full and in mixed precision."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fss_d2.engine.train_loop import AutocastTrainer


class _Line(nn.Module):
    """loss = mean of w x, so that the gradient of w is the mean of x."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.linear.weight)
        self.seen: list[torch.dtype] = []

    def forward(self, batch: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        output = self.linear(torch.stack(batch))
        self.seen.append(output.dtype)
        return {"loss_line": output.float().mean()}


def _loader() -> Iterator[list[torch.Tensor]]:
    while True:
        yield [torch.tensor([2.0]), torch.tensor([4.0])]


def _step(model: nn.Module, **kwargs: object) -> AutocastTrainer:
    return AutocastTrainer(
        model, _loader(), torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), **kwargs
    )


def test_two_steps_by_hand() -> None:
    model = _Line()
    step = _step(model)
    with EventStorage() as storage:
        step.run_step()
        assert storage.latest()["total_loss"][0] == pytest.approx(3.0)
        assert model.linear.weight.item() == pytest.approx(1 - 0.1 * 3)
        step.run_step()
    assert model.linear.weight.item() == pytest.approx(0.7 - 0.1 * (3 + 0.9 * 3))


def test_state_holds_the_momentum() -> None:
    first, second = _Line(), _Line()
    step = _step(first)
    with EventStorage():
        step.run_step()
        other = _step(second)
        second.load_state_dict(first.state_dict())
        other.load_state_dict(copy.deepcopy(step.state_dict()))
        step.run_step()
        other.run_step()
    assert torch.equal(first.linear.weight, second.linear.weight)


def test_gradients_are_clipped() -> None:
    model = _Line()
    with EventStorage():
        _step(model, clip=lambda p: nn.utils.clip_grad_norm_(p, 1.0)).run_step()
    assert model.linear.weight.item() == pytest.approx(1 - 0.1, abs=1e-6)


def test_mixed_precision_on_a_cpu_is_bfloat16(caplog: pytest.LogCaptureFixture) -> None:
    model = _Line()
    with EventStorage():
        _step(model, amp_dtype="float16").run_step()
    assert model.seen == [torch.bfloat16]
    assert "bfloat16" in caplog.text
    assert model.linear.weight.item() == pytest.approx(0.7, abs=1e-2)
    assert model.linear.weight.dtype == torch.float32


def test_unknown_precision() -> None:
    with pytest.raises(ValueError, match="DTYPE is 'float8'"):
        _step(_Line(), amp_dtype="float8")


def test_a_loss_that_became_nan_stops_the_training() -> None:
    model = _Line()
    nn.init.constant_(model.linear.weight, float("nan"))
    with EventStorage(), pytest.raises(FloatingPointError, match="iteration=0"):
        _step(model).run_step()


class _CountReads(TorchDispatchMode):
    """Counts what copies numbers from a device, each of which makes the host wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.reads += func is torch.ops.aten._local_scalar_dense.default  # item(), bool(), float()
        return func(*args, **(kwargs or {}))

    def __enter__(self) -> "_CountReads":
        self._patch = pytest.MonkeyPatch()
        for name in ("tolist", "cpu", "numpy"):
            self._patch.setattr(torch.Tensor, name, self._counted(getattr(torch.Tensor, name)))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self._patch.undo()
        super().__exit__(*error)

    def _counted(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.reads += 1
            return method(*args, **kwargs)

        return call


def _run(**options: object) -> tuple[list[tuple[float, int]], list[int]]:
    """The curve of ten iterations in the event storage, and how many reads each of them made."""
    step, reads = _step(_Line(), **options), []
    with EventStorage() as storage:
        for iteration in range(10):
            storage.iter = iteration
            with _CountReads() as counted:
                step.run_step()
            reads.append(counted.reads)
        assert storage.iter == 9
        return storage.history("total_loss").values(), reads


def test_losses_are_read_together_and_the_curve_is_the_same() -> None:
    """On a GPU each read waits for it: none but in the iterations that are asked to."""
    curve, often = _run()
    assert all(often)
    later, reads = _run(reads_losses=lambda iteration: iteration in (4, 9))
    assert later == curve
    assert [iteration for _, iteration in curve] == list(range(10))
    assert [bool(count) for count in reads] == [iteration in (4, 9) for iteration in range(10)]


def test_a_loss_that_was_nan_is_found_at_the_next_read() -> None:
    model = _Line()
    step = _step(model, reads_losses=lambda iteration: iteration == 3)
    with EventStorage() as storage:
        for iteration in range(3):
            storage.iter = iteration
            step.run_step()
            if iteration == 0:
                nn.init.constant_(model.linear.weight, float("nan"))
        storage.iter = 3
        with pytest.raises(FloatingPointError, match="iteration=1"):
            step.run_step()


def test_close_ends_the_loader_at_once() -> None:
    ended = []

    def loader() -> Iterator[list[torch.Tensor]]:
        try:
            yield from _loader()
        finally:
            ended.append(True)

    model = _Line()
    step = AutocastTrainer(model, loader(), torch.optim.SGD(model.parameters(), lr=0.1))
    with EventStorage():
        step.run_step()
    step.close()
    assert ended == [True]
