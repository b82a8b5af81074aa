"""What training-free methods are made of, by hand."""

import math

import pytest
import torch
from torch import Tensor

from fss_d2.modeling.matching import (
    average_linkage,
    backward_votes,
    bandwidth,
    class_whitener,
    cluster_means,
    cosine_kmeans,
    forward_cells,
    grid_mask,
    grown,
    log_density,
    propagate,
    without_positions,
)
from fss_d2.modeling.matching.selection import Trial, choose_setting

A, B, C = torch.eye(3)


def mask(side: int, *pixels: tuple[int, int]) -> Tensor:
    found = torch.zeros(1, side, side, dtype=torch.bool)
    for row, column in pixels:
        found[0, row, column] = True
    return found


@pytest.mark.parametrize(
    ("pixels", "cell"),
    [
        ([(5, 1), (5, 2), (6, 1), (6, 2)], (1, 0)),  # the four pixels in the middle of a cell
        ([(4, 4)], (1, 1)),  # a pixel that the nearest grid meets
        ([(6, 1)], (1, 0)),  # one that it does not: the cell of the mean position
        ([], None),
    ],
)
def test_masks_on_a_grid(pixels: list[tuple[int, int]], cell: tuple[int, int] | None) -> None:
    expected = mask(2, *([cell] if cell else []))
    assert torch.equal(grid_mask(mask(8, *pixels), (2, 2)), expected)


def test_forward_cells_are_those_above_0_or_the_highest_tenth() -> None:
    assert forward_cells(torch.tensor([[0.1, -0.2, 0.0]])).tolist() == [[True, False, False]]
    below = -torch.arange(1.0, 12.0)[None]
    assert forward_cells(below)[0].tolist() == [True, *[False] * 10]
    assert not forward_cells(torch.zeros(1, 5)).any()


def test_backward_votes() -> None:
    """Two supports; the object is A in the first, A and B in the second; what is not known does not vote."""
    query = torch.stack([A, B, C])[None]
    supports = torch.stack([torch.stack([A, B, C]), torch.stack([A, B, C])])[None]
    objects = torch.tensor([[[1, 0, 0], [1, 1, 0]]]).bool()
    known = torch.ones_like(objects)
    assert backward_votes(query, supports, objects, known).tolist() == [[2, 1, 0]]
    known[0, 0, 0] = False
    assert backward_votes(query, supports, objects, known)[0, 0] == 1
    # Of the three nearest cells, the only ones, two are the object's in the second support.
    assert backward_votes(query, supports, objects, torch.ones_like(known), 3).tolist() == [[1, 1, 1]]


def test_grown_cells() -> None:
    cells = torch.zeros(2, 5, 5)
    cells[:, 2, 2] = 1
    assert grown(cells, torch.tensor([0.0, 1.0]), 4).sum(dim=(1, 2)).tolist() == [1, 9]
    assert grown(cells[:1], torch.tensor([2.0]), 4).sum() == 25


def test_average_linkage_is_no_chain() -> None:
    """0, 40 and 80 degrees: neighbours have a cosine of 0.77, the ends 0.17, so all three do not merge."""
    angles = torch.tensor([0.0, 40.0, 80.0]).deg2rad()
    maps = torch.stack([angles.cos(), angles.sin()])[None, :, None]  # (1, 2, 1, 3)
    first = average_linkage(maps, 0.6)[0, 0].tolist()
    assert len(set(first)) == 2 and first[0] != first[2]
    assert len(set(average_linkage(maps, 0.4)[0, 0].tolist())) == 1
    assert len(set(average_linkage(maps, 0.8)[0, 0].tolist())) == 3
    assert average_linkage(maps[..., :1], 0.6).tolist() == [[[0]]]


def test_means_of_clusters() -> None:
    values = torch.tensor([[[1.0], [3.0], [5.0]]])
    assert cluster_means(values, torch.tensor([[1, 1, 0]]))[0, :, 0].tolist() == [5.0, 2.0, 0.0]


def test_kmeans_finds_the_parts_and_ignores_the_rest() -> None:
    cells = torch.stack([A, A, A, B, B, C])[None]
    weights = torch.tensor([[1.0, 1, 1, 1, 1, 0]])
    centres = cosine_kmeans(cells, weights, 2)[0]
    torch.testing.assert_close(centres[centres[:, 0].argsort(descending=True)], torch.stack([A, B]))
    turned = cosine_kmeans(cells.flip(1), weights.flip(1), 2)[0]
    torch.testing.assert_close(turned, centres)
    assert cosine_kmeans(cells, weights * 0, 2).isfinite().all()


def test_features_without_their_positions() -> None:
    features = torch.tensor([3.0, 4.0, 5.0]).view(1, 3, 1, 1)
    assert without_positions(features, A[:, None]).flatten().tolist() == pytest.approx(
        [0, 4 / 41**0.5, 5 / 41**0.5]
    )


def test_density_is_a_mean_over_those_that_count() -> None:
    anchors, among = torch.stack([A, B, C])[None], torch.tensor([[True, True, False]])
    found = log_density(A[None, None], anchors, among, torch.tensor([0.5]))
    assert found.item() == pytest.approx(math.log((1 + math.exp(-2)) / 2))
    assert log_density(A[None, None], anchors, ~among & False, torch.tensor([0.5])).item() == -math.inf


def test_bandwidth_with_the_largest_margin() -> None:
    """Sets apart: the smallest sigma. One cell in a set: the first of the grid."""
    cells = torch.stack([A, A, A, B, B])[None]
    objects = torch.tensor([[True, True, True, False, False]])
    assert bandwidth(cells, objects, ~objects, (0.05, 0.5)).item() == pytest.approx(0.05)
    mixed = torch.tensor([[True, False, False, True, False]])
    assert bandwidth(cells, mixed, ~mixed, (0.05, 1.0)).item() == pytest.approx(1.0)
    single = torch.tensor([[True, False, False, False, False]])
    assert bandwidth(cells, single, ~single, (0.2, 0.5)).item() == pytest.approx(0.2)


def test_whitener_by_hand() -> None:
    """Both sets vary by 1 and -1 along the first of two axes: S = diag(2, 0), mu = 1."""
    cells = torch.tensor([[[1.0, 0], [-1, 0], [1, 5], [-1, 5]]])
    objects = torch.tensor([[1.0, 1, 0, 0]])
    expected = torch.diag(torch.tensor([0.05 * 2 + 0.95, 0.95])).rsqrt().nan_to_num(posinf=0)
    torch.testing.assert_close(class_whitener(cells, objects, 1 - objects)[0], expected)
    assert torch.equal(class_whitener(cells, objects, objects * 0)[0], torch.eye(2))


def test_scores_follow_equals_nearby_and_no_others() -> None:
    """A row of cells: two alike, many of another colour, and one like the first two but out of reach."""
    features, colours = torch.ones(1, 1, 20), torch.zeros(3, 1, 20)
    colours[:, 0, 2:19] = 1
    scores = torch.tensor([1.0, 0.0, *[-3.0] * 17, 0.0])[None]
    found = propagate(scores, features, colours, 10)[0]
    # m0 = 0.3 + 0.7 m1 and m1 = 0.7 m0, after many steps
    assert found[:2].tolist() == pytest.approx([0.3 / 0.51, 0.21 / 0.51], abs=0.02)
    assert found[2:19].tolist() == pytest.approx([-3.0] * 17, abs=1e-3)
    assert abs(found[19]) < 1e-6
    assert torch.equal(propagate(scores, features, colours, 0), scores)


def trial(leads: list[float]) -> Trial:
    objects = torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, 1, 4)
    return Trial(torch.tensor(leads).view(1, 1, 4), objects, torch.ones_like(objects))


def test_leave_one_out_chooses_what_it_is_asked_to() -> None:
    mixed, shifted = trial([0.1, -0.1, 0.1, -0.1]), trial([0.9, 0.8, 0.3, 0.2])
    found = choose_setting([mixed, shifted], 0.0, 0.2, ("layer", "threshold"), -1)
    assert (found.layers, found.temperature) == (1, 0.2)
    assert found.threshold == pytest.approx(0.3)  # the nearest to 0 of those that part them
    assert choose_setting([shifted], 0.0, 0.2, (), -1).threshold == 0
    assert choose_setting([trial([0.9, 0.8, -0.3, -0.2])], 0.0, 0.2, ("threshold",), -1).threshold == 0
    assert choose_setting([trial([0.05, 0.05, -0.7, -0.7])], 0.2, 0.2, ("threshold",), 0.0).threshold == 0


def test_the_temperature_has_the_smallest_entropy() -> None:
    sure = choose_setting([trial([0.9, 0.9, -0.9, -0.9])], 0.0, 1.0, ("temperature",), -1)
    assert sure.temperature == 0.25
    wrong = choose_setting([trial([0.9, -0.9, 0.9, -0.9])], 0.0, 1.0, ("temperature",), -1)
    assert wrong.temperature == 4.0
