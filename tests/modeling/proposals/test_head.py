"""Proposal head: names, dilated backbones, sizes, gradients."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from detectron2.layers import ShapeSpec
from torch import Tensor
from torch.nn import functional as F

from fss_d2.modeling.proposals.head import ProposalHead
from tests.golden.mmformer import key_shapes

CHANNELS = {"res2": 8, "res3": 12, "res4": 16, "res5": 20}
STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
DILATED = {"res2": 4, "res3": 8, "res4": 8, "res5": 8}
SMALL = {
    "dim": 64,
    "num_queries": 20,
    "encoder_layers": 1,
    "encoder_feedforward": 48,
    "decoder_layers": 3,
    "decoder_feedforward": 48,
    "num_heads": 4,
}


def shape_of(channels: Mapping[str, int], strides: Mapping[str, int] = STRIDES) -> dict[str, ShapeSpec]:
    return {stage: ShapeSpec(channels=channels[stage], stride=strides[stage]) for stage in channels}


def small(strides: Mapping[str, int] = STRIDES, **arguments: Any) -> ProposalHead:
    return ProposalHead(shape_of(CHANNELS, strides), **{**SMALL, **arguments})


def features(height: int, width: int, strides: Mapping[str, int] = STRIDES) -> dict[str, Tensor]:
    """Random maps of two images."""
    return {
        stage: torch.randn(2, CHANNELS[stage], -(-height // stride), -(-width // stride))
        for stage, stride in strides.items()
    }


def seen_by_pixel_decoder(head: ProposalHead, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    head.pixel_decoder.register_forward_pre_hook(lambda module, args: seen.update(args[0]))
    head(given)
    return seen


def test_names_and_shapes_are_the_published_ones() -> None:
    head = ProposalHead(shape_of({"res2": 256, "res3": 512, "res4": 1024, "res5": 2048}))
    official = {
        key.removeprefix("sem_seg_head."): tuple(shape)
        for key, shape in key_shapes(1, 1).items()
        if key.startswith("sem_seg_head.") and ".crossat_" not in key
    }
    assert {key: tuple(tensor.shape) for key, tensor in head.state_dict().items()} == official
    assert sum(p.numel() for p in head.parameters()) == 20_494_528


@pytest.mark.parametrize("size", [(64, 96), (75, 101), (33, 32), (5, 40)])
def test_masks_have_stride_4_at_any_size(size: tuple[int, int]) -> None:
    given = features(*size)
    predictions = small().eval()(given)
    assert [tuple(masks.shape) for masks in predictions.masks] == [(2, 20, *given["res2"].shape[-2:])]
    assert [level.shape[-2:] for level in predictions.levels] == [
        given[stage].shape[-2:] for stage in ("res5", "res4", "res3")
    ]
    assert predictions.queries.shape == (2, 20, 64)


def test_dilated_stages_are_resized() -> None:
    given = features(75, 101, DILATED)  # res3: 10 x 13
    seen = seen_by_pixel_decoder(small(DILATED), given)
    assert torch.equal(seen["res3"], given["res3"])
    for stage, size in (("res4", (5, 6)), ("res5", (2, 3))):
        expected = F.interpolate(given[stage], size=size, mode="bilinear", align_corners=True)
        torch.testing.assert_close(seen[stage], expected, rtol=0, atol=0)


def test_resized_stages_keep_a_pixel() -> None:
    seen = seen_by_pixel_decoder(small(DILATED), features(8, 24, DILATED))  # res3: 1 x 3
    assert seen["res4"].shape[-2:] == seen["res5"].shape[-2:] == (1, 1)


@pytest.mark.parametrize(("strides", "resize_dilated"), [(DILATED, False), (STRIDES, True)])
def test_other_stages_are_taken_as_they_are(strides: dict[str, int], resize_dilated: bool) -> None:
    given = features(72, 40, strides)  # half of res3's 9 rows is 4, but res4 has 5
    seen = seen_by_pixel_decoder(small(strides, resize_dilated=resize_dilated), given)
    assert all(torch.equal(seen[stage], given[stage]) for stage in given)


def test_every_parameter_learns_from_the_last_masks() -> None:
    head = small(num_classes=3)
    with torch.no_grad():  # deformable attention starts with weights of 0, which let no gradient through
        for parameter in head.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    predictions = head(features(64, 64))
    loss = (predictions.masks[-1] * torch.randn(2, 20, 16, 16)).sum() + predictions.classes[-1].square().sum()
    loss.backward()
    idle = [name for name, p in head.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not idle


def test_heads_must_divide_the_channels() -> None:
    with pytest.raises(ValueError, match="num_heads 7"):
        small(num_heads=7)
