"""Training, resuming and evaluating on a tiny `glyphs`, and what is said when something is wrong."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fss_d2.engine.command_line import run_command
from fss_d2.engine.train_loop import AutocastTrainer
from tests.tiny_training import ROOT, command_line, episodes, tiny_glyphs, train

_CONFIG = """
MODEL:
  META_ARCHITECTURE: DCAMA
FEW_SHOT:
  TEST:
    EPISODES: 5
SOLVER:
  MAX_ITER: 4
  BASE_LR: 0.01
  CHECKPOINT_PERIOD: 2
  LOG_PERIOD: 1
TEST:
  EVAL_PERIOD: 3
  PERIODIC_EPISODES: 2
  PICTURES: 1
"""

_STAGE_1 = """
_BASE_: "tiny.yaml"
MODEL:
  META_ARCHITECTURE: PotentialObjectsSegmenter
  PROPOSALS:
    NUM_QUERIES: 10
    DIM: 32
    ENCODER_LAYERS: 1
    ENCODER_FEEDFORWARD: 32
    DECODER_LAYERS: 3
    DECODER_FEEDFORWARD: 32
    NUM_HEADS: 4
    LOSS:
      NUM_POINTS: 64
FEW_SHOT:
  TRAIN:
    SHOTS: (0,)
INPUT:
  SEGMENTS: semantic
SOLVER:
  OPTIMIZER: ADAMW
  BASE_LR: 0.001
TEST:
  EVALUATORS: ("oracle", "proposal_recall")
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The config, in the folder of the glyphs."""
    with tiny_glyphs(tmp_path_factory.mktemp("datasets"), _CONFIG, images_per_class=3) as path:
        yield path


@pytest.fixture(scope="module")
def stage_1(config: Path) -> Path:
    path = config.with_name("stage1.yaml")
    path.write_text(_STAGE_1)
    return path


@pytest.fixture(scope="module")
def trained(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of four uninterrupted iterations, with two workers."""
    folder = tmp_path_factory.mktemp("trained")
    train(config, folder, "DATALOADER.NUM_WORKERS", "2")
    return folder


def _load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def _equal(a: Any, b: Any) -> bool:
    """Deep equality, tensors to the bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_equal, a, b))
    return a == b


def _losses(folder: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [(line["iteration"], line["total_loss"]) for line in lines if "total_loss" in line]


def test_a_training_leaves_its_files(trained: Path) -> None:
    assert [iteration for iteration, _ in _losses(trained)] == [0, 1, 2, 3]
    assert (trained / "last_checkpoint").read_text() == "model_final.pth"
    for name in ("model_0000001.pth", "model_final.pth", "model_best.pth"):
        assert "model" in _load(trained / name)
    folder = trained / "inference" / "glyphs_fold0_val_1shot"
    header, *episodes = (folder / "manifest.jsonl").read_text().splitlines()
    assert json.loads(header)["dataset"] == "glyphs_fold0_val"
    assert len(episodes) == 5
    results = json.loads((trained / "results.json").read_text())
    assert results["weights"] == str(trained / "model_final.pth")
    assert 0 <= results["results"]["glyphs_fold0_val/1shot"]["few_shot_seg"]["mIoU"] <= 100


def test_tensorboard_has_curves_and_pictures(trained: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained)).Reload()
    assert "total_loss" in events.Tags()["scalars"]
    assert "periodic/glyphs_fold0_val/1shot/few_shot_seg/mIoU" in events.Tags()["scalars"]
    assert events.Tags()["images"] == ["episodes/0000"]


def test_only_the_head_is_trained(trained: Path) -> None:
    first, last = (_load(trained / name)["model"] for name in ("model_0000001.pth", "model_final.pth"))
    changed = {name.split(".")[0] for name in first if not torch.equal(first[name], last[name])}
    assert changed == {"head"}


def _run_with_a_stop(config: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the fourth iteration, resumed from the checkpoint after two, without workers."""
    run_step = AutocastTrainer.run_step

    def stop_at_the_fourth(step: AutocastTrainer) -> None:
        if step.iter == 3:
            raise KeyboardInterrupt
        run_step(step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(AutocastTrainer, "run_step", stop_at_the_fourth)
        train(config, folder)
    assert (folder / "last_checkpoint").read_text() == "model_0000001.pth"
    assert not (folder / "inference").exists()  # a training that broke off is not evaluated
    train(config, folder, "--resume")


def test_stop_and_resume_is_exact(
    config: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _run_with_a_stop(config, tmp_path, monkeypatch)
    assert _equal(_load(tmp_path / "model_final.pth"), _load(trained / "model_final.pth"))
    assert _losses(tmp_path) == _losses(trained)
    assert episodes(tmp_path) == episodes(trained)


def test_proposals_are_trained_resumed_and_judged(
    stage_1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped, again = (tmp_path / name for name in ("whole", "stopped", "again"))
    train(stage_1, whole)
    _run_with_a_stop(stage_1, stopped, monkeypatch)
    assert _equal(_load(stopped / "model_final.pth"), _load(whole / "model_final.pth"))
    assert _losses(stopped) == _losses(whole)
    scores = json.loads((whole / "results.json").read_text())["results"]["glyphs_fold0_val/1shot"]
    assert list(scores) == ["oracle", "proposal_recall"]
    assert 0 < scores["oracle"]["mIoU"] <= 100
    assert 0 <= scores["proposal_recall"]["AR@10"] == scores["proposal_recall"]["AR@100"]  # 10 proposals
    best = json.loads((whole / "model_best.json").read_text())
    assert best["metric"] == "periodic/glyphs_fold0_val/1shot/oracle/mIoU"
    assert list((whole / "inference" / "glyphs_fold0_val_1shot" / "oracle" / "pictures").iterdir())
    train(stage_1, again, "--eval-only", "MODEL.WEIGHTS", str(whole / "model_final.pth"))
    files = [f / "inference" / "glyphs_fold0_val_1shot" / "oracle" / "episodes.jsonl" for f in (whole, again)]
    assert files[0].read_text() == files[1].read_text()


def test_a_loss_that_became_nan_is_found_before_a_checkpoint(config: Path, tmp_path: Path) -> None:
    opts = ["SOLVER.BASE_LR", "1e30", "SOLVER.LOG_PERIOD", "100", "TEST.EVAL_PERIOD", "0"]
    with pytest.raises(FloatingPointError, match="iteration=1"):
        train(config, tmp_path, *opts)
    assert not list(tmp_path.glob("*.pth"))


def test_the_checkpoint_holds_the_momentum(trained: Path) -> None:
    state = _load(trained / "model_final.pth")["trainer"]["_trainer"]["optimizer"]["state"]
    assert state
    assert all(entry["momentum_buffer"].abs().sum() > 0 for entry in state.values())


def test_two_processes_count_as_one(config: Path, trained: Path, tmp_path: Path) -> None:
    """Trained by two processes, then the same weights evaluated by two and by one."""
    two, one = tmp_path / "two", tmp_path / "one"
    quick = ["TEST.EVAL_PERIOD", "0", "TEST.PICTURES", "0"]
    command = [sys.executable, str(ROOT / "train_net.py"), "--config-file", str(config), "--num-gpus", "0"]
    done = subprocess.run(
        [*command, "--num-processes", "2", "OUTPUT_DIR", str(two), "SOLVER.MAX_ITER", "2", *quick],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    train(config, one, "--eval-only", "MODEL.WEIGHTS", str(two / "model_final.pth"))
    assert episodes(two) == episodes(one)
    # The gradient is the mean over the same two episodes, whoever has computed them.
    assert _losses(two)[0][1] == pytest.approx(_losses(trained)[0][1], rel=0.05)


def test_evaluation_on_a_written_manifest(config: Path, trained: Path, tmp_path: Path) -> None:
    manifest = trained / "inference" / "glyphs_fold0_val_1shot" / "manifest.jsonl"
    weights = str(trained / "model_final.pth")
    opts = ["FEW_SHOT.TEST.MANIFEST", str(manifest), "FEW_SHOT.TEST.SEED", "9"]
    train(config, tmp_path, "--eval-only", "MODEL.WEIGHTS", weights, *opts)
    assert episodes(tmp_path) == episodes(trained)
    again = tmp_path / "inference" / "glyphs_fold0_val_1shot" / "manifest.jsonl"
    assert again.read_text() == manifest.read_text()


def test_the_baseline_is_evaluated_untrained(config: Path, tmp_path: Path) -> None:
    train(config, tmp_path, "--eval-only", "MODEL.META_ARCHITECTURE", "Prototype", "TEST.PICTURES", "0")
    assert "glyphs_fold0_val/1shot" in json.loads((tmp_path / "results.json").read_text())["results"]


@pytest.mark.parametrize(
    ("words", "culprit"),
    [
        (["--config-file", "nowhere.yaml"], "nowhere.yaml does not exist"),
        (["--num-gpus", "99"], "--num-gpus 99"),
        (["SOLVER.MAX_ITR", "3"], "did you mean SOLVER.MAX_ITER"),
        (["SOLVER.MAX_ITER", "three"], "SOLVER.MAX_ITER takes a whole number, not 'three'"),
        (["DATASETS.TRAIN", "('glyphs_fold7_train',)"], "glyphs_fold7_train"),
        (["DATASETS.TEST", "('glyfs_fold0_val',)", "--eval-only"], "glyfs_fold0_val"),
        (["DATASETS.TEST", "('fss1000_test',)"], "fss1000"),
        (["MODEL.META_ARCHITECTURE", "DKAMA"], "did you mean DCAMA"),
        (["MODEL.META_ARCHITECTURE", "Prototype"], "--eval-only"),
        (["TEST.EVALUATORS", "('oracle',)"], "TEST.EVALUATORS: DCAMA gives nothing for oracle"),
        (["MODEL.WEIGHTS", "nowhere.pth"], "nowhere.pth does not exist"),
        (["OUTPUT_DIR", "/dev/null/out"], "/dev/null"),
        (["SOLVER.IMS_PER_BATCH", "0"], "SOLVER.IMS_PER_BATCH"),
        (["SOLVER.OPTIMIZER", "LION"], "SOLVER.OPTIMIZER"),
        (["FEW_SHOT.TEST.MANIFEST", "nowhere.jsonl", "--eval-only"], "nowhere.jsonl"),
    ],
)
def test_wrong_input_is_one_line(
    config: Path,
    tmp_path: Path,
    words: list[str],
    culprit: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import train_net

    monkeypatch.setattr(sys, "argv", ["train_net.py", *command_line(config, tmp_path, *words)])
    assert run_command(train_net.run) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert culprit in line
    assert not list(tmp_path.glob("**/*.pth"))


def test_a_broken_image_in_a_worker(
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The line names the file; neither the console nor the log has a traceback."""
    import train_net

    images = sorted((config.parent / "glyphs" / "images").iterdir())
    kept = {path: path.read_bytes() for path in images}
    for path in images:
        path.write_bytes(kept[path][:200])
    words = command_line(config, tmp_path, "DATALOADER.NUM_WORKERS", "1")
    monkeypatch.setattr(sys, "argv", ["train_net.py", *words])
    try:
        assert run_command(train_net.run) == 1
    finally:
        for path, content in kept.items():
            path.write_bytes(content)
    output = capsys.readouterr()
    assert output.err.splitlines()[-1].startswith("error: ")
    assert str(config.parent / "glyphs" / "images") in output.err.splitlines()[-1]
    assert "Traceback" not in output.err + output.out + (tmp_path / "log.txt").read_text()
