"""Intervals and paired comparisons."""

from collections.abc import Callable

import numpy as np
import pytest

from fss_d2.evaluation.bootstrap import (
    EpisodeCounts,
    bootstrap_episode_iou,
    bootstrap_mean_iou,
    interval,
    interval_of_mean,
    stack_rows,
)
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


def test_the_interval_of_a_mean_of_folds() -> None:
    """Distances 3 and 4 below, 1 and 0 above, of two scores: 5 / 2 and 1 / 2."""
    assert interval_of_mean([(10, 7, 11), (20, 16, 20)]) == (12.5, 15.5)
    assert interval_of_mean([(10, 7, 11)]) == (7, 11)


def test_groups_are_drawn_whole(make_rows: Rows) -> None:
    """Where every group has one episode nothing changes; one group of all gives the score itself."""
    counts = stack_rows(make_rows(12))
    alone = bootstrap_mean_iou(*counts, CLASSES, groups=np.arange(12))
    assert (alone == bootstrap_mean_iou(*counts, CLASSES)).all()
    together = bootstrap_mean_iou(*counts, CLASSES, groups=np.zeros(12, int))
    np.testing.assert_allclose(together, mean_iou(*counts, CLASSES))
    pairs = bootstrap_mean_iou(*counts, CLASSES, groups=np.arange(12) // 2, resamples=3, seed=5)
    picks = np.random.default_rng(5).integers(0, 6, (3, 6))
    rows = [np.concatenate([[2 * g, 2 * g + 1] for g in pick]) for pick in picks]
    expected = [mean_iou(*(c[row] for c in counts), CLASSES, absent="skip") for row in rows]
    np.testing.assert_allclose(pairs, expected, rtol=1e-12)
