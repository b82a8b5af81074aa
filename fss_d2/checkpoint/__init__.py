"""Weights: published backbones and checkpoints of other projects, loaded by name."""

from .pretrained import LoadReport, load_backbone_weights
from .renaming import rename_detectron2_resnet, rename_microsoft_swin

__all__ = ["LoadReport", "load_backbone_weights", "rename_detectron2_resnet", "rename_microsoft_swin"]
