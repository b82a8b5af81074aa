"""Random state per iteration, the best model across a resume, one metrics file."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.engine import TrainerBase
from torch import nn

from fss_d2.checkpoint.checkpointer import FewShotCheckpointer
from fss_d2.engine.train_loop import KeepBest, SetModelIteration, cut_metrics, seed_iteration


def _draw() -> tuple[float, float, float]:
    return torch.rand(1).item(), float(np.random.rand()), random.random()


def test_an_iteration_draws_the_same_whatever_came_before() -> None:
    seed_iteration(3, 7, 0)
    first = _draw()
    seed_iteration(3, 6, 0)
    _draw(), _draw()
    seed_iteration(3, 7, 0)
    assert _draw() == first


def test_seed_iteration_and_process_all_count() -> None:
    draws = []
    for numbers in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]:
        seed_iteration(*numbers)
        draws.append(_draw())
    assert all(len(set(column)) == 4 for column in zip(*draws, strict=True))


class _Scores(TrainerBase):
    """Runs iterations whose metric is prescribed; the model's weight is the iteration."""

    def __init__(self, folder: Path, scores: list[float]) -> None:
        super().__init__()
        self.model = nn.Linear(1, 1)
        self.scores = scores
        checkpointer = FewShotCheckpointer(self.model, str(folder), tag_last=False)
        self.register_hooks([KeepBest(1, checkpointer, "val/mIoU")])

    def run_step(self) -> None:
        nn.init.constant_(self.model.weight, self.iter)
        self.storage.put_scalar("val/mIoU", self.scores[self.iter], smoothing_hint=False)


def _kept(folder: Path) -> int:
    return int(torch.load(folder / "model_best.pth", weights_only=True)["model"]["weight"].item())


def test_the_best_model_survives_a_resume(tmp_path: Path) -> None:
    scores = [10.0, 30.0, 20.0, 25.0, 40.0, float("nan")]
    _Scores(tmp_path, scores).train(0, 3)
    assert _kept(tmp_path) == 1
    _Scores(tmp_path, scores).train(3, 4)  # resumed: 25 is worse than 30
    assert _kept(tmp_path) == 1
    _Scores(tmp_path, scores).train(4, 6)
    assert _kept(tmp_path) == 4
    record = json.loads((tmp_path / "model_best.json").read_text())
    assert record == {"metric": "val/mIoU", "value": 40.0, "iteration": 4}
    assert not (tmp_path / "last_checkpoint").exists()


def test_a_new_training_forgets_the_old_best(tmp_path: Path) -> None:
    _Scores(tmp_path, [90.0, 80.0]).train(0, 2)
    _Scores(tmp_path, [10.0, 20.0, 15.0]).train(0, 3)
    assert _kept(tmp_path) == 1


@pytest.mark.parametrize(("start", "left"), [(0, []), (40, [19, 39]), (41, [19, 39, 40])])
def test_metrics_that_will_be_written_again_are_cut(tmp_path: Path, start: int, left: list[int]) -> None:
    path = tmp_path / "metrics.json"
    lines = [json.dumps({"iteration": i, "loss": 0.5}) for i in (19, 39, 40, 59)]
    path.write_text("\n".join(lines) + '\n{"iteration": 5, "lo')  # killed while writing
    cut_metrics(path, start)
    assert [json.loads(line)["iteration"] for line in path.read_text().splitlines()] == left


def test_no_metrics_yet(tmp_path: Path) -> None:
    cut_metrics(tmp_path / "metrics.json", 0)
    assert not list(tmp_path.iterdir())


class _Counts(TrainerBase):
    """Notes the iteration that the model knows at each step."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.seen: list[int] = []
        self.register_hooks([SetModelIteration()])

    def run_step(self) -> None:
        self.seen.append(getattr(self.model, "module", self.model).iteration)


def test_the_model_knows_the_iteration_also_after_a_resume() -> None:
    trainer = _Counts(nn.Linear(1, 1))
    trainer.train(0, 2)
    trainer.train(5, 7)
    assert trainer.seen == [0, 1, 5, 6]


def test_a_model_wrapped_for_distributed_training_knows_the_iteration(tmp_path: Path) -> None:
    init = f"file://{tmp_path / 'group'}"
    torch.distributed.init_process_group("gloo", init_method=init, rank=0, world_size=1)
    try:
        trainer = _Counts(nn.parallel.DistributedDataParallel(nn.Linear(1, 1)))
        trainer.train(3, 5)
    finally:
        torch.distributed.destroy_process_group()
    assert trainer.seen == [3, 4]
