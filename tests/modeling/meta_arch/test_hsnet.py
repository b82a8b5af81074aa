"""HSNet: what its numbers depend on, the strides of its levels, several supports, and what is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fss_d2.modeling import HSNet
from fss_d2.modeling.backbone import ResNetBackbone, VGGBackbone
from fss_d2.modeling.meta_arch.hsnet import HSNetHead
from tests.modeling.episodes import make_episode, make_model, match


@pytest.mark.parametrize(
    ("backbone", "learned"),
    [
        (lambda: ResNetBackbone(depth=50), 2_573_794),
        (lambda: ResNetBackbone(depth=101), 2_587_394),
        (lambda: VGGBackbone(batch_norm=False, layout="hsnet"), 2_570_018),
    ],
    ids=["r50", "r101", "vgg16"],
)
def test_learned_parameters_are_the_published_ones(backbone: Any, learned: int) -> None:
    with torch.device("meta"):
        model = HSNet(backbone=backbone())
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == learned


def test_strides_and_kernels_of_the_levels() -> None:
    """The published ones with strides 8, 16, 32; every level shrinks the support by 256 pixels in all."""
    blocks = {level: [f"{level}.0"] for level in ("res2", "res3", "res4", "res5")}
    head = HSNetHead(blocks, dict(zip(blocks, (4, 8, 16, 32), strict=True)))
    found = {
        level: [(conv.stride, conv.query.kernel_size[0], conv.support.stride[0]) for conv in list(stack)[::3]]
        for level, stack in head.squeeze.items()
    }
    assert found == {
        "res2": [(4, 5, 4)] * 3,
        "res3": [(4, 5, 4), (4, 5, 4), (2, 3, 2)],
        "res4": [(4, 5, 4), (2, 3, 2), (2, 3, 2)],
        "res5": [(2, 3, 2)] * 3,
    }
    assert list(head.merge) == ["res2", "res3", "res4"]
    assert all(conv.stride == 1 for stack in head.merge.values() for conv in list(stack)[::3])


def test_levels_of_one_stride_shrink_alike() -> None:
    """A dilated ResNet has stride 8 in all three."""
    model = HSNet(backbone=ResNetBackbone(depth=50, dilation="pspnet"), widths=(4, 4, 4)).eval()
    episode = make_episode(0, size=(72, 64))
    assert match(model, episode).logits.shape == (1, 2, 72, 64)


def test_only_the_object_of_a_support_counts() -> None:
    """Another background leaves the scores as they are, unless supports are not masked."""
    episode = make_episode(0, size=(64, 64))
    (support,) = episode["support"]
    mask = torch.zeros(64, 64, dtype=torch.uint8)
    mask[:32, :32] = 1
    other = support["image"].clone()
    other[:, 40:], other[:, :, 40:] = 255 - other[:, 40:], 0  # further off than the resized mask reaches
    for kept, same in ((False, True), (True, False)):
        model = make_model(
            "HSNet", "MODEL.HSNET.SUPPORT_BACKGROUND", kept, "MODEL.HSNET.LEVELS", ("res3", "res4")
        )
        logits = [
            match(model, {**episode, "support": [{"image": image, "mask": mask}]}).logits
            for image in (support["image"], other)
        ]
        assert torch.allclose(*logits) == same


def test_features_of_any_scale_give_the_same() -> None:
    model = make_model("HSNet")
    episode = make_episode(0)
    extract = model.extract
    before = match(model, episode).logits
    model.extract = lambda *x: {name: 1000 * maps for name, maps in extract(*x).items()}
    torch.testing.assert_close(match(model, episode).logits, before, rtol=1e-3, atol=1e-4)


def shots(model: HSNet, *leads: float) -> Tensor:
    """Scores (2, 2) of object and background in two pixels, where each support gives one lead to both."""
    given = iter([torch.tensor([[0.0, 0.0], [lead, -9.0]]).view(1, 2, 1, 2) for lead in leads])
    model.head.forward = lambda *maps: next(given)
    return match(model, make_episode(0, shots=len(leads), size=(1, 2))).logits[0, :, 0]


def test_votes_are_counted_at_inference_and_probabilities_averaged_in_training() -> None:
    """Two votes of five are 2/2 of the largest vote; leads of 3 and -1 have the mean (0.953 + 0.269) / 2."""
    model = make_model("HSNet")
    found = shots(model, 5.0, 5.0, -1.0, -1.0, -1.0).softmax(dim=0)[1]
    torch.testing.assert_close(found, torch.tensor([1 - 1e-4, 1e-4]))
    found = shots(model, -1.0, -2.0).softmax(dim=0)[1]
    torch.testing.assert_close(found, torch.tensor([1e-4, 1e-4]))
    found = shots(model.train(), 3.0, -1.0).softmax(dim=0)[1]
    torch.testing.assert_close(found[0], torch.tensor([3.0, -1.0]).sigmoid().mean())


def test_a_size_at_which_the_levels_of_a_vgg_differ_is_refused() -> None:
    """272 pixels: res5 has 8 x 8 positions and ends at 1, res4 17 x 17 and ends at 2."""
    model = HSNet(backbone=VGGBackbone(batch_norm=False, layout="hsnet"), widths=(4, 4, 4)).eval()
    sides = {"res3": 34, "res4": 17, "res5": 8}
    query = {n: torch.zeros(1, 1, 2, 2) for names in model.head.levels.values() for n in names}
    support = {n: torch.zeros(1, 1, sides[n[:4]], sides[n[:4]]) for n in query}
    with pytest.raises(
        ValueError, match=r"res4 of the support to \(2, 2\) positions, the next level to \(1, 1\)"
    ):
        model.head(query, support)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (("MODEL.HSNET.WIDTHS", (16, 64)), ValueError, "MODEL.HSNET.WIDTHS .* three multiples of 4"),
        (("MODEL.HSNET.WIDTHS", (16, 6, 8)), ValueError, "MODEL.HSNET.WIDTHS .* three multiples of 4"),
        (("MODEL.HSNET.LEVELS", ("res9",)), KeyError, "'res9' of MODEL.HSNET.LEVELS; have res2, res3"),
        (("MODEL.HSNET.LEVELS", ()), ValueError, "MODEL.HSNET.LEVELS .* at least 1"),
    ],
)
def test_wrong_keys_are_named(settings: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_model("HSNet", *settings)
