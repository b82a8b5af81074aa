"""ROM and RUM on pictures small enough to count by hand."""

import numpy as np
import pytest

from fss_d2.evaluation.metrics import match_table, region_wise_measures


def _line(text: str) -> np.ndarray:
    """A mask of one line: '#' foreground, '.' background, '?' ignored."""
    return np.array([[{"#": 1, ".": 0, "?": 255}[c] for c in text]], np.uint8)


@pytest.mark.parametrize(
    ("pred", "target", "rom", "rum"),
    [
        ("####", "####", 0, 0),  # one to one
        ("#.#.", "####", np.tanh(1 * 1 * 2 / (1 * 2)), 0),  # one true region in two parts
        ("#.#.#", "#####", np.tanh(2 * 1 * 3 / (1 * 3)), 0),  # in three parts: penalty 2
        ("####", "#..#", 0, np.tanh(1 * 2 * 1 / (2 * 1))),  # two true regions in one
        ("#.#..#", "###...", np.tanh(1 * 1 * 2 / (1 * 3)), 0),  # a false region dilutes
        ("#.###.", "###.#.", np.tanh(1 * 1 * 2 / (2 * 2)), np.tanh(1 * 2 * 1 / (2 * 2))),  # both at once
        ("##..", "..##", 0, 0),  # disjoint
        ("....", "####", 0, 0),
        ("####", "....", 0, 0),
    ],
)
def test_measures_by_hand(pred: str, target: str, rom: float, rum: float) -> None:
    assert region_wise_measures(_line(pred), _line(target)) == pytest.approx((rom, rum))


def test_swapping_prediction_and_truth_swaps_the_measures() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 12, 12)) > 0.6
    assert region_wise_measures(a, b) == region_wise_measures(b, a)[::-1]


def test_touching_corners_are_one_region() -> None:
    corner = np.eye(3, dtype=np.uint8)
    assert match_table(corner, corner).tolist() == [[True]]


def test_ignored_pixels_belong_to_no_region() -> None:
    assert match_table(_line("###"), _line("?#?")).tolist() == [[True]]
    assert match_table(_line("#.#"), _line("?##")).tolist() == [[True]]
    assert match_table(_line("###"), _line("???")).size == 0
