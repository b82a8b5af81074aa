"""Optimizers, schedules and clipping against numbers worked out by hand."""

import math

import pytest
import torch
from detectron2.config import CfgNode
from torch import nn

from fss_d2.config import get_cfg, load_config
from fss_d2.engine.solver import build_gradient_clipper, build_lr_scheduler, build_optimizer
from tests.tiny_training import ROOT


def _cfg(**solver: object) -> CfgNode:
    cfg = get_cfg()
    cfg.SOLVER.LR_SCHEDULER_NAME = "ConstantLR"
    cfg.SOLVER.WARMUP_ITERS = 0
    cfg.SOLVER.MAX_ITER = 10
    cfg.SOLVER.BASE_LR = 0.1
    for key, value in solver.items():
        setattr(cfg.SOLVER, key, value)
    return cfg


def _model() -> nn.Module:
    """A frozen layer, a trained one and a norm."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1), nn.GroupNorm(1, 1))
    model[0].requires_grad_(False)
    return model


def _rates(cfg: CfgNode) -> list[float]:
    optimizer = build_optimizer(cfg, _model())
    scheduler = build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(cfg.SOLVER.MAX_ITER):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_frozen_parameters_are_left_out_and_norms_have_their_own_decay() -> None:
    model = _model()
    cfg = _cfg(WEIGHT_DECAY=0.01, WEIGHT_DECAY_NORM=0.0)
    decay = {
        id(p): group["weight_decay"]
        for group in build_optimizer(cfg, model).param_groups
        for p in group["params"]
    }
    assert decay == {
        id(model[1].weight): 0.01,
        id(model[1].bias): 0.01,
        id(model[2].weight): 0.0,
        id(model[2].bias): 0.0,
    }


@pytest.mark.parametrize("decay", [0.0, 0.02])
def test_embedding_tables_have_their_own_decay(decay: float) -> None:
    """Raw parameters do not; each parameter is in one group, and equal groups are one."""
    model = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 2), nn.LayerNorm(2), nn.Embedding(3, 2))
    model.register_parameter("level_embed", nn.Parameter(torch.zeros(2)))
    model[3].requires_grad_(False)
    cfg = _cfg(OPTIMIZER="ADAMW", WEIGHT_DECAY=0.05, WEIGHT_DECAY_NORM=0.0, WEIGHT_DECAY_EMBED=decay)
    groups = build_optimizer(cfg, model).param_groups
    found = [(id(p), group["weight_decay"]) for group in groups for p in group["params"]]
    expected = {model[0].weight: decay, model[1].weight: 0.05, model[1].bias: 0.05, model.level_embed: 0.05}
    expected |= {model[2].weight: 0.0, model[2].bias: 0.0}
    assert sorted(found) == sorted((id(p), value) for p, value in expected.items())
    assert len(groups) == len(set(expected.values()))


def test_nesterov_step_by_hand() -> None:
    """v = m v + g; w -= lr (g + m v), twice with g = 1: w = 1 - 0.1 (1.9) - 0.1 (1 + 0.9 * 1.9)."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    optimizer = build_optimizer(_cfg(NESTEROV=True, WEIGHT_DECAY=0.0), model)
    for _ in range(2):
        model.weight.grad = torch.ones(1, 1)
        optimizer.step()
    assert model.weight.item() == pytest.approx(1 - 0.19 - 0.1 * (1 + 0.9 * 1.9))


def test_adamw_and_the_rate_factor() -> None:
    optimizer = build_optimizer(_cfg(OPTIMIZER="ADAMW", LR_FACTOR=0.5), _model())
    assert isinstance(optimizer, torch.optim.AdamW)
    assert {group["lr"] for group in optimizer.param_groups} == {0.05}


def test_constant_rate() -> None:
    assert _rates(_cfg()) == [0.1] * 10


def test_poly_rate_and_its_ending() -> None:
    expected = [0.1 * (1 - i / 10) ** 0.9 for i in range(10)]
    assert _rates(_cfg(LR_SCHEDULER_NAME="WarmupPolyLR")) == pytest.approx(expected)
    floored = _rates(_cfg(LR_SCHEDULER_NAME="WarmupPolyLR", POLY_LR_CONSTANT_ENDING=0.3))
    assert floored == pytest.approx([max(rate, 0.03) for rate in expected])


def test_warmup_is_linear_up_to_the_schedule() -> None:
    rates = _rates(_cfg(WARMUP_ITERS=4, WARMUP_FACTOR=0.2))
    assert rates == pytest.approx([0.02, 0.04, 0.06, 0.08] + [0.1] * 6)


# Learning rates of configs/dcama/glyphs_efficientnet_lite0.yaml by iteration, written down in version 0.1.
_PUBLISHED = {
    **{0: 2e-06, 1: 3.83413030433185e-05, 25: 0.0009105325760829623, 49: 0.0017827238491226062},
    **{50: 0.0018190651521659245, 51: 0.0018154266172951293, 250: 0.0010717734625362932},
    **{499: 7.446582266544283e-06},
}


def test_published_rates_to_the_bit(caplog: pytest.LogCaptureFixture) -> None:
    rates = _rates(load_config(str(ROOT / "configs/dcama/glyphs_efficientnet_lite0.yaml")))
    assert {i: rates[i] for i in _PUBLISHED} == _PUBLISHED
    assert not caplog.records


def test_no_published_warmup_is_shortened() -> None:
    for file in (ROOT / "configs").rglob("*.yaml"):
        if "tables" not in file.parts:
            solver = load_config(str(file)).SOLVER
            assert solver.WARMUP_ITERS <= solver.MAX_ITER // 2, file


@pytest.mark.parametrize("name", ["WarmupPolyLR", "WarmupCosineLR", "WarmupMultiStepLR", "ConstantLR"])
@pytest.mark.parametrize("method", ["linear", "constant"])
@pytest.mark.parametrize("warmup", [10, 11, 1000])
def test_a_short_training_learns(
    name: str, method: str, warmup: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The warm-up takes half of the training at most; after it, the rates are those without a warm-up."""
    plain = {"LR_SCHEDULER_NAME": name, "STEPS": (8,)}
    rates = _rates(_cfg(WARMUP_ITERS=warmup, WARMUP_FACTOR=0.01, WARMUP_METHOD=method, **plain))
    without = _rates(_cfg(**plain))
    assert rates[5:] == without[5:]
    assert max(rates) >= 0.05
    linear = [0.001 + (without[5] - 0.001) * i / 5 for i in range(5)]
    assert rates[:5] == pytest.approx(linear if method == "linear" else [0.001] * 5)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        f"SOLVER.WARMUP_ITERS {warmup} is more than half of SOLVER.MAX_ITER 10: the warm-up takes 5 "
        "iterations, so that the learning rate is reached"
    )


def test_one_iteration_has_the_whole_rate() -> None:
    assert _rates(_cfg(LR_SCHEDULER_NAME="WarmupPolyLR", WARMUP_ITERS=50, MAX_ITER=1)) == [0.1]


def test_half_of_the_training_is_no_more_than_half(caplog: pytest.LogCaptureFixture) -> None:
    rates = _rates(_cfg(LR_SCHEDULER_NAME="WarmupPolyLR", WARMUP_ITERS=5, WARMUP_FACTOR=0.01))
    assert rates[4] == pytest.approx(0.001 + (0.1 * 0.5**0.9 - 0.001) * 4 / 5)
    assert not caplog.records


def test_schedules_of_detectron2() -> None:
    cosine = _rates(_cfg(LR_SCHEDULER_NAME="WarmupCosineLR"))
    assert cosine == pytest.approx([0.05 * (1 + math.cos(math.pi * i / 10)) for i in range(10)])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("OPTIMIZER", "LION", "SOLVER.OPTIMIZER is 'LION'"),
        ("LR_SCHEDULER_NAME", "Cyclic", "SOLVER.LR_SCHEDULER_NAME is 'Cyclic'"),
        ("MAX_ITER", 0, "SOLVER.MAX_ITER is 0"),
    ],
)
def test_unknown_names(key: str, value: object, message: str) -> None:
    cfg = _cfg(**{key: value})
    with pytest.raises(ValueError, match=message):
        build_lr_scheduler(cfg, build_optimizer(cfg, _model()))


def test_a_model_with_nothing_to_train() -> None:
    with pytest.raises(ValueError, match="--eval-only"):
        build_optimizer(_cfg(), nn.Flatten())


@pytest.mark.parametrize(
    ("clip_type", "expected"),
    [
        ("value", [1.0, 1.0, 1.0]),  # 3, 4 and 12 cut to 1
        ("norm", [0.6, 0.8, 1.0]),  # (3, 4) has norm 5; (12) has norm 12
        ("full_model", [3 / 13, 4 / 13, 12 / 13]),  # all together have norm 13
    ],
)
def test_clipping(clip_type: str, expected: list[float]) -> None:
    cfg = _cfg()
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = clip_type
    clip = build_gradient_clipper(cfg)
    assert clip is not None
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 4.0]), torch.tensor([12.0])
    clip(parameters)
    assert torch.cat([p.grad for p in parameters]).tolist() == pytest.approx(expected, rel=1e-5)


def test_clipping_is_off_by_default_and_knows_its_types() -> None:
    cfg = _cfg()
    assert build_gradient_clipper(cfg) is None
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "sphere"
    with pytest.raises(ValueError, match="CLIP_TYPE is 'sphere'"):
        build_gradient_clipper(cfg)
