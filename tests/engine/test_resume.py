"""--resume in a folder that is damaged, of another training, or of another config."""

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny_training import tiny_glyphs, train

_CONFIG = """
MODEL:
  META_ARCHITECTURE: DCAMA
SOLVER:
  MAX_ITER: 2
  WARMUP_ITERS: 0
DATASETS:
  TEST: ()
"""
_FINAL = "model_final.pth"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with tiny_glyphs(tmp_path_factory.mktemp("resume"), _CONFIG, images_per_class=3) as path:
        yield path


@pytest.fixture(scope="module")
def trained(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train(config, folder)
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "out")


def _change(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Change the content of the last checkpoint."""

    def spoil(folder: Path) -> None:
        content = torch.load(folder / _FINAL, weights_only=True)
        change(content)
        torch.save(content, folder / _FINAL)

    return spoil


def _cut(folder: Path) -> None:
    (folder / _FINAL).write_bytes((folder / _FINAL).read_bytes()[:100_000])


def _spoil_momentum(content: dict[str, Any]) -> None:
    state = content["trainer"]["_trainer"]["optimizer"]["state"]
    next(iter(state.values()))["momentum_buffer"].fill_(float("nan"))


@pytest.mark.parametrize(
    ("spoil", "keys", "message"),
    [
        (_cut, (), "cut off; get the file again, or write the name of another checkpoint into .*/last_check"),
        (lambda folder: (folder / "last_checkpoint").write_text(""), (), "last_checkpoint is empty"),
        (
            lambda folder: (folder / "last_checkpoint").write_bytes(b"\xff"),
            (),
            "names .*, which does not exist",
        ),
        (lambda folder: (folder / "last_checkpoint").unlink(), (), f"holds {_FINAL} but no last_checkpoint"),
        (_change(lambda content: content.pop("trainer")), (), "holds no 'trainer' to resume"),
        (_change(lambda content: content["trainer"].pop("_trainer")), (), "is of another training"),
        (_change(_spoil_momentum), (), "NaN or infinite values in optimizer.state.*momentum_buffer"),
        (lambda folder: None, ("SOLVER.OPTIMIZER", "ADAMW"), "SOLVER.OPTIMIZER is another"),
        (lambda folder: None, ("MODEL.BACKBONE.FREEZE", "False"), "is of another training .*size"),
        (
            lambda folder: None,
            ("MODEL.META_ARCHITECTURE", "PFENet"),
            "lacks .* check MODEL.META_ARCHITECTURE",
        ),
    ],
)
def test_what_cannot_be_resumed_is_refused(
    config: Path, folder: Path, spoil: Callable[[Path], object], keys: tuple[str, ...], message: str
) -> None:
    spoil(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(config, folder, "SOLVER.MAX_ITER", "3", *keys, "--resume")


def test_other_keys_are_named(config: Path, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "fss_d2")
    train(config, folder, "SOLVER.BASE_LR", "0.5", "SOLVER.MAX_ITER", "3", "--resume")
    assert "is resumed: SOLVER.BASE_LR 0.5 (was 0.001); SOLVER.MAX_ITER 3 (was 2)" in caplog.text
    assert "SOLVER.BASE_LR and the like have no effect" in caplog.text
    caplog.clear()
    train(config, folder, "SOLVER.BASE_LR", "0.5", "SOLVER.MAX_ITER", "2", "--resume")
    assert f"{folder}/{_FINAL} has 3 iterations, more than SOLVER.MAX_ITER 2" in caplog.text


def test_a_new_training_in_a_used_folder_is_what_resumes(
    config: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def killed(*args: object) -> None:
        raise MemoryError

    caplog.set_level(logging.WARNING, "fss_d2")
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr("fss_d2.engine.train_loop.AutocastTrainer.run_step", killed)
        train(config, folder)
    assert f"{folder} holds an earlier training (last checkpoint {_FINAL})" in caplog.text
    with pytest.raises(ValueError, match=f"holds {_FINAL} but no last_checkpoint"):
        train(config, folder, "--resume")


def test_metrics_and_records_that_are_damaged(config: Path, folder: Path) -> None:
    (folder / "metrics.json").write_bytes(b'{"iteration": 0}\n\xff\n[1]\n{"iteration": null}\n')
    train(config, folder, "SOLVER.MAX_ITER", "3", "--resume")
    assert (folder / "metrics.json").read_text().splitlines()[0] == '{"iteration": 0}'
