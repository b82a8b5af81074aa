"""Weights: published backbones and checkpoints of other projects, loaded by name."""

from .pretrained import LoadReport, load_backbone_weights, rename_microsoft_swin

__all__ = ["LoadReport", "load_backbone_weights", "rename_microsoft_swin"]
