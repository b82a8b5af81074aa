"""Fusion of several predictions, by hand."""

import math

import pytest
import torch
from torch import Tensor

from fss_d2.modeling.fusion import (
    average,
    cross_guided,
    guidance_weights,
    mean_log_probability,
    normalized_vote,
    vote,
)

# (1, K = 3, 1, 4): four pixels with 0, 1, 2, 2 votes
PROBABILITY = torch.tensor([[0.1, 0.6, 0.9, 0.7], [0.2, 0.4, 0.6, 0.9], [0.0, 0.5, 0.0, 0.2]])
PROBABILITY = PROBABILITY.view(1, 3, 1, 4)


def close(result: torch.Tensor, expected: list[float]) -> None:
    assert result.shape == (1, 1, 4)
    assert result.flatten().tolist() == pytest.approx(expected, abs=1e-5)


def test_average() -> None:
    close(average(PROBABILITY), [0.1, 0.5, 0.5, 0.6])


def test_vote_takes_a_half_for_background() -> None:
    close(vote(PROBABILITY), [0, 1 / 3, 2 / 3, 2 / 3])


def test_normalized_vote_takes_half_of_the_most_votes_for_object() -> None:
    result = normalized_vote(PROBABILITY)
    close(result, [0, 0.5, 1, 1])
    assert (result > 0.5).flatten().tolist() == [False, True, True, True]
    close(normalized_vote(PROBABILITY * 0), [0, 0, 0, 0])


def test_cross_guided_weighs_the_shots() -> None:
    close(cross_guided(PROBABILITY, torch.tensor([[1.0, 3.0, 0.0]])), [0.175, 0.45, 0.675, 0.85])
    close(cross_guided(PROBABILITY, torch.zeros(1, 3)), [0.1, 0.5, 0.5, 0.6])


def test_guidance_weights_are_mean_ious() -> None:
    masks = torch.tensor([[1, 1, 0, 255], [0, 1, 0, 0]]).view(1, 2, 1, 4)
    right = torch.tensor([[1.0, 1.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0]])  # 255 is not counted
    half = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    probability = torch.stack([right, half]).view(1, 2, 2, 1, 4)
    assert guidance_weights(probability, masks).tolist() == [[1.0, 0.5]]
    empty = guidance_weights(torch.zeros(1, 1, 1, 2, 2), torch.zeros(1, 1, 2, 2))
    assert empty.tolist() == [[0.0]]


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
