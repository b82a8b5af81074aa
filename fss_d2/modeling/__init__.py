"""Backbones, layers and the few-shot segmentation methods."""

from . import backbone  # noqa: F401  (registers the backbones)
from .meta_arch import (
    DCAMA,
    DPCN,
    FEW_SHOT_META_ARCHS,
    JC2A,
    DANet,
    FewShotSegmentor,
    MMFormer,
    PFENet,
    PotentialObjectsSegmenter,
    Prototype,
    SupportSet,
)

__all__ = [
    "DCAMA",
    "DPCN",
    "FEW_SHOT_META_ARCHS",
    "JC2A",
    "DANet",
    "FewShotSegmentor",
    "MMFormer",
    "PFENet",
    "PotentialObjectsSegmenter",
    "Prototype",
    "SupportSet",
]
