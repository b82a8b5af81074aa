"""The check of the supports, with a predictor whose answers are known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fss_d2.inference.quality import class_shift
from fss_d2.label.check import ClassCheck, SupportCheck, check_steps, check_supports, describe, left_out
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


def test_a_number_of_supports_can_be_chosen() -> None:
    predictor, supports = ColourPredictor(), {"red": [support(i) for i in range(5)]}
    (check,) = check_supports(predictor, supports, 2)
    assert predictor.left_out == [(0,), (4,)] and len(check.supports) == 2 and check.total == 5
    assert all(s.gain_without is None for s in check.supports)
    assert check_supports(predictor, supports, 0)[0].supports == ()
    assert left_out(1, 24) == left_out(5, 0) == []
    assert left_out(3, 24, harm=False) == [(0,), (1,), (2,)]


@pytest.mark.parametrize("count", [2, 3, 5, 6, 9, 12, 13, 30])
def test_the_cost_grows_with_the_number_of_supports(count: int) -> None:
    """A support is encoded once, and its mask predicted once alone and with at most four others."""
    groups = left_out(count, 24)
    assert len(set(groups)) == len(groups)
    predicted = [i for out in groups for i in out]
    assert max(predicted.count(i) for i in range(count)) <= 5
    pairs = [out for out in groups if len(out) == 2]
    if 3 <= count <= 5:
        assert len(pairs) == count * (count - 1) / 2  # all of them
    elif 5 < count <= 12:
        assert {sum(i in out for out in pairs) for i in range(count)} == {4}
    steps = check_steps({"red": [support(i % 5) for i in range(count)]})
    assert steps == count + len(predicted) <= 6 * count


def test_what_was_expected_of_the_supports_shifts_the_class() -> None:
    """Masks that are wrong though the network is sure: the estimates of the class fall."""
    mask = ~disc((40, 50), (15, 20), 20)  # the grey ground is annotated, the red disc is found
    good = [support(i) for i in range(3)]
    bad = [replace(support(i, mask if i == 0 else None), name=f"s{i}") for i in range(3)]
    (right,), (wrong,) = (check_supports(ColourPredictor(), {"red": many}) for many in (good, bad))
    for check in (right, wrong):
        pairs = [(s.expected_iou, s.iou) for s in check.supports]
        assert check.shift == class_shift(pairs, ColourPredictor().quality.spread)
    assert wrong.shift < 0 < right.shift
    assert "lowers what is expected of all its masks: 0.50 becomes 0." in describe([wrong])
    assert "raises what is expected of all its masks: 0.50 becomes 0." in describe([right])


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


def test_a_support_that_the_others_do_not_find_is_named() -> None:
    supports = [SupportCheck(name, iou, 0.0, 0.8) for name, iou in (("a.jpg", 0.9), ("x.jpg", 0.05))]
    text = describe([ClassCheck("cup", tuple(supports), 2)])
    assert "cup: x.jpg: the others do not find what its mask shows; look at it" in text
    assert text.endswith("cup: none of its supports makes the others worse")
