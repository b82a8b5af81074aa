"""Signals in a training: what is saved, what is said, the exit code, and that a resume is exact."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import train_net
from fss_d2.engine import trainer as trainer_module
from fss_d2.engine.command_line import run_command
from fss_d2.engine.train_loop import AutocastTrainer
from tests.tiny_training import ROOT, command_line, tiny_glyphs, train

_CONFIG = """
MODEL:
  META_ARCHITECTURE: DCAMA
FEW_SHOT:
  TEST:
    EPISODES: 2
SOLVER:
  MAX_ITER: 4
  BASE_LR: 0.01
  LOG_PERIOD: 2
TEST:
  EVAL_PERIOD: 2
  PERIODIC_EPISODES: 2
  PICTURES: 0
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with tiny_glyphs(tmp_path_factory.mktemp("datasets"), _CONFIG, images_per_class=3) as path:
        yield path


@pytest.fixture(scope="module")
def whole(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    train(config, folder)
    return folder


@pytest.fixture
def run(config: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """train_net.py in this process, by its command line; returns the exit code."""

    def call(folder: Path, *words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["train_net.py", *command_line(config, folder, *words)])
        return run_command(train_net.run)

    return call


def _signal_at(monkeypatch: pytest.MonkeyPatch, iteration: int, number: int) -> None:
    """Send this process a signal at the start of an iteration."""
    run_step = AutocastTrainer.run_step

    def step(self: AutocastTrainer) -> None:
        if self.iter == iteration:
            os.kill(os.getpid(), number)
        run_step(self)

    monkeypatch.setattr(AutocastTrainer, "run_step", step)


def _model(folder: Path) -> dict[str, Any]:
    content = torch.load(folder / "model_final.pth", weights_only=True)
    return content["model"] | content["trainer"]["_trainer"]["optimizer"]["state"]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return a == b


def _scores(folder: Path) -> dict[int, float]:
    """The periodic scores by iteration."""
    name = "periodic/glyphs_fold0_val/1shot/few_shot_seg/mIoU"
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return {line["iteration"]: line[name] for line in lines if name in line}


@pytest.mark.parametrize(
    ("name", "said", "code"),
    [("SIGTERM", "SIGTERM", 143), ("SIGHUP", "SIGHUP", 129), ("SIGINT", "Ctrl-C", 130)],
)
def test_a_signal_saves_a_checkpoint_and_the_resume_is_exact(
    name: str,
    said: str,
    code: int,
    run: Callable[..., int],
    whole: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = signal.getsignal(signal.Signals[name])
    with monkeypatch.context() as patch:
        _signal_at(patch, 2, signal.Signals[name])
        assert run(tmp_path) == code
    first, last = capfd.readouterr().err.splitlines()[-2:]
    assert first == f"{said}: the training stops after this iteration; a second signal ends it now"
    saved = tmp_path / "model_0000002.pth"
    assert last == (
        f"stopped by {said} after 3 of 4 iterations; saved {saved}: the same command with --resume goes on"
    )
    assert (tmp_path / "last_checkpoint").read_text() == saved.name
    assert not (tmp_path / "inference").exists()
    assert signal.getsignal(signal.Signals[name]) is before
    if name != "SIGTERM":
        return  # the rest is the same
    assert run(tmp_path, "--resume") == 0
    assert _same(_model(tmp_path), _model(whole))
    assert _scores(tmp_path) == _scores(whole)


def test_an_evaluation_that_a_signal_ended_is_done_at_the_resume(
    run: Callable[..., int], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = trainer_module.evaluate_periodically

    def interrupted(*args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*args)

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "evaluate_periodically", interrupted)
        assert run(tmp_path) == 143
        assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
        assert run(tmp_path, "--resume") == 143  # again before it could finish
    assert run(tmp_path, "--resume") == 0
    assert _scores(tmp_path) == _scores(whole)
    records = [json.loads((folder / "model_best.json").read_text()) for folder in (tmp_path, whole)]
    assert records[0] == records[1]
    assert _same(_model(tmp_path), _model(whole))


def test_a_signal_in_the_final_evaluation(
    run: Callable[..., int],
    whole: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*args: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module.Trainer, "test", staticmethod(interrupted))
        assert run(tmp_path) == 143
    assert capfd.readouterr().err.splitlines()[-1] == (
        f"stopped by SIGTERM in the final evaluation; saved {tmp_path / 'model_final.pth'}: "
        "the same command with --resume goes on"
    )
    assert run(tmp_path, "--resume") == 0
    results = [json.loads((folder / "results.json").read_text())["results"] for folder in (tmp_path, whole)]
    assert results[0] == results[1]


def test_an_evaluation_alone_ends_with_one_line(
    run: Callable[..., int], whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    def interrupted(*args: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(trainer_module.Trainer, "test", staticmethod(interrupted))
    assert run(tmp_path, "--eval-only", "MODEL.WEIGHTS", str(whole / "model_final.pth")) == 143
    assert capfd.readouterr().err.splitlines()[-1] == "stopped by SIGTERM"
    assert not (tmp_path / "results.json").exists()


def test_a_signal_that_nohup_ignores_stays_ignored(
    run: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        _signal_at(monkeypatch, 0, signal.SIGHUP)
        assert run(tmp_path, "SOLVER.MAX_ITER", "1", "DATASETS.TEST", "()") == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("seconds", "shown"), [(1e9, [0, 3]), (0.0, [0, 1, 2, 3])])
def test_console_lines_come_by_the_clock_and_metrics_by_the_period(
    seconds: float,
    shown: list[int],
    run: Callable[..., int],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first iteration is shown at once; losses are read only for a line, as a GPU waits for that."""
    reads: list[int] = []
    read_losses = AutocastTrainer.read_losses

    def counted(self: AutocastTrainer) -> None:
        reads.append(self.iter)
        read_losses(self)

    monkeypatch.setattr(AutocastTrainer, "read_losses", counted)
    monkeypatch.setattr("fss_d2.engine.stopping._SECONDS", seconds)
    assert run(tmp_path, "SOLVER.LOG_PERIOD", "1000", "DATASETS.TEST", "()", "TEST.EVAL_PERIOD", "0") == 0
    assert [int(found) for found in re.findall(r" iter: (\d+) ", capfd.readouterr().out)] == shown
    assert reads == shown
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines if "total_loss" in line] == [3]


def _start(config: Path, folder: Path, *words: str) -> subprocess.Popen[str]:
    """train_net.py in a process and a process group of its own, after its first iteration."""
    command = [sys.executable, str(ROOT / "train_net.py"), *command_line(config, folder, *words)]
    options = {"env": {**os.environ, "PYTHONPATH": str(ROOT)}, "start_new_session": True, "text": True}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if " iter: 0 " in line:  # the first iteration is logged at once, whatever the period
            return process
    raise AssertionError("".join(seen))


_LONG = ("SOLVER.MAX_ITER", "100000", "SOLVER.LOG_PERIOD", "5000", "DATASETS.TEST", "()")


def test_a_signal_to_the_whole_group_of_processes(config: Path, tmp_path: Path) -> None:
    """As Ctrl-C on a terminal: the loader's workers get it too, and must load on."""
    process = _start(config, tmp_path, *_LONG, "DATALOADER.NUM_WORKERS", "2")
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    saved = tmp_path / (tmp_path / "last_checkpoint").read_text()
    assert output.splitlines()[-1].startswith("stopped by Ctrl-C after ")
    assert f"saved {saved}: the same command with --resume goes on" in output.splitlines()[-1]
    assert "Traceback" not in output


def test_two_processes_stop_after_the_same_iteration(config: Path, tmp_path: Path) -> None:
    process = _start(config, tmp_path, *_LONG, "--num-processes", "2")
    os.kill(process.pid, signal.SIGTERM)  # to the parent alone, as `kill` does
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    (saved,) = tmp_path.glob("*.pth")
    iteration = torch.load(saved, weights_only=True)["iteration"]
    last = output.splitlines()[-1]
    assert last.startswith(f"stopped by SIGTERM after {iteration + 1} of 100000 iterations; saved {saved}")
    assert "Traceback" not in output


def test_a_second_signal_ends_the_training_at_once(config: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import signal, sys, time\n"
        "if sys.argv[0].endswith('train_net.py'):\n"
        "    import fss_d2.engine.train_loop as loop\n"
        "    loop.AutocastTrainer.run_step = lambda self: (print(' iter: 0 ', flush=True), time.sleep(60))\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, str(ROOT / "train_net.py"), *command_line(config, tmp_path / "out", *_LONG)]
    options = {"env": environment, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, **options) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if " iter: 0 " in line:
                process.send_signal(signal.SIGTERM)
            if line.startswith("SIGTERM: the training stops after this iteration"):
                process.send_signal(signal.SIGTERM)
                began = time.monotonic()
        assert process.wait(timeout=10) == 143
        assert time.monotonic() - began < 10
    assert not list((tmp_path / "out").glob("*.pth"))
