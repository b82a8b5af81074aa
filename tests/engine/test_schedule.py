"""Lengths in epochs: iterations of each fold as in the released codes, periods, resume, model_best's data."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from fss_d2.config import load_config
from fss_d2.data import build
from fss_d2.engine.cross_validation import of_fold, plan_runs
from fss_d2.engine.schedule import in_iterations
from fss_d2.engine.signals import Interrupted
from fss_d2.engine.train_loop import AutocastTrainer
from fss_d2.engine.trainer import Trainer
from tests.tiny_training import ROOT, tiny_glyphs, train

PFENET_PASCAL, COCO_IMAGES = (4760, 4588, 4097, 5108), (62040, 74381, 73035, 73808)
HSNET_PAIRS = (3425 + 5883 + 2086, 2286 + 5883 + 2086, 2286 + 3425 + 2086, 2286 + 3425 + 5883)
# Config: epochs, queries of the folds' training lists, and the batches of an epoch by hand. PFENet's loader
# leaves the incomplete batch out (5108 / 8 = 638.5), DCAMA's four processes keep it (11394 / 4 / 12 = 237.4).
PUBLISHED = {
    "pfenet/pascal5i_r50": (200, PFENET_PASCAL, (1190, 1147, 1024, 1277)),
    "danet/pascal5i_r50": (200, PFENET_PASCAL, (1190, 1147, 1024, 1277)),
    "jc2a/pascal5i_r50": (200, PFENET_PASCAL, (1190, 1147, 1024, 1277)),
    "dpcn/pascal5i_r50": (200, PFENET_PASCAL, (595, 573, 512, 638)),
    "pfenet/coco20i_r101": (50, COCO_IMAGES, (1938, 2324, 2282, 2306)),
    "dpcn/coco20i_r50": (50, COCO_IMAGES, (1938, 2324, 2282, 2306)),
    "jc2a/coco20i_r50": (50, COCO_IMAGES, (15510, 18595, 18258, 18452)),
    "dcama/pascal5i_r50": (500, HSNET_PAIRS, (238, 214, 163, 242)),
    "dcama/coco20i_r50": (90, COCO_IMAGES, (1293, 1550, 1522, 1538)),
    "dcama/fss1000_r50": (500, (5200,), (130,)),
    "danet/fss1000_r50": (200, (5200,), (1300,)),
}


def _of_fold(name: str, fold: int) -> CfgNode:
    cfg = load_config(str(ROOT / "configs" / f"{name}.yaml"), num_gpus=0).clone()
    cfg.defrost()
    cfg.DATASETS.TRAIN = of_fold(cfg.DATASETS.TRAIN, fold)
    cfg.freeze()
    return cfg


def _give_images(monkeypatch: pytest.MonkeyPatch, name: str, count: int, *, classes: int = 1) -> None:
    """Let a training set have so many images, each of so many of its classes."""
    own = MetadataCatalog.get(name).class_ids
    shown = [[own[(i + k) % len(own)] for k in range(classes)] for i in range(count)]
    made = [{"image_id": i, "classes": s} for i, s in enumerate(shown)]
    monkeypatch.setattr(build, "get_records", lambda _: made)


@pytest.mark.parametrize("name", PUBLISHED)
def test_iterations_of_a_fold_are_the_released_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    epochs, queries, iterations = PUBLISHED[name]
    for fold, (count, expected) in enumerate(zip(queries, iterations, strict=True)):
        cfg = _of_fold(name, fold)
        _give_images(monkeypatch, cfg.DATASETS.TRAIN[0], count)
        solver, test = (length := in_iterations(cfg)).SOLVER, length.TEST
        assert solver.MAX_ITER / expected == epochs
        assert test.EVAL_PERIOD / expected == cfg.TEST.EVAL_EPOCHS > 0
        assert solver.CHECKPOINT_PERIOD / expected == cfg.SOLVER.CHECKPOINT_EPOCHS > 0


def test_cross_validation_gives_each_fold_its_own_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [str(ROOT / "configs/dcama/pascal5i_r50.yaml")]
    options = {"shots": None, "seeds": [0], "jobs": 1, "eval_only": False, "weights": None, "num_gpus": 0}
    opts = ["DATASETS.VALIDATION", "('pascal5i_fold0_val',)"]
    args = argparse.Namespace(config_file=files, folds=[0, 2, 3], output=tmp_path, opts=opts, **options)
    lengths = []
    for run in plan_runs(args):
        cfg = run.config(num_gpus=0)
        (validation,) = cfg.DATASETS.VALIDATION
        assert validation == f"pascal5i_fold{run.fold}_val"
        _give_images(monkeypatch, cfg.DATASETS.TRAIN[0], HSNET_PAIRS[run.fold])
        lengths.append(in_iterations(cfg).SOLVER.MAX_ITER)
    assert lengths == [500 * 238, 500 * 163, 500 * 242]


def test_pascal_pairs_count_and_coco_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """DCAMA's epochs: an image of three classes is three queries on PASCAL-5i and one on COCO-20i."""
    for name, epoch in (("dcama/pascal5i_r50", 10), ("dcama/coco20i_r50", 4)):
        cfg = _of_fold(name, 0)
        _give_images(monkeypatch, cfg.DATASETS.TRAIN[0], 160, classes=3)
        solver = in_iterations(cfg).SOLVER
        assert epoch * solver.EPOCHS == solver.MAX_ITER


def test_the_last_stage_of_dpcn_starts_half_way(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = _of_fold("dpcn/pascal5i_r50", 3)
    _give_images(monkeypatch, cfg.DATASETS.TRAIN[0], PFENET_PASCAL[3])
    cfg = in_iterations(cfg).clone()
    cfg.defrost()
    cfg.MODEL.DEVICE, cfg.MODEL.BACKBONE.WEIGHTS = "meta", ""
    with torch.device("meta"):
        assert Trainer.build_model(cfg).last_stage_start == 100 * 638


def test_iterations_on_the_command_line_take_the_place_of_epochs() -> None:
    path = str(ROOT / "configs/pfenet/pascal5i_r50.yaml")
    cfg = load_config(path, ["SOLVER.MAX_ITER", "7", "TEST.EVAL_PERIOD", "3"])
    assert in_iterations(cfg) is cfg and cfg.SOLVER.MAX_ITER == 7
    assert (cfg.TEST.EVAL_PERIOD, cfg.TEST.EVAL_EPOCHS, cfg.SOLVER.CHECKPOINT_EPOCHS) == (3, 0, 2)
    glyphs = str(ROOT / "configs/pfenet/glyphs_efficientnet_lite0.yaml")
    cfg = load_config(glyphs, ["SOLVER.EPOCHS", "3"])
    assert (cfg.SOLVER.EPOCHS, cfg.SOLVER.MAX_ITER) == (3, 0)
    cfg = load_config(glyphs, ["SOLVER.EPOCHS", "0"])
    assert cfg.SOLVER.MAX_ITER == 500


def test_no_length_and_no_full_batch_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(ROOT / "configs/pfenet/pascal5i_r50.yaml")
    with pytest.raises(ValueError, match=r"SOLVER.MAX_ITER and SOLVER.EPOCHS are 0; set one of them"):
        in_iterations(load_config(path, ["SOLVER.EPOCHS", "0"]))
    _give_images(monkeypatch, "pascal5i_fold0_train", 90)
    with pytest.raises(ValueError, match=r"IMS_PER_BATCH 91 is more than the 90 queries of an epoch"):
        in_iterations(load_config(path, ["SOLVER.IMS_PER_BATCH", "91"]))


# -- trainings -------------------------------------------------------------------------------------------

_CONFIG = """
MODEL:
  META_ARCHITECTURE: DCAMA
DATASETS:
  VALIDATION: ("glyphs_fold1_val",)
FEW_SHOT:
  TRAIN:
    QUERY_RULE: image
  TEST:
    EPISODES: 2
SOLVER:
  EPOCHS: 2
  MAX_ITER: 0
  CHECKPOINT_EPOCHS: 1
  IMS_PER_BATCH: {batch}
  LR_SCHEDULER_NAME: WarmupPolyLR
  LOG_PERIOD: 1
TEST:
  EVAL_EPOCHS: 1
  PERIODIC_EPISODES: 2
  PICTURES: 0
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Half an epoch and a bit more is a batch, so that an epoch has two iterations."""
    root = tmp_path_factory.mktemp("epochs")
    with tiny_glyphs(root, _CONFIG.format(batch=1), images_per_class=1) as path:
        cfg = load_config(str(path), num_gpus=0)
        queries = build.training_episodes(cfg).epoch_length
        path.write_text(path.read_text().replace("IMS_PER_BATCH: 1", f"IMS_PER_BATCH: {queries // 2 + 1}"))
        yield path


@pytest.fixture(scope="module")
def trained(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train(config, folder)
    return folder


def test_a_training_in_epochs(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / "metrics.json").read_text().splitlines()]
    rates = {line["iteration"]: line["lr"] for line in lines if "lr" in line}
    assert sorted(rates) == [0, 1, 2, 3]  # two epochs of two batches
    assert [rates[i] / rates[0] for i in range(4)] == pytest.approx([(1 - i / 4) ** 0.9 for i in range(4)])
    scored = [line["iteration"] for line in lines if any("mIoU" in key for key in line)]
    assert scored == [1, 4]  # and with the final evaluation of iteration 3
    assert {p.name for p in trained.glob("model_0*.pth")} == {"model_0000001.pth", "model_0000003.pth"}
    assert load_config(str(trained / "config.yaml")).SOLVER.EPOCHS == 2


def test_the_best_model_is_chosen_on_the_validation_set(trained: Path) -> None:
    assert "glyphs_fold1_val" in json.loads((trained / "model_best.json").read_text())["metric"]
    assert [p.name for p in (trained / "periodic").iterdir()] == ["glyphs_fold1_val_1shot"]
    assert [p.name for p in (trained / "inference").iterdir()] == ["glyphs_fold0_val_1shot"]


def test_it_resumes_to_the_bit(
    config: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = AutocastTrainer.run_step

    def stopped(self: AutocastTrainer) -> None:
        if self.iter == 2:
            raise Interrupted(15, "stopped")
        step(self)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(AutocastTrainer, "run_step", stopped)
        train(config, tmp_path / "out")
    train(config, tmp_path / "out", "--resume")
    models = [torch.load(f / "model_final.pth", weights_only=True) for f in (trained, tmp_path / "out")]
    for name, tensor in models[0]["model"].items():
        assert torch.equal(tensor, models[1]["model"][name]), name
    assert models[0]["iteration"] == models[1]["iteration"] == 3
