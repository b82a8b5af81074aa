"""The check of the supports, with a predictor whose answers are known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fss_d2.label.check import check_supports, describe
from fss_d2.label.supports import Support
from tests.label.fakes import ColourPredictor, Ranks, disc, picture


def support(number: int, mask: np.ndarray | None = None) -> Support:
    """A red disc at a place of its own, annotated by ``mask``, or as it is."""
    region = disc((40, 50), (15 + 3 * number, 20), 8)
    drawn = region if mask is None else mask
    image = picture({"red": region}, seed=number)
    return Support(f"s{number}", (Path("unused"),), image, drawn.astype(np.uint8))


def test_good_supports_promise_a_good_result() -> None:
    predictor = ColourPredictor()
    (check,) = check_supports(predictor, {"red": [support(i) for i in range(3)]})
    assert check.expected_iou == 1.0
    assert [s.gain_without for s in check.supports] == [0.0, 0.0, 0.0]
    assert not any(s.hurts for s in check.supports)
    # Each is left out, then each pair.
    assert predictor.left_out == [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)]
    assert predictor.encoded == []  # the supports of the job stay
    assert "red" in describe([check]) and "hurts" not in describe([check])


@pytest.mark.parametrize("count", [2, 5, 12, 100])
def test_each_support_passes_the_backbone_once(count: int) -> None:
    predictor = ColourPredictor()
    check_supports(predictor, {"red": [support(i % 5) for i in range(count)]})
    assert predictor.passes == count


def test_a_support_that_hurts_is_named() -> None:
    """Its mask shows the grey background, which turns the mean colour of the others' supports away."""
    wrong = support(3, mask=~disc((40, 50), (24, 20), 12))
    (check,) = check_supports(ColourPredictor(), {"red": [*(support(i) for i in range(3)), wrong]})
    assert [s.hurts for s in check.supports] == [False, False, False, True]
    assert check.supports[3].gain_without == pytest.approx(1.0)
    assert check.supports[3].iou == 0.0
    assert "red: s3 hurts: without it the others reach 100.0 instead of 0.0" in describe([check])


def test_supports_with_one_name_are_kept_apart() -> None:
    """Files of equal names in several folders; the others of the one that hurts reach 0 with it."""
    wrong = support(3, mask=~disc((40, 50), (24, 20), 12))
    supports = [replace(s, name="same") for s in (*(support(i) for i in range(3)), wrong)]
    text = describe(check_supports(ColourPredictor(), {"red": supports}))
    assert text.count("hurts: without it the others reach 100.0 instead of 0.0") == 1


def test_ignored_pixels_do_not_count() -> None:
    mask = disc((40, 50), (15, 20), 8).astype(np.uint8)
    mask[:15] = 255  # half of the disc, which is found all the same
    (check,) = check_supports(ColourPredictor(), {"red": [support(0, mask), support(1)]})
    assert check.supports[0].iou == 1.0


def test_two_supports_can_be_scored_but_not_compared() -> None:
    (check,) = check_supports(ColourPredictor(), {"red": [support(0), support(1)]})
    assert check.expected_iou == 1.0
    assert [s.gain_without for s in check.supports] == [None, None]


def test_one_support_cannot_be_checked() -> None:
    predictor = ColourPredictor()
    first, second = check_supports(predictor, {"one": [support(0)], "two": [support(1), support(2)]})
    assert first.expected_iou is None and second.expected_iou == 1.0
    assert "cannot be checked: add a second support" in describe([first, second])
    assert predictor.left_out == [(0,), (1,)]


def test_many_supports_are_not_paired() -> None:
    predictor = ColourPredictor()
    (check,) = check_supports(predictor, {"red": [support(i % 5) for i in range(13)]})
    assert predictor.left_out == [(i,) for i in range(13)]
    assert all(s.gain_without is None for s in check.supports)
    assert "red: which support hurts is checked for up to 12 supports only" in describe([check])


def test_of_very_many_supports_some_are_checked_spread_evenly() -> None:
    predictor = ColourPredictor()
    supports = [replace(support(i % 5), name=f"s{i}") for i in range(100)]
    (check,) = check_supports(predictor, {"red": supports})
    assert len(predictor.left_out) == len(check.supports) == 24 and check.total == 100
    steps = np.diff([0, *(int(s.name[1:]) for s in check.supports), 99])
    assert steps[0] == steps[-1] == 0 and set(steps[1:-1]) == {4, 5}
    assert "red: 24 of its 100 supports were checked, spread evenly over all" in describe([check])


def test_processes_share_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three ranks, classes with many groups and few; together they find what one finds."""
    wrong = support(3, mask=~disc((40, 50), (24, 20), 12))
    supports = {"red": [*(support(i) for i in range(3)), wrong], "two": [support(1), support(2)]}
    alone = ColourPredictor()
    expected = check_supports(alone, supports)
    predictors = [ColourPredictor() for _ in range(3)]
    found = Ranks(3).run(monkeypatch, lambda rank: check_supports(predictors[rank], supports))
    assert found == [expected, [], []]
    assert sorted(out for p in predictors for out in p.left_out) == sorted(alone.left_out)
    assert [len(p.left_out) for p in predictors] == [4, 4, 4]  # of 4 + 6 + 2 groups
