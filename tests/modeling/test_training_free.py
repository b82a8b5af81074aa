"""What methods that learn nothing have in common: choices by leave-one-out, precision, odd supports."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fss_d2.modeling import FewShotSegmentor
from fss_d2.modeling.meta_arch.contract import stack_supports
from fss_d2.modeling.meta_arch.training_free import CHOICES, TrainingFree
from tests.modeling.episodes import make_episode, make_model, match

METHODS = pytest.mark.parametrize("method", ["FROST", "INSID3", "Prototype"])
LEAVE_ONE_OUT = "MODEL.TRAINING_FREE.LEAVE_ONE_OUT"


def everything(method: str) -> tuple[Any, ...]:
    """Settings under which a method keeps or chooses most."""
    levels = (f"MODEL.{method.upper()}.IN_FEATURES", ("res4", "res5"))
    rank = () if method == "Prototype" else (f"MODEL.{method}.POSITIONAL_RANK", 8)
    return (LEAVE_ONE_OUT, CHOICES, *levels, *rank)


@METHODS
@torch.no_grad()
def test_earlier_episodes_change_no_later_result(method: str) -> None:
    """Whatever it saw before, also in the same batch and of other sizes, an episode gets the same scores."""
    last = make_episode(9, shots=3)
    fresh = make_model(method, *everything(method))([last])[0]
    model = make_model(method, *everything(method))
    for seed, shots in ((0, 1), (1, 3), (2, 5)):
        model([make_episode(seed, shots), make_episode(seed + 10, shots, size=(64, 40))])
    after, beside = model([last])[0], model([make_episode(3, shots=3), last])[1]
    for name in ("sem_seg", "presence"):
        assert torch.equal(after[name], fresh[name])
        torch.testing.assert_close(beside[name], fresh[name], rtol=1e-4, atol=1e-4)
    assert model.state_dict().keys() == make_model(method).state_dict().keys()


@METHODS
@pytest.mark.parametrize("shots", [1, 3])
@torch.no_grad()
def test_leave_one_out_reads_the_supports_alone(method: str, shots: int) -> None:
    model = make_model(method, *everything(method))
    support = model.encode_support(*stack_supports([make_episode(0, shots)]))
    tuned = support.joined.tuned
    assert tuned is not None and tuned.keys() == {"channels", "threshold", "temperature"}
    again = model.encode_support(*stack_supports([make_episode(0, shots)]))
    assert all(torch.equal(tensor, again.joined.tuned[name]) for name, tensor in tuned.items())
    assert make_model(method).encode_support(*stack_supports([make_episode(0)])).joined.tuned is None


@torch.no_grad()
def test_leave_one_out_takes_the_level_that_tells_the_object() -> None:
    """Maps of stride 16 say where the object is; those of stride 32 are of one value everywhere."""
    model = make_model("Prototype", LEAVE_ONE_OUT, ("layer",))
    nn.init.zeros_(model.backbone.layers["res4_1"][0].weight)
    widths = dict(zip(model.in_features, model.widths, strict=True))
    support = model.encode_support(*stack_supports([make_episode(0, shots=3)]))
    channels = support.joined.tuned["channels"][0]
    assert channels[: widths["res4"]].sum() == 0 and channels[widths["res4"] :].all()


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(ValueError, match=f"unknown {LEAVE_ONE_OUT} 'radius': choose from layer, temperature"):
        make_model("INSID3", LEAVE_ONE_OUT, ("radius",))


@METHODS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision(method: str, dtype: torch.dtype) -> None:
    """What follows the backbone stays in float32: masks differ by the rounding of the features alone."""
    model, episode = make_model(method, *everything(method)), make_episode(0, shots=2)
    exact = match(model, episode).probability()
    with torch.autocast("cpu", dtype):
        half = match(model, episode)
    assert half.logits.dtype == torch.float32 and half.logits.isfinite().all()
    assert (half.probability() - exact).abs().mean() < 0.05


def with_masks(episode: dict[str, Any], *values: int) -> dict[str, Any]:
    """The episode with masks of one value each."""
    pairs = zip(episode["support"], values, strict=True)
    return episode | {"support": [s | {"mask": torch.full_like(s["mask"], v)} for s, v in pairs]}


@METHODS
@pytest.mark.parametrize("value", [0, 1, 255])
@pytest.mark.parametrize("settings", [(), (LEAVE_ONE_OUT, CHOICES)], ids=["plain", "chosen"])
def test_supports_of_one_value(method: str, value: int, settings: tuple[Any, ...]) -> None:
    """Nothing but object, background or neither: finite scores; without an object nothing is found."""
    logits = scores(make_model(method, *settings), with_masks(make_episode(0, 2), value, value))
    assert logits.isfinite().all()
    if value != 1 and method != "Prototype":
        assert (logits[0] >= logits[1]).all()


@METHODS
def test_a_support_without_the_object_adds_no_prototype(method: str) -> None:
    """It may take cells away, as its cells are background."""
    episode = with_masks(make_episode(0, 1), 255)
    both = make_episode(1, 1)
    joined = both | {"support": both["support"] + episode["support"]}
    model = make_model(method)
    alone, two = (model.encode_support(*stack_supports([e])).joined for e in (both, joined))
    name = "prototypes" if method == "Prototype" else "prototype"
    torch.testing.assert_close(getattr(two, name), getattr(alone, name), rtol=1e-4, atol=1e-5)


def scores(model: FewShotSegmentor, episode: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return model([episode])[0]["sem_seg"]


@pytest.mark.parametrize("method", ["FROST", "INSID3"])
@torch.no_grad()
def test_the_positional_basis_follows_weights_and_size(method: str) -> None:
    model = make_model(method, f"MODEL.{method}.POSITIONAL_RANK", 4)
    assert isinstance(model, TrainingFree)
    first = model._basis((48, 64))
    assert first is model._basis((48, 64))
    assert model._basis((48, 32)) is not first
    model.load_state_dict(model.state_dict())
    assert not model._bases
    with pytest.raises(
        ValueError, match=f"MODEL.{method}.POSITIONAL_RANK 32 must be at least 0 and below 32"
    ):
        make_model(method, f"MODEL.{method}.POSITIONAL_RANK", 32)


@torch.no_grad()
def test_a_mirrored_support_counts_as_much_as_the_support() -> None:
    """On features that mirror with the image, mirrored supports change nothing but the order of the views."""
    episode = make_episode(0, shots=1)
    mirrored = {**episode, "support": [{n: t.flip(-1) for n, t in s.items()} for s in episode["support"]]}
    model = make_model("FROST", "MODEL.FROST.MIRRORED", True)
    torch.testing.assert_close(scores(model, mirrored), scores(model, episode), rtol=1e-3, atol=1e-3)
