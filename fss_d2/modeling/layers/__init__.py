"""Leaf modules; none of them reads a config."""
# ruff: noqa: F401

from fss_d2.soft_masks import resize, soft_iou

from .activation import min_max, support_activations
from .attention import MaskAggregation
from .base_knowledge import BaseKnowledge
from .blocks import (
    FeatureEnrichment,
    FeatureReduction,
    PyramidPooling,
    ResidualPair,
    bin_sizes,
    classifier,
    conv_pair,
    conv_stack,
)
from .center_pivot import CenterPivotConv4d, center_pivot_stack, correlate, resize_query, unit_features
from .correlation import COMPARISONS, compare, region_prototypes, unit
from .dual_attention import DenseAttention, LightAttention, PrototypicalChannelAttention, soft_pool
from .dynamic_convolution import DynamicConvolution, DynamicQuery, foreground_vectors
from .losses import dice_loss, two_channel_dice
from .metric_embedding import MetricEmbedding, PrototypeClassifier, finest_size
from .point_block_attention import PointBlockAttention
from .pooling import (
    area_fraction,
    balanced_regions,
    join_levels,
    mask_features,
    shot_prototypes,
    soft_mask,
    weighted_sum,
)
from .presence_head import PresenceHead
from .skip_decoder import SkipDecoder
from .standardisation import FixedStandardisation
from .transformer import sine_position_code, sine_position_map
