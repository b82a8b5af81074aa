"""Leaf modules; none of them reads a config."""

from .attention import MaskAggregation
from .blocks import FeatureReduction, ResidualPair, classifier, conv_pair, conv_stack, resize
from .losses import dice_loss, soft_iou, two_channel_dice
from .pooling import area_fraction, masked_average, shot_prototypes, soft_mask
from .position import sine_position_code, sine_position_map
from .sampling import balanced_regions

__all__ = [
    "FeatureReduction",
    "MaskAggregation",
    "ResidualPair",
    "area_fraction",
    "balanced_regions",
    "classifier",
    "conv_pair",
    "conv_stack",
    "dice_loss",
    "masked_average",
    "resize",
    "shot_prototypes",
    "sine_position_code",
    "sine_position_map",
    "soft_iou",
    "soft_mask",
    "two_channel_dice",
]
