"""Backbones whose stages and blocks are named outputs, registered in Detectron2's BACKBONE_REGISTRY.

Every file here is imported.
"""
# ruff: noqa: F401

from importlib import import_module
from pkgutil import iter_modules

from .base import STAGES, FeatureBackbone, map_size
from .decoded import PixelDecoderBackbone
from .detectron2 import Detectron2Backbone
from .resnet import ResNetBackbone, build_fss_resnet_backbone
from .swin import SwinBackbone, build_fss_swin_backbone
from .timm import TimmPlainBackbone, TimmPyramidBackbone, build_timm_backbone, create_timm_backbone
from .vgg import VGGBackbone, build_vgg_backbone

for _module in iter_modules(__path__):  # also those of backbones that were added
    import_module(f"{__name__}.{_module.name}")
