"""Backbones, layers and the few-shot segmentation methods."""

from . import backbone  # noqa: F401  (registers the backbones)
from .meta_arch import *  # noqa: F403
from .meta_arch import __all__  # noqa: F401
