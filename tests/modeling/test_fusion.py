"""Fusion of several predictions by hand, of K supports and of several sizes for every method."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fss_d2.modeling import FEW_SHOT_META_ARCHS, JC2A, Output
from fss_d2.modeling.fusion import (
    FUSIONS,
    MultiScaleSegmentor,
    cross_guided,
    either,
    guidance_weights,
    mean_log_probability,
    normalized_vote,
    vote,
)
from fss_d2.modeling.layers import resize
from fss_d2.modeling.meta_arch.contract import stack_supports
from tests.modeling.episodes import make_episode, make_model

TRAINED = [m for m in FEW_SHOT_META_ARCHS if m not in ("FROST", "INSID3", "Prototype")]
METHODS = pytest.mark.parametrize("method", FEW_SHOT_META_ARCHS)

# (1, K = 3, 1, 4): four pixels with 0, 1, 2, 2 votes
PROBABILITY = torch.tensor([[0.1, 0.6, 0.9, 0.7], [0.2, 0.4, 0.6, 0.9], [0.0, 0.5, 0.0, 0.2]])
PROBABILITY = PROBABILITY.view(1, 3, 1, 4)
FOUND = PROBABILITY > 0.5


def close(result: Tensor, expected: list[float]) -> None:
    assert result.shape == (1, 1, 4)
    assert result.flatten().tolist() == pytest.approx(expected, abs=1e-5)


def test_vote_takes_a_half_for_background() -> None:
    close(vote(FOUND), [0, 1 / 3, 2 / 3, 2 / 3])


def test_normalized_vote_takes_half_of_the_most_votes_for_object() -> None:
    result = normalized_vote(FOUND)
    close(result, [0, 0.5, 1, 1])
    assert (result > 0.5).flatten().tolist() == [False, True, True, True]
    close(normalized_vote(FOUND & False), [0, 0, 0, 0])


def test_either_takes_the_surest_object() -> None:
    logs = torch.stack([1 - PROBABILITY, PROBABILITY], dim=2).log()  # (1, 3, 2, 1, 4)
    close(either(logs.unbind(dim=1)).exp()[:, 1], [0.2, 0.6, 0.9, 0.9])
    torch.testing.assert_close(either(logs.unbind(dim=1)).exp().sum(dim=1), torch.ones(1, 1, 4))


def test_cross_guided_weighs_the_logits() -> None:
    logits = torch.stack([-PROBABILITY, PROBABILITY], dim=2).unbind(dim=1)
    close(cross_guided(logits, torch.tensor([[1.0, 3.0, 0.0]]))[:, 1], [0.175, 0.45, 0.675, 0.85])
    close(cross_guided(logits, torch.tensor([[1.0, 3.0, 0.0]]))[:, 0], [-0.175, -0.45, -0.675, -0.85])
    close(cross_guided(logits, torch.zeros(1, 3))[:, 1], [0.1, 0.5, 0.5, 0.6])


def test_guidance_weights_are_mean_ious_of_object_and_background() -> None:
    masks = torch.tensor([[1, 1, 0, 255], [0, 1, 0, 0]]).view(1, 2, 1, 4)
    right = torch.tensor([[1, 1, 0, 1], [0, 1, 0, 0]])  # 255 is not counted
    half = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0]])
    found = torch.stack([right, half]).view(1, 2, 2, 1, 4) == 1
    # The second shot: object 1/2 and background 1/2 in the first support, 1/2 and 2/3 in the second.
    expected = torch.tensor([[1.0, (1 / 2 + 1 / 2 + 1 / 2 + 2 / 3) / 4]])
    torch.testing.assert_close(guidance_weights(found, masks), expected)
    # Nothing found where nothing is: the background is right, and the object counts as missed.
    nothing = torch.zeros(1, 1, 1, 2, 2, dtype=torch.bool)
    assert guidance_weights(nothing, torch.zeros(1, 1, 2, 2)).tolist() == [[0.5]]


def _winner(scores: Tensor) -> Tensor:
    return scores.select(-3, 1) > scores.select(-3, 0)


def test_mean_of_probabilities_by_hand() -> None:
    first = torch.tensor([0.0, math.log(3)]).view(1, 2, 1, 1)  # 1/4, 3/4
    second = torch.tensor([math.log(9), 0.0]).view(1, 2, 1, 1)  # 9/10, 1/10
    mean = mean_log_probability([first, second]).exp().flatten()
    torch.testing.assert_close(mean, torch.tensor([0.575, 0.425]))
    assert not _winner(mean_log_probability([first, second]))  # the mean of the logits says so, too:
    third = torch.tensor([math.log(2), 0.0]).view(1, 2, 1, 1)
    assert _winner(first + third) and _winner(mean_log_probability([first, third]))
    sure, unsure = torch.tensor([50.0, 0.0]).view(1, 2, 1, 1), torch.tensor([0.0, 60.0]).view(1, 2, 1, 1)
    assert not _winner(mean_log_probability([sure, sure, unsure]))  # probabilities, not logits: 2 to 1


def test_one_size_keeps_order_and_ties_to_the_last_bit() -> None:
    background = torch.tensor([[1e-6, 1.0, 30.0, -200.0, 1e-7, 5.0]])
    above = torch.nextafter(background, torch.tensor(torch.inf))
    for scores in ((background, background), (background, above), (above, background), (background, -above)):
        logits = torch.stack(scores)
        assert torch.equal(_winner(mean_log_probability([logits.double()])), _winner(logits))
    assert mean_log_probability([torch.tensor([[[900.0]], [[-900.0]]])]).isfinite().all()


def test_opposite_opinions_tie_and_ties_are_background() -> None:
    logits = torch.randn(2, 5, 7)
    assert not _winner(mean_log_probability([logits, logits.flip(0)])).any()


class _Fixed(nn.Module):
    """Returns the "scores" of each input."""

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"sem_seg": e["scores"], "aux": {"number": e["scores"][:1]}} for e in batched_inputs]


def _average(*scores: Tensor, height: int, width: int) -> dict[str, Any]:
    episode = {"height": height, "width": width, "views": [{"scores": s} for s in scores]}
    with torch.no_grad():
        return MultiScaleSegmentor(_Fixed().eval())([episode])[0]


def test_what_no_view_covers_is_background() -> None:
    output = _average(torch.tensor([0.0, 5.0]).view(2, 1, 1).expand(2, 3, 4), height=5, width=6)
    assert output["sem_seg"].shape == (2, 5, 6)
    expected = torch.zeros(5, 6, dtype=torch.bool)
    expected[:3, :4] = True
    assert torch.equal(_winner(output["sem_seg"]), expected)


def test_maps_of_the_first_view_are_kept_and_not_a_number_stays() -> None:
    first, second = torch.zeros(2, 4, 4), torch.full((2, 4, 4), torch.nan)
    output = _average(first, second, height=4, width=4)
    assert torch.equal(output["aux"]["number"], first[:1])
    assert output["sem_seg"].isnan().all()  # for the evaluator to complain of


def test_training_and_missing_views_are_refused() -> None:
    with pytest.raises(RuntimeError, match="cannot be trained"):
        MultiScaleSegmentor(_Fixed())([])
    model = MultiScaleSegmentor(_Fixed().eval())
    assert not model.training  # the mode of what it holds
    assert model([]) == []
    with pytest.raises(ValueError, match=r"episode 7: no 'views'.*TEST\.SCALES"):
        model([{"episode_index": 7, "height": 1, "width": 1}])


def _at(episode: dict[str, Any], size: tuple[int, int], **extra: Any) -> dict[str, Any]:
    """The episode with its images resized, its frame as it is."""
    picture = {"image": resize(episode["image"][None].float(), size, align_corners=False)[0]}
    masks = (s["mask"][None, None] for s in episode["support"])
    support = [
        {
            "image": resize(s["image"][None].float(), size, align_corners=False)[0],
            "mask": torch.nn.functional.interpolate(mask, size=size, mode="nearest")[0, 0],
        }
        for s, mask in zip(episode["support"], masks, strict=True)
    ]
    frame = {"height": episode["height"], "width": episode["width"]}
    return picture | frame | {"support": support} | extra


@METHODS
def test_the_own_size_alone_changes_no_prediction(method: str) -> None:
    model = make_model(method)
    episodes = [make_episode(i, shots=2) | {"height": 60, "width": 40} for i in range(2)]
    with torch.no_grad():
        plain = model(episodes)
        averaged = MultiScaleSegmentor(model)([{**e, "views": [_at(e, (48, 48))]} for e in episodes])
    for expected, output in zip(plain, averaged, strict=True):
        assert torch.equal(_winner(output["sem_seg"]), _winner(expected["sem_seg"]))
        assert output["aux"].keys() == expected["aux"].keys()


@METHODS
def test_two_sizes_are_the_mean_of_their_softmax(method: str) -> None:
    """The second one is letterboxed: its padding does not enter the mean."""
    model = make_model(method)
    episode = make_episode(0) | {"height": 60, "width": 60}
    views = [_at(episode, (48, 48)), _at(episode, (64, 56), valid_size=(56, 48))]
    with torch.no_grad():
        (output,) = MultiScaleSegmentor(model)([{**episode, "views": views}])
        scores = [model([view])[0]["sem_seg"] for view in views]
        whole = model([_at(episode, (64, 56)) | {"height": 64, "width": 56}])[0]["sem_seg"]
    cut = resize(whole[None, :, :56, :48], (60, 60), align_corners=model.align_corners)[0]
    mean = (scores[0].softmax(0) + cut.softmax(0)) / 2
    torch.testing.assert_close(output["sem_seg"].exp().float(), mean, rtol=1e-4, atol=1e-5)
    assert output["sem_seg"].shape == (2, 60, 60)


# -- K supports of every method --------------------------------------------------------------------------


def _scores(model: nn.Module, episode: dict[str, Any], supports: Sequence[dict[str, Any]]) -> Output:
    """The output for the query of an episode and some supports."""
    images, masks = stack_supports([{"support": supports}])
    with torch.no_grad():
        return model.match(model.encode_query(episode["image"][None]), model.encode_support(images, masks))


def _centred(model: nn.Module) -> nn.Module:
    """Let an untrained model find object and background, differently with each support."""
    match = model._match

    def centred(*args: Any) -> Output:
        output = match(*args)
        lead = output.logits[:, 1] - output.logits[:, 0]
        lead = 2 * (lead - lead.median()) / lead.std().clamp(min=1e-6)
        return replace(output, logits=torch.stack([0.5 - lead / 2, 0.5 + lead / 2], dim=1))

    model._match = centred
    return model


@METHODS
@pytest.mark.parametrize("kind", ["vote", "normalized_vote", "average", "or"])
def test_k_predictions_of_every_method_joined_by_hand(method: str, kind: str) -> None:
    episode = make_episode(0, shots=3)
    one, joined = _centred(make_model(method)), _centred(make_model(method, "TEST.KSHOT", kind))
    each = [_scores(one, episode, [support]) for support in episode["support"]]
    found = torch.stack([o.logits[0, 1] > o.logits[0, 0] for o in each])
    sure = torch.stack([o.probability()[0] for o in each])
    votes = found.sum(dim=0)
    expected = {
        "vote": votes > 1.5,
        "normalized_vote": 2 * votes >= votes.max().clamp(min=1),
        "average": sure.mean(dim=0) > 0.5,
        "or": votes > 0,
    }[kind]
    output = _scores(joined, episode, episode["support"])
    unclear = ((sure.mean(dim=0) - 0.5).abs() < 1e-6) & (kind == "average")
    assert torch.equal(_winner(output.logits)[0] | unclear, expected | unclear)
    assert expected.any() and not expected.all()
    if kind in ("average", "or"):
        probability = sure.mean(dim=0) if kind == "average" else sure.amax(dim=0)
        torch.testing.assert_close(output.probability()[0], probability, rtol=1e-4, atol=1e-4)
    assert output.maps.keys() == each[0].maps.keys()


@METHODS
def test_cross_guided_averaging_of_every_method_by_hand(method: str) -> None:
    episode = make_episode(0, shots=3)
    one = _centred(make_model(method))
    joined = _centred(make_model(method, "TEST.KSHOT", "cross_guided"))
    shots = episode["support"]
    found = torch.stack(
        [torch.stack([_winner(_scores(one, query, [shot]).logits)[0] for query in shots]) for shot in shots]
    )
    weights = guidance_weights(found[None], torch.stack([shot["mask"] for shot in shots])[None])
    support = joined.encode_support(*stack_supports([episode]))
    torch.testing.assert_close(support.weights, weights, rtol=1e-3, atol=1e-3)
    logits = [_scores(one, episode, [shot]).logits for shot in shots]
    expected = cross_guided(logits, support.weights)
    output = _scores(joined, episode, shots)
    clear = (expected[:, 1] - expected[:, 0]).abs() > 1e-4
    assert torch.equal(_winner(output.logits)[clear], _winner(expected)[clear])


@METHODS
@pytest.mark.parametrize("kind", FUSIONS)
def test_one_support_and_one_support_thrice_give_one_prediction(method: str, kind: str) -> None:
    episode = make_episode(0)
    own, joined = _centred(make_model(method)), _centred(make_model(method, "TEST.KSHOT", kind))
    single = _scores(own, episode, episode["support"])
    torch.testing.assert_close(_scores(joined, episode, episode["support"]).logits, single.logits)
    thrice = _scores(joined, episode, episode["support"] * 3)
    clear = (single.logits[:, 1] - single.logits[:, 0]).abs() > 1e-4
    assert torch.equal(_winner(thrice.logits)[clear], _winner(single.logits)[clear])


@pytest.mark.parametrize("method", TRAINED)
def test_training_goes_the_own_way(method: str) -> None:
    losses = []
    for kind in ("own", "vote"):
        model = make_model(method, "TEST.KSHOT", kind).train()
        torch.manual_seed(0)
        losses.append(model([make_episode(seed, shots=2) for seed in (0, 1)]))
    assert losses[0].keys() == losses[1].keys()
    for name, loss in losses[0].items():
        assert torch.equal(loss, losses[1][name]), name


def test_supports_encoded_without_cross_guidance_are_refused() -> None:
    plain = make_model("DCAMA").encode_support(*stack_supports([make_episode(0, shots=2)]))
    model = make_model("DCAMA", "TEST.KSHOT", "cross_guided")
    with pytest.raises(
        ValueError, match=r"TEST\.KSHOT cross_guided needs supports that were encoded with it"
    ):
        model.select_supports(plain, [0, 1])


def test_a_method_that_votes_averages_while_it_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    episode = make_episode(0, shots=3)
    torch.manual_seed(0)
    expected = make_model("JC2A").train()([episode])
    monkeypatch.setattr(JC2A, "own_fusion", "normalized_vote")
    torch.manual_seed(0)
    losses = make_model("JC2A").train()([episode])
    assert all(torch.equal(loss, expected[name]) for name, loss in losses.items())
    own, chosen = (_centred(make_model("JC2A", "TEST.KSHOT", kind)) for kind in ("own", "normalized_vote"))
    outputs = [_scores(model, episode, episode["support"]).logits for model in (own, chosen)]
    assert torch.equal(*outputs)
    assert len(outputs[0].unique()) < 20  # shares of three votes
