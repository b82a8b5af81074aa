"""One iteration in full and in mixed precision."""

import copy
from collections.abc import Iterator

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from fss_d2.engine.step import EpisodeStep


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


def _step(model: nn.Module, **kwargs: object) -> EpisodeStep:
    return EpisodeStep(model, _loader(), torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), **kwargs)


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


def test_close_ends_the_loader_at_once() -> None:
    ended = []

    def loader() -> Iterator[list[torch.Tensor]]:
        try:
            yield from _loader()
        finally:
            ended.append(True)

    model = _Line()
    step = EpisodeStep(model, loader(), torch.optim.SGD(model.parameters(), lr=0.1))
    with EventStorage():
        step.run_step()
    step.close()
    assert ended == [True]
