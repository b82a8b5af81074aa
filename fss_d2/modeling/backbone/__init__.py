"""Backbones whose stages and blocks are named outputs, registered in Detectron2's BACKBONE_REGISTRY."""
# ruff: noqa: F401

from .base import STAGES, FeatureBackbone, map_size
from .decoded import PixelDecoderBackbone
from .detectron2 import Detectron2Backbone
from .resnet import ResNetBackbone, build_fss_resnet_backbone
from .swin import SwinBackbone, build_fss_swin_backbone
from .timm import TimmPlainBackbone, TimmPyramidBackbone, build_timm_backbone, create_timm_backbone
from .vgg import VGGBackbone, build_vgg_backbone
