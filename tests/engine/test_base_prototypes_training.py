"""Training, resuming and evaluating a model with prototypes of base classes, on a tiny `glyphs`."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import train_net
from fss_d2.engine.command_line import run_command
from tests.tiny_training import ROOT, command_line, episodes, tiny_glyphs, train

_CONFIG = """
MODEL:
  META_ARCHITECTURE: JC2A
  JC2A:
    IN_FEATURES: ("res3", "res4")
    DIM: 16
    BINS: (6, 4)
    BLOCK_SIDES: (3, 2)
    TOP_BLOCKS: (2, 1)
  BASE_KNOWLEDGE:
    IN_FEATURES: ("res3", "res4")
    NUM_CLASSES: 60
    MIN_PIXELS: 1
    CACHE_DIR: ""
FEW_SHOT:
  TEST:
    EPISODES: 3
SOLVER:
  MAX_ITER: 2
  CHECKPOINT_PERIOD: 1
TEST:
  EVAL_PERIOD: 0
  PICTURES: 0
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The config, beside the glyphs."""
    with tiny_glyphs(tmp_path_factory.mktemp("datasets"), _CONFIG, images_per_class=2) as path:
        yield path


@pytest.fixture(scope="module")
def trained(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two uninterrupted iterations."""
    folder = tmp_path_factory.mktemp("trained")
    train(config, folder)
    return folder


def _weights(path: Path) -> dict[str, Tensor]:
    return torch.load(path, weights_only=True)["model"]


def test_the_checkpoint_holds_them(trained: Path) -> None:
    first, last = _weights(trained / "model_0000000.pth"), _weights(trained / "model_final.pth")
    assert first["knowledge.filled"] and first["knowledge.prototypes"].any()
    assert torch.equal(first["knowledge.prototypes"], last["knowledge.prototypes"])


def test_evaluation_reads_no_training_data(config: Path, trained: Path, tmp_path: Path) -> None:
    weights = str(trained / "model_final.pth")
    train(config, tmp_path, "--eval-only", "MODEL.WEIGHTS", weights, "DATASETS.TRAIN", "()")
    assert episodes(tmp_path) == episodes(trained)


def test_resuming_takes_them_from_the_checkpoint(config: Path, trained: Path, tmp_path: Path) -> None:
    """To the bit, whatever the settings of building would now give."""
    train(config, tmp_path, "SOLVER.MAX_ITER", "1")
    start = torch.load(tmp_path / "model_final.pth", weights_only=True)
    start["model"]["knowledge.prototypes"] *= 1 + 1e-6  # not what would be built
    torch.save(start, tmp_path / "model_final.pth")
    train(config, tmp_path, "--resume")
    resumed = _weights(tmp_path / "model_final.pth")
    assert torch.equal(resumed["knowledge.prototypes"], start["model"]["knowledge.prototypes"])
    torch.testing.assert_close(resumed, _weights(trained / "model_final.pth"))


def test_a_new_training_builds_its_own(config: Path, trained: Path, tmp_path: Path) -> None:
    """MODEL.WEIGHTS may have been trained on another fold."""
    weights = str(trained / "model_final.pth")
    fold_1 = ["DATASETS.TRAIN", "('glyphs_fold1_train',)", "DATASETS.TEST", "()", "SOLVER.MAX_ITER", "1"]
    train(config, tmp_path, "MODEL.WEIGHTS", weights, *fold_1)
    ours, theirs = _weights(tmp_path / "model_final.pth"), _weights(Path(weights))
    assert not torch.allclose(ours["knowledge.prototypes"], theirs["knowledge.prototypes"])


def test_two_processes_have_the_same(config: Path, trained: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "train_net.py"),
        *command_line(config, tmp_path, "SOLVER.MAX_ITER", "1"),
    ]
    done = subprocess.run(
        [*command[:-4], "--num-processes", "2", *command[-4:], "DATASETS.TEST", "()"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    name = "knowledge.prototypes"
    ours, theirs = _weights(tmp_path / "model_final.pth")[name], _weights(trained / "model_final.pth")[name]
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("words", "culprit"),
    [
        (["--eval-only"], "the prototypes of the base classes (MODEL.BASE_KNOWLEDGE) are missing"),
        (["MODEL.BASE_KNOWLEDGE.NUM_CLASSES", "15"], "NUM_CLASSES is 15 but glyphs_fold0_train has 60"),
        (["MODEL.BACKBONE.BN_TRAIN_STATS", "True"], "set MODEL.BACKBONE.BN_TRAIN_STATS False"),
        (["MODEL.BASE_KNOWLEDGE.IN_FEATURES", "('res9',)"], "'res9' of MODEL.BASE_KNOWLEDGE.IN_FEATURES"),
        (["MODEL.BASE_KNOWLEDGE.MIN_PIXELS", "99999"], "MODEL.BASE_KNOWLEDGE.MIN_PIXELS"),
    ],
)
def test_wrong_settings_are_one_line(
    config: Path,
    tmp_path: Path,
    words: list[str],
    culprit: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["train_net.py", *command_line(config, tmp_path, *words)])
    assert run_command(train_net.run) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert culprit in line
