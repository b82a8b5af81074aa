"""Forward passes do not read values back: on a GPU each time would wait until all queued work is done."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from detectron2.layers import ShapeSpec
from torch import Tensor

from fss_d2.modeling.backbone import SwinBackbone, create_timm_backbone
from fss_d2.modeling.layers import (
    BaseKnowledge,
    DenseAttention,
    DynamicConvolution,
    FeatureEnrichment,
    LightAttention,
    MaskAggregation,
    PointBlockAttention,
    PrototypicalChannelAttention,
    PyramidPooling,
    dice_loss,
    shot_prototypes,
    support_activations,
    two_channel_dice,
)
from fss_d2.modeling.layers.alignment import CrossAlignment, self_alignment
from fss_d2.modeling.proposals.criterion import ProposalCriterion
from fss_d2.modeling.proposals.head import ProposalHead
from tests.modeling.waiting import ReadBacks


@pytest.mark.parametrize(
    "read",
    [lambda x: bool(x.any()), lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: (x > 0).nonzero()],
)
def test_reads_are_found(read: Callable[[Tensor], object]) -> None:
    with ReadBacks() as reads:
        read(torch.rand(3))
    assert reads.found


MAPS, MASK = torch.rand(2, 32, 6, 6), torch.rand(2, 6, 6)
SHOTS = MAPS[:, None]


def knowledge() -> BaseKnowledge:
    module = BaseKnowledge({"a": 32}, 3)
    module.fill(torch.rand(3, 32))
    return module


def block(module: PointBlockAttention) -> Tensor:
    return module(module.queries(0, MAPS), module.encode(0, MAPS, MASK))


def aggregate(module: MaskAggregation) -> Tensor:
    queries, keys = module.queries(MAPS), module.keys(MAPS)
    module.region_means(keys, MASK.flatten(1))
    return module(queries, keys, MASK.flatten(1))


def attend(module: LightAttention | DenseAttention) -> Tensor:
    return module(MAPS, module.key(MAPS)[:, None])


def convolve(module: DynamicConvolution) -> list[Tensor]:
    return module(MAPS, torch.rand(2, 3, 32))  # the vectors of the object are of any number, hence read


CHANNELS = {"res2": 64, "res3": 128, "res4": 256, "res5": 512}
FEATURES = {stage: torch.rand(1, c, 16 >> i, 16 >> i) for i, (stage, c) in enumerate(CHANNELS.items())}


def head(**options: Any) -> ProposalHead:
    shapes = {stage: ShapeSpec(channels=c, stride=4 << i) for i, (stage, c) in enumerate(CHANNELS.items())}
    return ProposalHead(shapes, dim=32, num_queries=4, encoder_layers=1, decoder_layers=1, **options)


CASES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "base_knowledge": (knowledge, lambda m: m({"a": MAPS})),
    "point_block": (lambda: PointBlockAttention(32, [6], block_sides=[3], kept_blocks=[2]), block),
    "mask_aggregation": (lambda: MaskAggregation([32]), aggregate),
    "light": (lambda: LightAttention(32), attend),
    "dense": (lambda: DenseAttention(32), attend),
    "channel": (lambda: PrototypicalChannelAttention(32, masked=True), lambda m: m(MAPS, MASK)),
    "dynamic": (lambda: DynamicConvolution(32, 3), convolve),
    "pyramid": (lambda: PyramidPooling(32), lambda m: m(MAPS)),
    "enrichment": (lambda: FeatureEnrichment(32, 32, 2), lambda m: m([MAPS, MAPS], (6, 6))),
    "alignment": (lambda: CrossAlignment(32), lambda m: m(MAPS, MAPS, MASK)),
    "self_alignment": (lambda: self_alignment, lambda m: m(MAPS)),
    "activation": (lambda: support_activations, lambda m: m(MAPS, SHOTS, ((1, 1), (3, 3)))),
    "prototypes": (lambda: shot_prototypes, lambda m: m(SHOTS, MASK[:, None])),
    "dice": (lambda: dice_loss, lambda m: (m(MASK, MASK), two_channel_dice(MAPS[:, :2], MASK.round()))),
    "timm": (lambda: create_timm_backbone("tf_efficientnet_lite0"), lambda m: m(torch.rand(2, 3, 64, 64))),
    "swin": (lambda: SwinBackbone(size="tiny"), lambda m: m(torch.rand(1, 3, 64, 64))),
    "proposals": (head, lambda m: m(FEATURES)),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_no_read_back_after_the_first_call(name: str, training: bool) -> None:
    build, run = CASES[name]
    torch.manual_seed(0)
    module = build()
    if isinstance(module, torch.nn.Module):
        module.train(training)
    run(module)
    with ReadBacks() as reads:
        run(module)
    assert not reads.found


@pytest.mark.parametrize("sampling", ["grid", "gather"])
def test_proposals_read_back_their_costs_only(sampling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """scipy assigns proposals to segments on the CPU; this is the one read of the training losses."""
    monkeypatch.setattr(
        "fss_d2.modeling.proposals.criterion._assign", lambda *_: (torch.arange(2), torch.arange(2))
    )
    # Labels are checked on the CPU, where they come from.
    monkeypatch.setattr(ProposalCriterion, "_checked_labels", lambda _self, _predictions, _segments, x: x)
    torch.manual_seed(0)
    module = head(num_classes=3, sampling=sampling)
    criterion = ProposalCriterion(num_points=16, num_classes=3, class_weight=1.0)
    segments, labels = [torch.rand(2, 64, 64) > 0.5], [torch.tensor([1, 2])]
    module(FEATURES)
    with ReadBacks() as reads:
        predictions = module(FEATURES)
        losses = criterion(predictions, segments, labels)
        sum(losses.values()).backward()
    assert not reads.found
