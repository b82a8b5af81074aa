"""Pictures of proposals: which are drawn, in which order, where, and how marked."""

from typing import Any

import numpy as np
import pytest
import torch

from fss_d2.visualization import (
    PREDICTION_COLOR,
    SUBTRACTED_COLOR,
    TRUTH_COLOR,
    episode_panel,
    proposal_grid,
    proposal_panel,
)
from fss_d2.visualization import proposals as module

SIZE = (32, 64)  # of the query; proposals at stride 4 are (8, 16)
TILE, ROW = 64 + 4, 32 + 18 + 4  # a tile drawn 32 high, with the gap after it


def _episode(**extra: Any) -> dict[str, Any]:
    """A grey query; the object covers the columns 32 to 47."""
    image = torch.full((3, *SIZE), 90, dtype=torch.uint8)
    target = torch.zeros(SIZE, dtype=torch.uint8)
    target[:, 32:48] = 1
    support = [{"image": image, "mask": target}]
    frame = {"height": SIZE[0], "width": SIZE[1]}
    return {"image": image, "target": target, "support": support, **frame, **extra}


def _aux(*, similarity: list[float] | None = None, coefficients: list[float] | None = None) -> dict:
    """Four proposals, each a quarter of the columns, of probability 0.6, 0.9, 0.8 and 0.7."""
    proposals = torch.zeros(4, 8, 16)
    for i, probability in enumerate((0.6, 0.9, 0.8, 0.7)):
        proposals[i, :, 4 * i : 4 * i + 4] = probability
    aux = {"proposals": proposals}
    if similarity is not None:
        aux["similarity"] = torch.tensor(similarity)[:, None, None]
    if coefficients is not None:
        aux["coefficients"] = torch.tensor(coefficients)[:, None, None]
    return aux


def _scores() -> torch.Tensor:
    return torch.stack([torch.zeros(SIZE), torch.ones(SIZE)])


def _picture_of(panel: np.ndarray, row: int, column: int) -> np.ndarray:
    """The tile at a place of a panel drawn 32 high, without its caption."""
    top, left = row * ROW + 18, column * TILE
    return panel[top : top + 32, left : left + 64].astype(int)


def _blend(color: tuple[float, ...]) -> np.ndarray:
    return 45 + 127.5 * np.array(color)


@pytest.mark.parametrize(
    ("aux", "order", "first_caption"),
    [
        (_aux(), [1, 2, 3, 0], "#0 quality 0.60"),
        (_aux(similarity=[0.1, -0.5, 0.3, 0.2]), [2, 3, 0, 1], "#0 sim 0.10"),
        (
            _aux(similarity=[0.1, 0.9, 0.3, 0.2], coefficients=[0.5, -1.0, 0.0, 2.0]),
            [3, 1, 0, 2],
            "#0 sim 0.10 coef +0.50",
        ),
        # One proposal taken alone: the others follow by similarity.
        (
            _aux(similarity=[0.1, 0.4, 0.9, 0.2], coefficients=[0, 0, 1, 0]),
            [2, 1, 3, 0],
            "#0 sim 0.10 coef +0.00",
        ),
    ],
    ids=["quality", "similarity", "coefficients", "one-hot"],
)
def test_the_order_is_that_of_what_the_method_knows(aux: dict, order: list[int], first_caption: str) -> None:
    found, captions, _ = module._rank(aux)
    assert found == order
    assert captions[0] == first_caption


def test_an_empty_proposal_has_no_quality() -> None:
    aux = _aux()
    aux["proposals"][1] = 0.5  # nowhere above the threshold
    order, captions, _ = module._rank(aux)
    assert order[-1] == 1 and captions[1] == "#1 quality 0.00"


def test_matching_panel_draws_fused_mask_and_the_largest_coefficients() -> None:
    """Two of four: #3 is added, #1 subtracted; the oracle, #2, comes in addition and framed."""
    output = {"sem_seg": _scores(), "aux": _aux(similarity=[0.1] * 4, coefficients=[0.5, -1.0, 0.0, 2.0])}
    episode = _episode()
    panel = proposal_panel(episode, output, top=2, height=32, class_name="cup")
    header = episode_panel(episode, output, height=32, class_name="cup")
    assert (panel[: header.shape[0], : header.shape[1]] == header).all()
    added, subtracted, oracle = (_picture_of(panel, 1, column) for column in range(3))
    np.testing.assert_allclose(added[16, 56], _blend(PREDICTION_COLOR), atol=2)
    np.testing.assert_allclose(subtracted[16, 24], _blend(SUBTRACTED_COLOR), atol=2)
    np.testing.assert_allclose(oracle[16, 40], _blend(PREDICTION_COLOR), atol=2)
    assert (added[16, :40] == 90).all() and (oracle[16, 4:28] == 90).all()
    edges = [tile[0, 30] for tile in (added, subtracted, oracle)]
    assert (edges[0] == 90).all()  # no frame
    np.testing.assert_allclose(edges[2], 255 * np.array(TRUTH_COLOR), atol=1)
    assert panel.shape == (2 * ROW - 4, header.shape[1], 3)


def test_panel_without_scores_has_an_overview_and_the_best_first() -> None:
    panel = proposal_panel(_episode(), {"aux": _aux()}, top=3, height=32)
    tiles = [_picture_of(panel, row, column) for row in (0, 1) for column in range(4)]
    overview, best, oracle = tiles[3], tiles[4], tiles[5]
    changed = np.abs(overview - 90).max(axis=2)[16] > 20
    assert changed[[24, 40, 56]].all() and not changed[4:12].any()  # the fourth proposal is left out
    assert (overview[16, 24] == best[16, 24]).all()  # of the same colour in both
    np.testing.assert_allclose(oracle[0, 30], 255 * np.array(TRUTH_COLOR), atol=1)  # #2 is among the three
    assert panel.shape[0] == 2 * ROW - 4


def test_the_overview_shows_small_proposals_on_large_ones() -> None:
    """The best covers everything, and would hide the other one in the middle."""
    proposals = torch.stack([torch.full((8, 16), 0.9), torch.zeros(8, 16)])
    proposals[1, 2:6, 6:10] = 0.6
    panel = proposal_panel(_episode(target=None), {"aux": {"proposals": proposals}}, height=32)
    overview, small = _picture_of(panel, 0, 2), _picture_of(panel, 1, 1)
    colour = small[16, 32] - 45  # half of it, as drawn on half of the grey
    np.testing.assert_allclose(overview[16, 32], colour + overview[16, 8] / 2, atol=2)
    assert np.abs(overview[16, 32] - overview[16, 8]).max() > 20


def test_without_truth_nothing_is_marked() -> None:
    episode = _episode() | {"target": None}
    panel = proposal_panel(episode, {"aux": _aux()}, top=4, height=32)
    green = np.abs(panel - 255 * np.array(TRUTH_COLOR)).max(axis=2) < 2
    assert not green.any()


def test_proposals_follow_the_query_into_the_frame_of_its_scores() -> None:
    """The lower half of the network's image is padding; the rest is scored at twice its width."""
    episode = _episode(valid_size=(16, 64)) | {"height": 16, "width": 128, "target": None}
    aux = {"proposals": torch.zeros(1, 8, 16)}
    aux["proposals"][0, :4, 8:] = 1  # right half of what counts
    aux["proposals"][0, 4:, :] = 1  # padding
    panel = proposal_panel(episode, {"aux": aux}, top=1, height=16)
    tile = panel[2 * 18 + 16 + 4 :, :128].astype(int)
    changed = np.abs(tile - 90).max(axis=2) > 20
    assert changed[4:12, 72:].all() and not changed[:, :56].any()


def test_a_support_free_episode_has_no_support_tiles() -> None:
    with_support = proposal_panel(_episode(), {"aux": _aux()}, height=32)
    without = proposal_panel(_episode() | {"support": []}, {"aux": _aux()}, height=32)
    assert with_support.shape[1] - without.shape[1] == TILE


def test_grid_breaks_rows_and_repeats_colours() -> None:
    image = np.full((*SIZE, 3), 90, np.uint8)
    masks = [np.ones(SIZE, bool)] * 3
    grid = proposal_grid(image, masks, ["a", "b", "c"], columns=2, height=32, colors=[(1, 0, 0), (0, 1, 0)])
    assert grid.shape == (2 * ROW - 4, 2 * TILE - 4, 3)
    red, green, again = (_picture_of(grid, *place)[16, 32] for place in ((0, 0), (0, 1), (1, 0)))
    np.testing.assert_allclose([red, green], [_blend((1, 0, 0)), _blend((0, 1, 0))], atol=2)
    assert (red == again).all()
    assert (grid[ROW:, TILE:] == 255).all()


def test_bad_grids_and_outputs_are_one_line() -> None:
    image = np.zeros((*SIZE, 3), np.uint8)
    with pytest.raises(ValueError, match="0 proposals and 0 captions: give at least one"):
        proposal_grid(image, [], [])
    with pytest.raises(ValueError, match="1 proposals and 2 captions"):
        proposal_grid(image, [np.ones(SIZE, bool)], ["a", "b"])
    with pytest.raises(ValueError, match="the method gives none"):
        proposal_panel(_episode(), {"sem_seg": _scores(), "aux": {}})
