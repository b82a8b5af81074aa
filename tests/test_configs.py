"""Every config and every row of a table loads, names what exists, builds a model, and trains it once."""

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.events import EventStorage
from torch import nn

from fss_d2.config import load_config
from fss_d2.data import build
from fss_d2.data.augmentations import build_augmentations
from fss_d2.engine.evaluate import validation_sets
from fss_d2.engine.solver import build_gradient_clipper
from fss_d2.engine.tables import Stage, read_tables
from fss_d2.engine.train_loop import AutocastTrainer
from fss_d2.engine.trainer import Trainer
from tests.modeling.episodes import make_episode

CONFIGS = Path(__file__).parents[1] / "configs"
RUNNABLE = sorted(path for path in CONFIGS.glob("*/*.yaml") if not path.name.startswith("Base-"))
RUNNABLE = [path for path in RUNNABLE if path.parent.name != "tables"]
TABLES = {file.stem: file for file in sorted((CONFIGS / "tables").glob("*.yaml"))}


def _stages(scale: str) -> dict[str, tuple[Stage, bool]]:
    """Each stage of each row, and whether it is tested only."""
    return {
        f"{paper}: {table.name}, {row.name}, stage {number}": (stage, row.test and stage is row.stages[-1])
        for paper, file in TABLES.items()
        for table in read_tables(file, scale).values()
        for row in table.rows.values()
        for number, stage in enumerate(row.stages, 1)
    }


STAGES, SMALL_STAGES = _stages(""), _stages("glyphs")
SIDE = 64  # of the images, pixels
RULES = {*build.QUERY_RULES, *build.PUBLISHED_RULES}
NO_WEIGHTS = ["MODEL.BACKBONE.WEIGHTS", "", "MODEL.BACKBONE.PIXEL_DECODER_WEIGHTS", ""]
_checked: set[str] = set()  # what `_check_model` has found to be right


def _name(path: Path) -> str:
    return str(path.relative_to(CONFIGS).with_suffix(""))


def test_variants_of_few_keys_are_rows_of_tables() -> None:
    """Not config files of their own, of which there would be hundreds."""
    assert len([path for path in CONFIGS.rglob("*.yaml") if path.parent.name != "tables"]) <= 80


@pytest.mark.parametrize("path", RUNNABLE, ids=_name)
def test_config(path: Path) -> None:
    cfg = load_config(str(path), NO_WEIGHTS, num_gpus=0)
    assert _name(path) in cfg.OUTPUT_DIR
    _check_names(cfg)
    _check_model(cfg)


@pytest.mark.parametrize(("stage", "test"), STAGES.values(), ids=list(STAGES))
def test_row(stage: Stage, test: bool) -> None:
    """Its model is built, a large one without memory for weights; models that are built alike once."""
    cfg = stage.load().clone()
    cfg.defrost()
    if test:
        cfg.DATASETS.TRAIN = ()
    _check_names(cfg)
    # A backbone of timm tries what it computes.
    cfg.MODEL.DEVICE = "cpu" if cfg.MODEL.BACKBONE.NAME == "build_timm_backbone" else "meta"
    cfg.MODEL.WEIGHTS = cfg.MODEL.BACKBONE.WEIGHTS = cfg.MODEL.BACKBONE.PIXEL_DECODER_WEIGHTS = ""
    if (key := f"built {cfg.MODEL}") not in _checked:
        with torch.device(cfg.MODEL.DEVICE):
            Trainer.build_model(cfg)
        _checked.add(key)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "test"), SMALL_STAGES.values(), ids=list(SMALL_STAGES))
def test_row_at_a_small_scale(stage: Stage, test: bool) -> None:
    """Its keys train or test the method at the size of a CPU."""
    opts = [*(word for pair in stage.set.items() for word in pair), *NO_WEIGHTS]
    _check_model(load_config(str(stage.config), opts, num_gpus=0), train=not test)


def _check_names(cfg: CfgNode) -> None:
    """The data sets, rules, augmentations and schedule exist."""
    known = {
        *DatasetCatalog.list(),
        *(entry["name"] for key in ("FOLDERS", "COCO_JSON", "CLASS_MAPS") for entry in cfg.DATASETS[key]),
    }
    assert {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST, *cfg.DATASETS.VALIDATION} <= known
    assert cfg.FEW_SHOT.TEST.QUERY_RULE in RULES
    assert cfg.FEW_SHOT.TRAIN.QUERY_RULE in build.QUERY_RULES
    build_augmentations(cfg)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    Trainer.build_lr_scheduler(_in_iterations(cfg), optimizer)


def _in_iterations(cfg: CfgNode) -> CfgNode:
    """A length in epochs as one in iterations, without the data: ten an epoch."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.MAX_ITER = cfg.SOLVER.MAX_ITER or 10 * cfg.SOLVER.EPOCHS
    return cfg


def _check_model(cfg: CfgNode, *, train: bool = True) -> None:
    """Build and train or test a model, once for all configs that differ in data, schedule and test only."""
    compared = cfg.clone()
    compared.defrost()
    compared.MODEL.WEIGHTS = ""
    compared.MODEL.BASE_KNOWLEDGE.NUM_CLASSES = 1
    cfg = _in_iterations(cfg)
    compared.SOLVER.MAX_ITER = compared.SOLVER.EPOCHS = compared.SOLVER.CHECKPOINT_EPOCHS = 1
    compared.SOLVER.CHECKPOINT_PERIOD = compared.SOLVER.IMS_PER_BATCH = 1
    key = f"{compared.MODEL} {compared.SOLVER} {compared.FEW_SHOT.TRAIN.SHOTS} {train}"
    if key in _checked:
        return
    torch.manual_seed(0)
    model = Trainer.build_model(cfg)
    assert type(model).__name__ == cfg.MODEL.META_ARCHITECTURE
    if (knowledge := getattr(model, "knowledge", None)) is not None:
        knowledge.fill(torch.rand_like(knowledge.prototypes))
    batch = [_episode(cfg, seed) for seed in range(2)]
    if train and getattr(model, "trainable", True):
        _check_step(cfg, model, batch)
    else:
        _check_inference(model, batch)
    _checked.add(key)


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
        AutocastTrainer(model, [batch], optimizer, clip=clip, amp_dtype=amp_dtype).run_step()
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


def test_published_recipe_of_hsnet() -> None:
    """Adam, which AdamW is without decay."""
    cfg = load_config(str(CONFIGS / "hsnet" / "pascal5i_r50.yaml"), num_gpus=0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.GroupNorm(1, 2))
    optimizer = Trainer.build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.AdamW)
    settings = {(g["lr"], g["betas"], g["eps"], g["weight_decay"]) for g in optimizer.param_groups}
    assert settings == {(0.001, (0.9, 0.999), 1e-8, 0.0)}
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.LR_SCHEDULER_NAME) == (20, "ConstantLR")
    assert (cfg.INPUT.FEW_SHOT_SIZE, cfg.INPUT.TEST_RESIZE) == ((400, 400), "squash")
    assert not cfg.INPUT.TRAIN_AUGMENTATIONS and tuple(cfg.FEW_SHOT.TRAIN.SHOTS) == (1,)


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


@pytest.mark.parametrize("name", ["dcama/fss1000_r50", "danet/fss1000_r50", "hsnet/fss1000_r50"])
def test_the_best_model_of_fss1000_is_chosen_on_all_validation_classes(name: str) -> None:
    cfg = load_config(str(CONFIGS / f"{name}.yaml"), num_gpus=0)
    assert validation_sets(cfg) == ("fss1000_val",)
    classes = MetadataCatalog.get("fss1000_val").class_ids
    assert len(classes) == 240 and not {*classes} & {*MetadataCatalog.get("fss1000_test").class_ids}
    pairs = [(f"{c}/{number}", c) for c in classes for number in range(1, 11)]
    count = cfg.TEST.PERIODIC_EPISODES or cfg.FEW_SHOT.TEST.EPISODES
    drawn = build.PUBLISHED_RULES[cfg.FEW_SHOT.TEST.QUERY_RULE](pairs, 1, count, 0)
    assert {episode.class_id for episode in drawn} == {*classes}
