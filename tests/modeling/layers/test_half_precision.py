"""Pooling of strong features over many pixels, under float16 and bfloat16 autocast, agrees with float32.

Features of mean 30 on 60 x 60 pixels: their sum, 108,000, is beyond float16, whose largest number is 65,504.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fss_d2.modeling.layers import (
    DenseAttention,
    DynamicConvolution,
    LightAttention,
    MaskAggregation,
    PointBlockAttention,
    PrototypicalChannelAttention,
    PyramidPooling,
    dice_loss,
    shot_prototypes,
    soft_pool,
    two_channel_dice,
    weighted_sum,
)
from fss_d2.modeling.layers.alignment import CrossAlignment, self_alignment
from fss_d2.modeling.layers.point_block_attention import ATTENTIONS

C, SIDE = 16, 60
TYPES = {torch.float16: 5e-3, torch.bfloat16: 3e-2}  # relative to the largest value
AUTOCAST = pytest.mark.parametrize("dtype", TYPES)

generator = torch.Generator().manual_seed(0)
FEATURES = 30 + torch.randn(1, C, SIDE, SIDE, generator=generator)
MASK = torch.ones(1, SIDE, SIDE)
MASK[:, :20] = 0


def agree(function: Callable[[Tensor], Tensor], dtype: torch.dtype, x: Tensor = FEATURES) -> None:
    """Compare with float32, on the same features (which a convolution under autocast gives in ``dtype``)."""
    x = x.to(dtype)
    with torch.no_grad():
        expected = function(x.float())
        with torch.autocast("cpu", dtype):
            found = function(x)
    assert found.isfinite().all()
    assert (found.float() - expected).abs().max() <= TYPES[dtype] * expected.abs().max()


@AUTOCAST
@pytest.mark.parametrize("masked", [False, True])
def test_sums_and_means_under_masks(dtype: torch.dtype, masked: bool) -> None:
    mask = MASK if masked else torch.ones_like(MASK)
    agree(lambda x: weighted_sum(x[:, None], mask[:, None, None]), dtype)
    agree(lambda x: shot_prototypes(x[:, None], mask[:, None]), dtype)
    agree(lambda x: soft_pool(x, mask), dtype)


@AUTOCAST
@pytest.mark.parametrize("side", [1, 2, 3, 6])
def test_adaptive_pools(dtype: torch.dtype, side: int) -> None:
    """PFENet, JC2A and the pyramid pool to a few cells."""
    agree(lambda x: F.adaptive_avg_pool2d(x, side), dtype)
    with torch.autocast("cpu", dtype):
        pooled = F.adaptive_avg_pool2d(torch.full_like(FEATURES, 30, dtype=dtype), side)
    assert (pooled == 30).all()


@AUTOCAST
def test_pyramid_pooling(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    agree(PyramidPooling(C).eval(), dtype)


@AUTOCAST
def test_self_alignment(dtype: torch.dtype) -> None:
    agree(self_alignment, dtype)
    agree(lambda x: self_alignment(x / 30), dtype)  # where the sigmoid is not saturated


@AUTOCAST
@pytest.mark.parametrize("kind", ["learned", "parameter_free"])
def test_cross_alignment_does_not_overflow(dtype: torch.dtype, kind: str) -> None:
    """Its layer norm removes the mean, and leaves what rounded features differ by: no number to compare."""
    torch.manual_seed(0)
    module = CrossAlignment(C, num_heads=4, feedforward=32, kind=kind)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        x = FEATURES.to(dtype)
        assert all(aligned.isfinite().all() for aligned in module(x, x * MASK, MASK))


@AUTOCAST
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("projection", ["linear", "cosine"])
def test_mask_aggregation(dtype: torch.dtype, projection: str, fused: bool) -> None:
    torch.manual_seed(0)
    layer = MaskAggregation([C], num_heads=1, projection=projection, fused=fused).eval()
    values = MASK.flatten(1)

    def aggregate(x: Tensor) -> Tensor:
        x = x / x.std() if projection == "linear" else x  # a softmax over large products is a maximum
        queries, keys = layer.queries(x), layer.keys(x)
        return torch.cat([layer(queries, keys, values), layer.region_means(keys, values).flatten(1)], dim=1)

    agree(aggregate, dtype, torch.randn(FEATURES.shape, generator=generator) + 1)
    strong = 30.0 * torch.ones(1, SIDE * SIDE, 256)
    with torch.autocast("cpu", dtype), torch.no_grad():
        layer = MaskAggregation([256], num_heads=1, projection="linear", fused=fused).eval()
        answer = layer(strong.to(dtype), strong.to(dtype), values)  # products of 230,400
    assert answer.isfinite().all() and (answer - 2 / 3).abs().max() < 5e-3


@AUTOCAST
@pytest.mark.parametrize("kind", ATTENTIONS)
def test_points_and_blocks(dtype: torch.dtype, kind: str) -> None:
    torch.manual_seed(0)
    module = PointBlockAttention(C, [SIDE], block_sides=[3], kept_blocks=[60], attention=kind).eval()
    agree(lambda x: module(module.queries(0, x), module.encode(0, x, MASK)), dtype)


@AUTOCAST
def test_light_dense_and_channel_attention(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    light, dense = LightAttention(C, scaled=True), DenseAttention(C)
    for gate in (light.alpha, light.beta, dense.theta):
        torch.nn.init.ones_(gate)
    agree(lambda x: dense(x, dense.key(x)[:, None]), dtype)
    agree(lambda x: light(x, light.key(x)[:, None]), dtype)
    channels = PrototypicalChannelAttention(C, ratio=2)
    agree(lambda x: channels(x * MASK, MASK), dtype)


@AUTOCAST
def test_vectors_of_the_object(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = DynamicConvolution(C, 3)
    agree(lambda x: module.encode(x[:, None], MASK[:, None]), dtype)
    agree(lambda x: torch.cat(module(x, module.encode(x[:, None], MASK[:, None]))), dtype)


@AUTOCAST
def test_dice_of_large_masks(dtype: torch.dtype) -> None:
    """473 x 473 pixels: areas of 200,000."""
    probability = torch.full((1, 473, 473), 0.75)
    target = torch.ones(1, 473, 473)
    agree(lambda p: dice_loss(p, target), dtype, probability)
    agree(lambda p: two_channel_dice(torch.stack([1 - p, p], dim=1), target), dtype, probability)
