"""The check over the supports, with a predictor whose answers are known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fss_d2.label.leave_one_out import check_supports, describe
from fss_d2.label.supports import Support
from tests.label.fakes import ColourPredictor, disc, picture


def support(number: int, mask: np.ndarray | None = None) -> Support:
    """A red disc of its own place, annotated by ``mask``, or as it is."""
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
    # Each is left out, then each pair; never is a support labelled by itself.
    assert predictor.encoded == [{"red": 2}] * 3 + [{"red": 1}] * 3
    assert predictor.predicted == 3 + 3 * 2
    assert "red" in describe([check]) and "hurts" not in describe([check])


def test_a_support_that_hurts_is_named() -> None:
    """Its mask shows the grey background, which turns the mean colour of the others' supports away."""
    wrong = support(3, mask=~disc((40, 50), (24, 20), 12))
    (check,) = check_supports(ColourPredictor(), {"red": [*(support(i) for i in range(3)), wrong]})
    assert [s.hurts for s in check.supports] == [False, False, False, True]
    assert check.supports[3].gain_without == pytest.approx(1.0)
    assert check.supports[3].iou == 0.0
    assert "red: s3 hurts: without it the others reach 100.0 instead of 0.0" in describe([check])


def test_supports_of_one_name_are_told_apart() -> None:
    """Files of equal names in several folders; the others of the one that hurts reach 0 with it."""
    wrong = support(3, mask=~disc((40, 50), (24, 20), 12))
    supports = [replace(s, name="same") for s in (*(support(i) for i in range(3)), wrong)]
    text = describe(check_supports(ColourPredictor(), {"red": supports}))
    assert text.count("hurts: without it the others reach 100.0 instead of 0.0") == 1


def test_ignored_pixels_do_not_count() -> None:
    mask = disc((40, 50), (15, 20), 8).astype(np.uint8)
    mask[:15] = 255  # half of the disc, which will be found all the same
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
    assert all(call == {"two": 1} for call in predictor.encoded)


def test_many_supports_are_not_paired() -> None:
    predictor = ColourPredictor()
    (check,) = check_supports(predictor, {"red": [support(i % 5) for i in range(13)]})
    assert len(predictor.encoded) == 13
    assert all(s.gain_without is None for s in check.supports)
