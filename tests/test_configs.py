"""Every config loads, names what exists, builds its model, and trains it for an iteration."""

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils.events import EventStorage
from torch import nn

from fss_d2.config import load_config
from fss_d2.data import build
from fss_d2.data.augmentation_registry import build_augmentations
from fss_d2.engine.solver import build_gradient_clipper
from fss_d2.engine.step import EpisodeStep
from fss_d2.engine.trainer import Trainer
from tests.modeling.episodes import make_episode

CONFIGS = Path(__file__).parents[1] / "configs"
RUNNABLE = sorted(path for path in CONFIGS.rglob("*.yaml") if not path.name.startswith("Base-"))
SIDE = 64  # of the images, pixels
RULES = {*build.QUERY_RULES, *build.PUBLISHED_RULES}


def _name(path: Path) -> str:
    return str(path.relative_to(CONFIGS).with_suffix(""))


@pytest.mark.parametrize("path", RUNNABLE, ids=_name)
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
    assert _name(path) in cfg.OUTPUT_DIR
    build_augmentations(cfg)
    torch.manual_seed(0)
    model = Trainer.build_model(cfg)
    assert type(model).__name__ == cfg.MODEL.META_ARCHITECTURE
    if (knowledge := getattr(model, "knowledge", None)) is not None:
        knowledge.fill(torch.rand_like(knowledge.prototypes))
    batch = [_episode(cfg, seed) for seed in range(2)]
    if getattr(model, "trainable", True):
        _check_step(cfg, model, batch)
    else:
        _check_inference(model, batch)


def _episode(cfg: CfgNode, seed: int) -> dict[str, Any]:
    """An episode of noise as the config trains on it, but small; with two segments, of labels 0 and 1."""
    episode = make_episode(seed, shots=max(cfg.FEW_SHOT.TRAIN.SHOTS), size=(SIDE, SIDE))
    segments = torch.stack([episode["sem_seg"] == value for value in (0, 1)])
    return episode | {"segments": segments, "segment_labels": torch.tensor([0, 1])}


def _check_step(cfg: CfgNode, model: nn.Module, batch: list[dict[str, Any]]) -> None:
    """The last iteration, when also what starts late learns: all gets a gradient, and stays finite."""
    model.train()
    model.iteration = cfg.SOLVER.MAX_ITER - 1
    optimizer = Trainer.build_optimizer(cfg, model)
    Trainer.build_lr_scheduler(cfg, optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    before = [p.detach().clone() for p in parameters]
    amp_dtype = cfg.SOLVER.AMP.DTYPE if cfg.SOLVER.AMP.ENABLED else None
    clip = build_gradient_clipper(cfg)
    with EventStorage() as storage:
        EpisodeStep(model, [batch], optimizer, clip=clip, amp_dtype=amp_dtype).run_step()
    losses = [value for name, (value, _) in storage.latest().items() if "loss" in name]
    assert losses and torch.tensor(losses).isfinite().all()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert all(p.isfinite().all() for p in parameters)
    assert any(not torch.equal(*pair) for pair in zip(parameters, before, strict=True))


def _check_inference(model: nn.Module, batch: list[dict[str, Any]]) -> None:
    with torch.inference_mode():
        outputs = model.eval()(batch)
    for episode, output in zip(batch, outputs, strict=True):
        assert output["sem_seg"].shape == (2, *episode["sem_seg"].shape)
        assert output["sem_seg"].isfinite().all()


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
