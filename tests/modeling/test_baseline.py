"""The comparison with mean features under a method."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fss_d2.modeling import FEW_SHOT_META_ARCHS, Output
from fss_d2.modeling.meta_arch.contract import stack_supports
from fss_d2.modeling.meta_arch.mm_former import MMFormerOutput
from tests.modeling.episodes import make_episode, make_model

METHODS = pytest.mark.parametrize("method", [m for m in FEW_SHOT_META_ARCHS if m != "Prototype"])
SCALE = ("MODEL.BASELINE.SCALE", 5.0)


def lead(method: str, *settings: Any, shots: int = 1, silent: bool = False) -> Tensor:
    """Logits of the object's probability in one query; the method's own are 0 if silent."""
    model = make_model(method, *settings)
    episode = make_episode(0, shots, (96, 80))
    if silent:
        model._match = lambda query, support, size: Output(torch.zeros(1, 2, *size))  # equal odds
    support = model.encode_support(*stack_supports([episode]))
    output = model.match(model.encode_query(episode["image"][None]), support)
    return output.probability().double().logit()


@METHODS
@torch.no_grad()
def test_a_method_that_says_nothing_is_prototype(method: str) -> None:
    silent = lead(method, *SCALE, silent=True)
    assert silent.std() > 0.1
    model = make_model(method)
    if model.align_corners:
        pytest.skip("Prototype resizes its scores otherwise")
    for shots in (1,) if model.own_fusion else (1, 3):
        ours = lead(method, *SCALE, shots=shots, silent=True)
        alone = lead("Prototype", "MODEL.PROTOTYPE.TEMPERATURE", 0.2, shots=shots)
        torch.testing.assert_close(ours, alone, rtol=1e-3, atol=1e-3)


@METHODS
@torch.no_grad()
def test_the_methods_own_logits_are_added(method: str) -> None:
    if method == "MMFormer":
        pytest.skip("untrained, its masks are 0 or 1; see the next test")
    own, silent, both = lead(method), lead(method, *SCALE, silent=True), lead(method, *SCALE)
    torch.testing.assert_close(both, own + silent, rtol=1e-3, atol=1e-3)
    doubled = lead(method, "MODEL.BASELINE.SCALE", 10.0, silent=True)
    torch.testing.assert_close(doubled, 2 * silent, rtol=1e-3, atol=1e-3)


def test_a_mask_of_proposals_gets_them_as_a_probability() -> None:
    mask = torch.tensor([[[0.0, 0.2, 0.5, 0.999, 1.0]]])
    output = MMFormerOutput(torch.stack([1 - mask, mask], dim=1), proposals=mask, matching=None)
    for by in (-3.0, 3.0):
        lowered = output.lowered(torch.full_like(mask, by)).probability()
        torch.testing.assert_close(lowered[..., 1:-1], (mask[..., 1:-1].logit() - by).sigmoid())
        assert (lowered >= 0).all() and (lowered <= 1).all()
        assert ((lowered < mask) | (mask == 0)).all() if by > 0 else ((lowered > mask) | (mask == 1)).all()


@METHODS
def test_training_sees_it_and_no_gradient_goes_into_it(method: str) -> None:
    if not make_model(method).trainable:
        pytest.skip("nothing is trained")
    losses = []
    for settings in ((), SCALE):
        model = make_model(method, *settings, "MODEL.BACKBONE.FREEZE", method == "JC2A").train()
        torch.manual_seed(0)
        total = sum(model([make_episode(0), make_episode(1)]).values())
        total.backward()
        losses.append(total.detach())
    assert abs(losses[0] - losses[1]) > 1e-4


@torch.no_grad()
def test_the_features_count_and_are_checked() -> None:
    deep = lead("PFENet", *SCALE, "MODEL.BASELINE.IN_FEATURES", ("res5",), silent=True)
    assert (deep - lead("PFENet", *SCALE, silent=True)).abs().max() > 0.1
    with pytest.raises(KeyError, match=r"MODEL\.BASELINE\.IN_FEATURES: no feature 'res9': choose from res2"):
        make_model("PFENet", *SCALE, "MODEL.BASELINE.IN_FEATURES", ("res9",))
    with pytest.raises(ValueError, match=r"MODEL\.BASELINE\.SCALE.*-1"):
        make_model("PFENet", "MODEL.BASELINE.SCALE", -1.0)


@torch.no_grad()
def test_a_support_set_of_another_setting_is_refused() -> None:
    plain, with_baseline = make_model("PFENet"), make_model("PFENet", *SCALE)
    supports = stack_supports([make_episode(0, 2)])
    for ours, theirs in ((plain, with_baseline), (with_baseline, plain)):
        with pytest.raises(ValueError, match=r"this is no support set .*: encode it again"):
            ours.restore_support(theirs.encode_support(*supports).state())
