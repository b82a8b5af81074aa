"""Every config of the repository loads, builds its model and names data sets and settings that exist."""

from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog

from fss_d2.data import build
from fss_d2.data.transforms import build_augmentations
from fss_d2.engine.arguments import load_config
from fss_d2.engine.trainer import Trainer

CONFIGS = Path(__file__).parents[1] / "configs"
RUNNABLE = sorted(path for path in CONFIGS.rglob("*.yaml") if not path.name.startswith("Base-"))
RULES = {*build.QUERY_RULES, *build.PUBLISHED_RULES}


@pytest.mark.parametrize("path", RUNNABLE, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_config(path: Path) -> None:
    no_weights = ["MODEL.BACKBONE.WEIGHTS", "", "MODEL.BACKBONE.PIXEL_DECODER_WEIGHTS", ""]
    cfg = load_config(str(path), no_weights, num_gpus=0)
    known = {
        *DatasetCatalog.list(),
        *(entry["name"] for entry in cfg.DATASETS.FOLDERS + cfg.DATASETS.COCO_JSON),
    }
    assert {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST} <= known
    assert cfg.FEW_SHOT.TEST.QUERY_RULE in RULES
    assert cfg.FEW_SHOT.TRAIN.QUERY_RULE in build.QUERY_RULES
    assert str(path.relative_to(CONFIGS).with_suffix("")) in cfg.OUTPUT_DIR
    build_augmentations(cfg)
    model = Trainer.build_model(cfg)
    assert type(model).__name__ == cfg.MODEL.META_ARCHITECTURE


def test_published_recipe_of_dcama() -> None:
    cfg = load_config(str(CONFIGS / "dcama" / "pascal5i_r50.yaml"), num_gpus=0)
    groups = Trainer.build_optimizer(
        cfg, torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.GroupNorm(1, 2))
    )
    assert {(g["lr"], g["momentum"], g["nesterov"], g["weight_decay"]) for g in groups.param_groups} == {
        (0.001, 0.9, True, 0.0001)
    }
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.LR_SCHEDULER_NAME) == (48, "ConstantLR")
    assert (cfg.INPUT.FEW_SHOT_SIZE, cfg.INPUT.TEST_RESIZE) == ((384, 384), "squash")
    assert not cfg.INPUT.TRAIN_AUGMENTATIONS
