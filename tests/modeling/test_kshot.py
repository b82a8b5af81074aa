"""Fusion of K one-shot predictions, by hand."""

import pytest
import torch

from fss_d2.modeling.kshot import average, cross_guided, guidance_weights, normalized_vote, vote

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
