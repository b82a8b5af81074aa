"""Optimizers, learning-rate schedules and gradient clipping from ``cfg.SOLVER``."""

import logging
from collections.abc import Callable, Sequence
from functools import partial

import torch
from detectron2.config import CfgNode
from detectron2.solver import LRMultiplier, WarmupParamScheduler
from detectron2.solver import build_lr_scheduler as build_detectron2_lr_scheduler
from detectron2.solver.build import get_default_optimizer_params, reduce_param_groups
from fvcore.common.param_scheduler import ParamScheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["PolyParamScheduler", "build_gradient_clipper", "build_lr_scheduler", "build_optimizer"]

logger = logging.getLogger(__name__)

_OPTIMIZERS = ("SGD", "ADAMW")
_DETECTRON2_SCHEDULES = ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR")
GradientClipper = Callable[[Sequence[nn.Parameter]], None]


class PolyParamScheduler(ParamScheduler):
    """Polynomial decay ``max(ending, (1 - t) ** power)``, with t from 0 to 1 over the training.

    The power is 0.9 in PSPNet, PFENet and after them.
    """

    def __init__(self, power: float = 0.9, ending: float = 0.0) -> None:
        self._power = power
        self._ending = ending

    def __call__(self, where: float) -> float:
        return max(self._ending, (1.0 - min(where, 1.0)) ** self._power)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> Optimizer:
    """SGD or AdamW over the parameters that require a gradient; those of a frozen backbone are left out.

    Detectron2's keys apply: WEIGHT_DECAY_NORM, WEIGHT_DECAY_BIAS, BIAS_LR_FACTOR, MOMENTUM, NESTEROV; the
    tables of `nn.Embedding` have WEIGHT_DECAY_EMBED. A model with nothing to train raises ValueError.
    """
    solver = cfg.SOLVER
    learning_rate = solver.BASE_LR * solver.LR_FACTOR
    groups = get_default_optimizer_params(
        model,
        base_lr=learning_rate,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
    )
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    single = [{**group, "params": [p]} for group in groups for p in group["params"]]
    embed = {"weight_decay": solver.WEIGHT_DECAY_EMBED}
    groups = reduce_param_groups([{**g, **embed} if id(g["params"][0]) in tables else g for g in single])
    if not groups:
        fix = "evaluate it with --eval-only, or set MODEL.BACKBONE.FREEZE False"
        name = f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE}"
        raise ValueError(f"{name} has no parameter to train; {fix}")
    if solver.OPTIMIZER == "SGD":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV)
    if solver.OPTIMIZER == "ADAMW":
        return torch.optim.AdamW(groups, lr=learning_rate)
    raise ValueError(f"SOLVER.OPTIMIZER is {solver.OPTIMIZER!r}; use one of {', '.join(_OPTIMIZERS)}")


def build_lr_scheduler(cfg: CfgNode, optimizer: Optimizer) -> LRScheduler:
    """The schedule ``SOLVER.LR_SCHEDULER_NAME``: "WarmupPolyLR", "ConstantLR" or one of Detectron2's.

    All start with WARMUP_ITERS iterations of warm-up from WARMUP_FACTOR; 0 iterations mean none. A warm-up
    longer than half of the training is shortened to half of it, with a warning: it ends at the value that the
    schedule has there, which is zero at the end of most schedules.
    """
    solver = cfg.SOLVER
    if solver.MAX_ITER < 1:
        raise ValueError(f"SOLVER.MAX_ITER is {solver.MAX_ITER}; training needs at least 1")
    warmup = _warmup_iterations(solver)
    if solver.LR_SCHEDULER_NAME in _DETECTRON2_SCHEDULES:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.SOLVER.WARMUP_ITERS = warmup
        return build_detectron2_lr_scheduler(cfg, optimizer)
    if solver.LR_SCHEDULER_NAME == "WarmupPolyLR":
        schedule: ParamScheduler = PolyParamScheduler(solver.POLY_LR_POWER, solver.POLY_LR_CONSTANT_ENDING)
    elif solver.LR_SCHEDULER_NAME == "ConstantLR":
        schedule = PolyParamScheduler(power=0.0)  # fvcore's constant one refuses the last step
    else:
        names = ", ".join(("WarmupPolyLR", "ConstantLR", *_DETECTRON2_SCHEDULES))
        raise ValueError(f"SOLVER.LR_SCHEDULER_NAME is {solver.LR_SCHEDULER_NAME!r}; use one of {names}")
    if warmup > 0:
        length = warmup / solver.MAX_ITER
        schedule = WarmupParamScheduler(schedule, solver.WARMUP_FACTOR, length, solver.WARMUP_METHOD)
    return LRMultiplier(optimizer, multiplier=schedule, max_iter=solver.MAX_ITER)


def _warmup_iterations(solver: CfgNode) -> int:
    """WARMUP_ITERS, or half of MAX_ITER if that is less."""
    most = solver.MAX_ITER // 2
    if most >= solver.WARMUP_ITERS:
        return solver.WARMUP_ITERS
    logger.warning(
        "SOLVER.WARMUP_ITERS %d is more than half of SOLVER.MAX_ITER %d: the warm-up takes %d iterations, "
        "so that the learning rate is reached",
        *(solver.WARMUP_ITERS, solver.MAX_ITER, most),
    )
    return most


def build_gradient_clipper(cfg: CfgNode) -> GradientClipper | None:
    """The clipping of ``SOLVER.CLIP_GRADIENTS``, or None where it is off.

    CLIP_TYPE "value" and "norm" are Detectron2's, parameter by parameter; "full_model" clips the norm of all
    gradients together.
    """
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if not clip.ENABLED:
        return None
    limit, norm_type = float(clip.CLIP_VALUE), float(clip.NORM_TYPE)
    clip_norm = partial(nn.utils.clip_grad_norm_, max_norm=limit, norm_type=norm_type)

    def clip_each_norm(parameters: Sequence[nn.Parameter]) -> None:
        for parameter in parameters:
            clip_norm([parameter])

    clippers: dict[str, GradientClipper] = {
        "value": partial(nn.utils.clip_grad_value_, clip_value=limit),
        "norm": clip_each_norm,
        "full_model": clip_norm,
    }
    if clip.CLIP_TYPE not in clippers:
        known = ", ".join(clippers)
        raise ValueError(f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE is {clip.CLIP_TYPE!r}; use one of {known}")
    return clippers[clip.CLIP_TYPE]
