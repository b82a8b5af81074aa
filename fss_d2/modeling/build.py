"""Building what every method needs from a config."""

import difflib

from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_backbone

__all__ = ["build_few_shot_backbone"]


def build_few_shot_backbone(cfg: CfgNode) -> Backbone:
    """Build MODEL.BACKBONE.NAME with the weights MODEL.BACKBONE.WEIGHTS.

    Where MODEL.WEIGHTS names a checkpoint of the whole model, that holds the backbone as well, and
    MODEL.BACKBONE.WEIGHTS is neither read nor downloaded.

    Raises:
        ValueError: no backbone of that name.
    """
    name = cfg.MODEL.BACKBONE.NAME
    if name not in BACKBONE_REGISTRY:
        known = sorted(key for key, _ in BACKBONE_REGISTRY)
        near = difflib.get_close_matches(name, known, n=3) or known
        raise ValueError(f"MODEL.BACKBONE.NAME {name!r} does not exist; choose from {', '.join(near)}")
    if cfg.MODEL.WEIGHTS:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.BACKBONE.WEIGHTS = ""
    return build_backbone(cfg)
