"""The score of a review list, by hand."""

import numpy as np
import pytest

from fss_d2.evaluation.review import score_review

TRUE = [0.1, 0.9, 0.5, 0.8, 0.2, 0.7, 0.95, 0.65, 0.9, 0.85]  # three bad ones
EXPECTED = [0.3, 0.5, 0.7, 0.9, 0.2, 0.8, 0.9, 0.9, 0.9, 0.9]


def test_a_list_by_hand() -> None:
    score = score_review(EXPECTED, TRUE, 0.65)
    assert (score.images, score.bad, score.listed) == (10, 0.3, 0.3)
    assert score.recall == pytest.approx(2 / 3)  # 0.1 and 0.2, not 0.5
    assert score.precision == pytest.approx(2 / 3)
    assert score.recall_at == pytest.approx(2 / 3) and score.best_at == 1.0  # three places
    assert score.auc == pytest.approx((7 + 7 + 6) / 21)
    assert score.calibration == pytest.approx(0.7 - 0.655)


def test_a_short_list_cannot_hold_them_all() -> None:
    score = score_review([0.1, 0.2, 0.3, 0.9], [0.1, 0.2, 0.3, 0.9], 0.65, share=0.5)
    assert score.recall_at == score.best_at == pytest.approx(2 / 3)
    assert score.recall == score.precision == 1.0


def test_what_cannot_be_counted_is_nan() -> None:
    good = score_review([0.7, 0.8], [0.9, 0.9], 0.65)
    assert np.isnan([good.recall, good.precision, good.recall_at, good.best_at, good.auc]).all()
    ties = score_review([0.7, 0.7], [0.1, 0.9], 0.65)
    assert ties.auc == 0.5 and ties.listed == 0
