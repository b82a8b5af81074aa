"""Which map and which parameters a stage reads, for methods that run a stage apart."""

import torch
from torch import nn

from .base import STAGES, FeatureBackbone

__all__ = ["stage_before", "stage_parameters"]


def stage_before(backbone: FeatureBackbone, stage: str, needed_by: str = "") -> str:
    """The stage whose map ``backbone.run_stage(stage, ...)`` takes.

    Args:
        backbone: of several stages.
        stage: to be run alone.
        needed_by: config keys for the error, one of which is True and asks for it.

    Raises:
        ValueError: the backbone cannot run that stage alone.
    """
    if stage not in backbone.separate_stages:
        able = ", ".join(backbone.separate_stages) or "none of its stages"
        mend = f": set {needed_by} False, or choose another stage" if needed_by else ""
        raise ValueError(
            f"{type(backbone).__name__} cannot run {stage!r} apart from the rest (it can: {able}){mend}"
        )
    stages = [name for name in STAGES if name in backbone.available]
    return stages[stages.index(stage) - 1]


def stage_parameters(backbone: FeatureBackbone, stage: str) -> list[nn.Parameter]:
    """The parameters that ``backbone.run_stage(stage, ...)`` reads, found by running it once.

    Raises:
        ValueError: as `stage_before`.
    """
    channels = backbone.available[stage_before(backbone, stage)].channels
    parameters = list(backbone.parameters())
    learnt, was_training = [p.requires_grad for p in parameters], backbone.training
    backbone.eval().requires_grad_(True)  # batch norms keep their statistics
    with torch.enable_grad():
        result = backbone.run_stage(stage, torch.zeros(1, channels, 8, 8, device=parameters[0].device))
        gradients = torch.autograd.grad(result.sum(), parameters, allow_unused=True)
    backbone.train(was_training)
    for parameter, flag in zip(parameters, learnt, strict=True):
        parameter.requires_grad_(flag)
    return [p for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None]
