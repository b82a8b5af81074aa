"""A full disk, a dead worker, a dead process: one line, last, and the earlier checkpoints stay whole."""

import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import train_net
from fss_d2.engine.command_line import remove_half_written, run_command
from fss_d2.engine.train_loop import AutocastTrainer
from tests.tiny_training import ROOT, command_line, tiny_glyphs, train

_CONFIG = """
MODEL:
  META_ARCHITECTURE: DCAMA
SOLVER:
  MAX_ITER: 4
  CHECKPOINT_PERIOD: 1
DATASETS:
  TEST: ()
"""
_FULL = Path("/dev/full")  # every write to it fails, as on a full disk
needs_full_disk = pytest.mark.skipif(not _FULL.is_char_device(), reason="no /dev/full")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with tiny_glyphs(tmp_path_factory.mktemp("datasets"), _CONFIG, images_per_class=3) as path:
        yield path


@pytest.fixture
def run(
    config: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """train_net.py in this process, by its command line: exit code, output, errors."""

    def call(folder: Path, *words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["train_net.py", *command_line(config, folder, *words)])
        code = run_command(train_net.run)
        return (code, *capfd.readouterr())

    return call


@needs_full_disk
def test_a_disk_that_is_full_at_a_checkpoint(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_step = AutocastTrainer.run_step

    def step(self: AutocastTrainer) -> None:
        if self.iter == 1:
            (tmp_path / f".model_0000001.pth.{os.getpid()}.tmp").symlink_to(_FULL)
        run_step(self)

    monkeypatch.setattr(AutocastTrainer, "run_step", step)
    code, output, errors = run(tmp_path)
    assert code == 1
    assert errors.splitlines()[-1] == (
        f"error: {tmp_path / 'model_0000001.pth'}: No space left on device; it is not written, checkpoints "
        "before it are whole: free space, then go on with --resume"
    )
    assert "Traceback" not in output + errors
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000000.pth"
    assert torch.load(tmp_path / "model_0000000.pth", weights_only=True)["iteration"] == 0
    assert not list(tmp_path.glob(".*.tmp"))


@needs_full_disk
def test_a_disk_that_is_full_at_the_metrics(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    (tmp_path / "metrics.json").symlink_to(_FULL)
    code, output, errors = run(tmp_path, "SOLVER.LOG_PERIOD", "1")
    assert code == 1
    assert errors.splitlines()[-1] == (
        "error: No space left on device: free some for the output; a training goes on with --resume"
    )
    assert "Traceback" not in output + errors


@needs_full_disk
def test_a_log_that_cannot_be_written_does_not_end_the_training(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    (tmp_path / "log.txt").symlink_to(_FULL)
    code, output, errors = run(tmp_path, "SOLVER.MAX_ITER", "1")
    assert code == 0
    line = f"warning: {tmp_path / 'log.txt'}: No space left on device; the log goes on without it"
    assert errors.splitlines().count(line) == 1
    assert "Traceback" not in errors
    assert (tmp_path / "model_final.pth").is_file()
    assert " iter: 0 " in output


def test_a_console_whose_reader_has_gone_does_not_end_the_program() -> None:
    code = "import logging; from fss_d2.engine.run_log import start_log; start_log()\n"
    code += "for _ in 'abc': logging.getLogger('fss_d2').info('a line')\nprint('the end')"
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert done.returncode == 0
    assert "warning: <stdout>: Broken pipe; the log goes on without it" in done.stderr.splitlines()
    assert "Traceback" not in done.stderr


def test_the_console_gets_ten_lines_about_the_run_and_the_file_all(
    run: Callable[..., tuple[int, str, str]], config: Path, tmp_path: Path
) -> None:
    _, output, _ = run(tmp_path, "SOLVER.MAX_ITER", "1", "SOLVER.BASE_LR", "0.02")
    lines = [re.sub(r"\x1b\[\d+m", "", line) for line in output.splitlines()]
    (start,) = [i for i, line in enumerate(lines) if line.endswith("The run:")]
    assert start == 0
    assert lines[1:10] == [
        "  method        DCAMA",
        "  backbone      build_timm_backbone tf_efficientnet_lite0, frozen",
        "  weights       none",
        "  training set  glyphs_fold0_train, 1-shot",
        "  iterations    1, 2 episodes each, seed 0",
        "  learning rate 0.02, SGD, ConstantLR",
        "  test set      none",
        "  device        cpu, 1 process",
        f"  output        {tmp_path} (config.yaml: all keys; log.txt: this log and the environment)",
    ]
    assert len(lines) < 30
    log = (tmp_path / "log.txt").read_text()
    for text in (
        "Running with full config",
        "WEIGHT_DECAY_NORM",
        "Environment info",
        "The run:",
        " iter: 0 ",
    ):
        assert text in log, text
        assert (text in output) == (text in ("The run:", " iter: 0 "))


def test_half_written_files_of_killed_runs_are_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    names = {
        f".model_0000009.pth.{ended.pid}.tmp": False,  # of a process that has ended
        f".model_0000009.pth.{os.getpid()}.tmp": False,  # of an earlier one of this number
        f".model_0000009.pth.{os.getppid()}.tmp": True,  # of one that is alive
        ".model_0000009.pth.99999999999999999999.tmp": False,  # of none
        ".notes.tmp": True,
        "model_0000008.pth": True,
        f"other/.model_0000009.pth.{ended.pid}.tmp": True,  # of another run
    }
    (tmp_path / "other").mkdir()
    for name in names:
        (tmp_path / name).write_bytes(b"PK")
    with caplog.at_level(logging.INFO):
        remove_half_written(tmp_path)
    assert {name: (tmp_path / name).exists() for name in names} == names
    assert (
        f"Removed {tmp_path}/.model_0000009.pth.{ended.pid}.tmp, half-written by a run that was killed"
        in (caplog.messages)
    )


def test_a_training_removes_them(config: Path, tmp_path: Path) -> None:
    left = tmp_path / ".model_0000003.pth.99999999.tmp"
    left.write_bytes(b"PK")
    train(config, tmp_path, "SOLVER.MAX_ITER", "1")
    assert not left.exists()


def test_a_worker_that_was_killed(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the kernel kills it where memory is short."""
    from fss_d2.data.build import EpisodeDataset

    monkeypatch.setattr(EpisodeDataset, "__getitem__", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    code, output, errors = run(tmp_path, "DATALOADER.NUM_WORKERS", "1")
    assert code == 1
    assert re.fullmatch(
        r"error: data loader worker \d+ (was killed \(Killed\)|ended without a word): the machine may "
        r"have run out of memory; lower DATALOADER.NUM_WORKERS or SOLVER.IMS_PER_BATCH",
        errors.splitlines()[-1],
    )
    assert "Traceback" not in output + errors


# One process of two does what its second word says, while the other waits for it.
_PROGRAM = """
import os, signal, sys
import torch.distributed as dist
from detectron2.utils import comm
from fss_d2.engine.command_line import run_command
from fss_d2.engine.launch import LaunchPlan, launch

def work(what):
    if comm.get_rank() == 1 and what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if comm.get_rank() == 1 and what == "error":
        raise ValueError("image a.jpg is broken;\\nreplace it")
    comm.synchronize()

if __name__ == "__main__":
    sys.exit(run_command(lambda: launch(work, LaunchPlan(num_gpus=0, num_processes=2), sys.argv[1:])))
"""


def _two(tmp_path: Path, *command: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "program.py").write_text(_PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    options = {"capture_output": True, "text": True, "check": False, "timeout": 120, "cwd": tmp_path}
    return subprocess.run([sys.executable, *command], env=environment, **options)


def test_a_process_that_was_killed(tmp_path: Path) -> None:
    done = _two(tmp_path, "program.py", "killed")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "error: process 1 of 2 was killed by SIGKILL; the machine may have run out of memory: "
        "lower SOLVER.IMS_PER_BATCH or DATALOADER.NUM_WORKERS"
    )
    assert "Traceback" not in done.stderr


def test_the_report_of_torchrun_ends_with_the_line(tmp_path: Path) -> None:
    """The other process says only that it lost one; torchrun's own report comes after both."""
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = _two(tmp_path, *torchrun, "program.py", "error")
    assert done.returncode == 1
    line = "error: image a.jpg is broken; replace it"
    assert done.stderr.splitlines().count(line) == 1
    *_, last, end = [text for text in done.stderr.splitlines() if text.strip()]
    assert last == f"  traceback : {line}"
    assert set(end) == {"="}
