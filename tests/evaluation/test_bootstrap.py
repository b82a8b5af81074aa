"""Intervals and paired comparisons."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from fss_d2.evaluation.bootstrap import (
    EpisodeCounts,
    bootstrap_episode_iou,
    bootstrap_mean_iou,
    interval,
    stack_rows,
)
from fss_d2.evaluation.comparison import compare
from fss_d2.evaluation.metrics import episode_iou, mean_iou

CLASSES = range(4)
Rows = Callable[..., list[EpisodeCounts]]


def test_resamples_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two resamples of three episodes with known weights, one of which loses a class."""
    weights = np.array([[1, 1, 1], [3, 0, 0]])
    monkeypatch.setattr("fss_d2.evaluation.bootstrap.resample_weights", lambda *_: iter([weights]))
    class_ids = np.array([1, 0, 1])
    inter, union = np.array([[0, 1], [0, 3], [0, 2]]), np.array([[0, 2], [0, 4], [0, 8]])
    scores = bootstrap_mean_iou(class_ids, inter, union, [0, 1, 2], absent="skip")
    assert scores.tolist() == [(3 / 4 + 3 / 10) / 2, 3 / 6]  # class 0 is not in the second
    scores = bootstrap_mean_iou(class_ids, inter, union, [0, 1, 2], absent="zero")
    assert scores.tolist() == [(3 / 4 + 3 / 10) / 3, 3 / 6 / 2]  # class 2 is never drawn at all
    scores = bootstrap_episode_iou(inter, union)
    assert scores.tolist() == [(1 / 2 + 3 / 4 + 1 / 4) / 3, 1 / 2]


def test_agrees_with_the_metric_on_written_out_resamples(make_rows: Rows) -> None:
    counts = stack_rows(make_rows(30))
    scores = bootstrap_mean_iou(*counts, CLASSES, absent="skip", resamples=5, seed=3)
    picks = np.random.default_rng(3).integers(0, 30, (5, 30))
    expected = [mean_iou(*(c[p] for c in counts), CLASSES, absent="skip") for p in picks]
    np.testing.assert_allclose(scores, expected, rtol=1e-12)


def test_blocks_do_not_change_the_resamples(make_rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = stack_rows(make_rows(20))
    whole = bootstrap_mean_iou(*counts, CLASSES, resamples=50)
    monkeypatch.setattr("fss_d2.evaluation.bootstrap._CHUNK_ELEMENTS", 60)
    assert (bootstrap_mean_iou(*counts, CLASSES, resamples=50) == whole).all()


def test_interval_holds_the_score_and_shrinks_with_more_episodes(make_rows: Rows) -> None:
    widths = []
    for n in (40, 640):
        class_ids, inter, union = stack_rows(make_rows(n))
        low, high = interval(bootstrap_mean_iou(class_ids, inter, union, CLASSES))
        assert low < mean_iou(class_ids, inter, union, CLASSES) < high
        low_alone, high_alone = interval(bootstrap_episode_iou(inter, union))
        assert low_alone < episode_iou(inter, union).mean() < high_alone
        widths.append((high - low, high_alone - low_alone))
    few, many = np.array(widths)
    assert (few > 2.5 * many).all() and (few < 6 * many).all()  # sqrt(640 / 40) = 4


def test_interval_is_the_quantile_range() -> None:
    assert interval(np.arange(101.0), level=0.9) == pytest.approx((5, 95))


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Episode IoU of known mean 0.5: about 95 of 100 intervals must hold it."""
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(100):
        inter = rng.integers(0, 101, (60, 1)).repeat(2, axis=1)
        low, high = interval(bootstrap_episode_iou(inter, np.full((60, 2), 100), resamples=300, seed=trial))
        hits += low <= 0.5 <= high
    assert 88 <= hits <= 100


def test_compare_with_itself_is_zero(make_rows: Rows) -> None:
    rows = make_rows(25)
    result = compare(rows, rows[::-1])
    assert (result.difference, result.low, result.high, result.better) == (0, 0, 0, 0)
    assert result.mean_iou_a == result.mean_iou_b > 0
    assert result.episodes == 25


def test_pairing_finds_what_single_intervals_hide(make_rows: Rows) -> None:
    better, worse = make_rows(60, gain=5), make_rows(60)
    result = compare(better, worse)
    assert result.difference == pytest.approx(result.mean_iou_a - result.mean_iou_b)
    assert 0 < result.low < result.difference < result.high
    assert result.better == 1.0
    opposite = compare(worse, better)
    assert opposite.difference == -result.difference
    assert (opposite.low, opposite.high) == pytest.approx((-result.high, -result.low))
    alone = 100 * bootstrap_mean_iou(*stack_rows(worse), CLASSES)
    low, high = interval(alone)
    assert high - low > 3 * (result.high - result.low)


def test_compare_of_supports(make_rows: Rows) -> None:
    """Other supports are other episodes, unless they are what is compared."""
    rows = make_rows(5)
    others = [replace(row, supports=("t",)) for row in rows]
    with pytest.raises(ValueError, match="episode 0 differs between the two"):
        compare(rows, others)
    assert compare(rows, others, same_supports=False) == compare(rows, rows)
    others[2] = replace(others[2], class_id=9)
    with pytest.raises(ValueError, match=r"episode 2 differs .* against class 9"):
        compare(rows, others, same_supports=False)


def test_compare_refuses_other_episodes(make_rows: Rows) -> None:
    rows = make_rows(5)
    with pytest.raises(ValueError, match="no episodes to compare"):
        compare([], [])
    with pytest.raises(ValueError, match="cannot compare 5 with 4 episodes"):
        compare(rows, rows[:4])
    other = [*rows[:3], replace(rows[3], query="elsewhere"), rows[4]]
    with pytest.raises(ValueError, match=r"episode 3 differs .* query elsewhere"):
        compare(rows, other)
