"""Building what every method needs from a config."""

from detectron2.config import CfgNode
from detectron2.modeling import Backbone, build_backbone

__all__ = ["build_few_shot_backbone"]


def build_few_shot_backbone(cfg: CfgNode) -> Backbone:
    """Build MODEL.BACKBONE.NAME with the weights MODEL.BACKBONE.WEIGHTS.

    Where MODEL.WEIGHTS names a checkpoint of the whole model, that holds the backbone as well, and
    MODEL.BACKBONE.WEIGHTS is neither read nor downloaded.

    Raises:
        KeyError: no backbone of that name.
    """
    if cfg.MODEL.WEIGHTS:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.BACKBONE.WEIGHTS = ""
    return build_backbone(cfg)
