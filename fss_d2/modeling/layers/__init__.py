"""Leaf modules; none of them reads a config."""

from .attention import MaskAggregation
from .blocks import conv_pair, conv_stack, resize
from .losses import dice_loss, soft_iou, two_channel_dice
from .pooling import area_fraction, masked_average
from .position import sine_position_code, sine_position_map
from .sampling import balanced_regions

__all__ = [
    "MaskAggregation",
    "area_fraction",
    "balanced_regions",
    "conv_pair",
    "conv_stack",
    "dice_loss",
    "masked_average",
    "resize",
    "sine_position_code",
    "sine_position_map",
    "soft_iou",
    "two_channel_dice",
]
