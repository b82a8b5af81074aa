"""A loss that becomes NaN on one episode: the message names it, and the replay finds it."""

import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import train_net
from fss_d2.engine.command_line import run_command
from fss_d2.modeling.meta_arch.dcama import DCAMA
from tests.tiny_training import command_line, tiny_glyphs

_CONFIG = """
MODEL:
  META_ARCHITECTURE: DCAMA
FEW_SHOT:
  SEED: 5
SOLVER:
  MAX_ITER: 8
  BASE_LR: 0.01
  LOG_PERIOD: 100
  CHECKPOINT_PERIOD: 3
DATASETS:
  TEST: ()
"""
_BAD = 9  # number of the episode: the second of two in iteration 4


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with tiny_glyphs(tmp_path_factory.mktemp("datasets"), _CONFIG, images_per_class=3) as path:
        yield path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """train_net.py in this process, by its command line: the exit code and the last line."""

    def call(words: list[str]) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["train_net.py", *words])
        code = run_command(train_net.run)
        return code, capfd.readouterr().err.splitlines()[-1]

    return call


def _spoil(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Make the loss of one episode NaN; returns what the losses of its batches would have been."""
    forward, seen = DCAMA.forward, []

    def spoilt(self: DCAMA, episodes: list[dict[str, Any]]) -> Any:
        losses = forward(self, episodes)
        if any(episode["episode_index"] == _BAD for episode in episodes):
            seen.append(sum(losses.values()).item())
            return {name: loss * float("nan") for name, loss in losses.items()}
        return losses

    monkeypatch.setattr(DCAMA, "forward", spoilt)
    return seen


def _command(line: str) -> list[str]:
    """The words of the command in an error."""
    return shlex.split(line.partition("replay it by `")[2].partition("`")[0])


@pytest.mark.parametrize("period", ["3", "100"])
def test_the_episode_is_named_and_replayed(
    period: str,
    config: Path,
    run: Callable[..., tuple[int, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the last checkpoint and from the beginning; the replayed loss has the same bits."""
    seen = _spoil(monkeypatch)
    code, line = run(command_line(config, tmp_path, "SOLVER.CHECKPOINT_PERIOD", period))
    assert code == 1
    found = json.loads((tmp_path / "failed_episode.json").read_text())
    assert [entry["index"] for entry in found["episodes"]] == [8, 9]
    assert found["iteration"] == 4
    assert found["checkpoint"] == (str(tmp_path / "model_0000002.pth") if period == "3" else "")
    bad = found["episodes"][1]
    assert Path(bad["query"]).is_file() and all(map(Path.is_file, map(Path, bad["supports"])))
    sentence = (
        f"episode 9: class {bad['class_id']} {bad['class']}, query {bad['query']}, "
        f"supports {bad['supports'][0]}, seed {bad['seed']}"
    )
    assert line.startswith("error: Loss became infinite or NaN at iteration=4 (")
    assert sentence in line
    command = _command(line)
    assert command == [
        *("python", "train_net.py", "--config-file", str(tmp_path / "config.yaml"), "--num-gpus", "0"),
        *("--replay", str(tmp_path / "failed_episode.json")),
    ]
    before = {path: path.read_bytes() for path in tmp_path.glob("*.pth")}
    code, line = run(command[2:])
    assert (code, line) == (
        1,
        f"error: replayed: the loss of iteration 4 is infinite or NaN again: {sentence}",
    )
    assert seen[0] == seen[1]  # of the batch, with the weights and random numbers of the failure
    assert {path: path.read_bytes() for path in tmp_path.glob("*.pth")} == before


def test_a_failure_that_does_not_come_again(
    config: Path,
    run: Callable[..., tuple[int, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        _spoil(patch)
        _, line = run(command_line(config, tmp_path))
    monkeypatch.setattr(sys, "argv", ["train_net.py", *_command(line)[2:]])
    assert run_command(train_net.run) == 0
    log = (tmp_path / "log.txt").read_text()
    assert re.search(r"Iteration 4: the batch has \{'loss_seg': 0\.\d+", log)
    assert "The losses are finite this time" in log


_EPISODES = '{"iteration": 3, "rank": 0, "checkpoint": "", "episodes": [{"query": "a.jpg"}]}'


@pytest.mark.parametrize("content", ["{}", '{"iteration": 3}', _EPISODES, "[]", "not JSON"])
def test_another_file_is_refused(
    content: str, config: Path, run: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    (tmp_path / "other.json").write_text(content)
    code, line = run(command_line(config, tmp_path / "out", "--replay", str(tmp_path / "other.json")))
    assert code == 1
    assert f"{tmp_path / 'other.json'}" in line
    assert "give the failed_episode.json of a training" in line
