"""Leaf modules; none of them reads a config."""

from fss_d2.soft_masks import resize, soft_iou

from .activation import min_max, support_activations
from .attention import MaskAggregation
from .base_knowledge import BaseKnowledge
from .blocks import FeatureReduction, PyramidPooling, ResidualPair, classifier, conv_pair, conv_stack
from .dual_attention import DenseAttention, LightAttention, PrototypicalChannelAttention, soft_pool
from .dynamic_convolution import DynamicConvolution, DynamicQuery, foreground_vectors
from .enrichment import FeatureEnrichment, bin_sizes
from .losses import dice_loss, two_channel_dice
from .point_block_attention import PointBlockAttention
from .pooling import (
    area_fraction,
    balanced_regions,
    mask_features,
    shot_prototypes,
    soft_mask,
    weighted_sum,
)
from .transformer import sine_position_code, sine_position_map

__all__ = [
    "BaseKnowledge",
    "DenseAttention",
    "DynamicConvolution",
    "DynamicQuery",
    "FeatureEnrichment",
    "FeatureReduction",
    "LightAttention",
    "MaskAggregation",
    "PointBlockAttention",
    "PrototypicalChannelAttention",
    "PyramidPooling",
    "ResidualPair",
    "area_fraction",
    "balanced_regions",
    "bin_sizes",
    "classifier",
    "conv_pair",
    "conv_stack",
    "dice_loss",
    "foreground_vectors",
    "mask_features",
    "min_max",
    "resize",
    "shot_prototypes",
    "sine_position_code",
    "sine_position_map",
    "soft_iou",
    "soft_mask",
    "soft_pool",
    "support_activations",
    "two_channel_dice",
    "weighted_sum",
]
