"""A method with its weights, for programs that only run it."""

import logging

from detectron2.config import CfgNode
from torch import nn

from fss_d2.checkpoint.checkpointer import FewShotCheckpointer
from fss_d2.modeling.build import build_model, check_base_knowledge

__all__ = ["load_model"]

logger = logging.getLogger(__name__)


def load_model(cfg: CfgNode) -> nn.Module:
    """Build the method with MODEL.WEIGHTS, in eval mode on MODEL.DEVICE.

    Without weights, a method that needs training runs as it was initialised, and a warning says so.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: settings that do not go together, a checkpoint of another method, or none that has the
            prototypes of the base classes where the method needs them.
    """
    model = build_model(cfg).eval()
    if not cfg.MODEL.WEIGHTS and model.trainable:
        logger.warning("MODEL.WEIGHTS is empty: %s is untrained", cfg.MODEL.META_ARCHITECTURE)
    FewShotCheckpointer(model).resume_or_load(cfg.MODEL.WEIGHTS, resume=False)
    check_base_knowledge(model)
    return model
