"""How well a list of masks to review holds the bad ones; pure functions of expected and true IoUs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["ReviewScore", "score_review"]

_BAD = 0.6  # true IoU below which a mask is bad


@dataclass(frozen=True)
class ReviewScore:
    """The list of one job; shares are from 0 to 1, and NaN where nothing can be counted.

    Attributes:
        images: number of images.
        bad: share of them whose true IoU is below 0.6.
        listed: share of them in the list.
        recall: share of the bad ones in the list.
        precision: share of the list that is bad.
        recall_at: recall if the list held a given share of the images, those of lowest expected IoU.
        best_at: the recall of that list if the true IoUs were known.
        auc: probability that a bad image has a lower expected IoU than a good one.
        calibration: mean expected minus mean true IoU.
    """

    images: int
    bad: float
    listed: float
    recall: float
    precision: float
    recall_at: float
    best_at: float
    auc: float
    calibration: float


def score_review(
    expected: Sequence[float],
    true: Sequence[float],
    listed_below: float,
    *,
    share: float = 0.35,
) -> ReviewScore:
    """Score the list of images whose expected IoU is below a limit; bad ones have a true IoU below 0.6.

    ``share`` is that of `ReviewScore.recall_at`, rounded down to whole images.
    """
    guess, truth = np.asarray(expected, np.float64), np.asarray(true, np.float64)
    bad, listed = truth < _BAD, guess < listed_below
    room, count = int(share * len(truth)), int(bad.sum())
    first = np.argsort(guess, kind="stable")[:room]
    return ReviewScore(
        images=len(truth),
        bad=float(bad.mean()),
        listed=float(listed.mean()),
        recall=_share(np.count_nonzero(bad & listed), count),
        precision=_share(np.count_nonzero(bad & listed), np.count_nonzero(listed)),
        recall_at=_share(np.count_nonzero(bad[first]), count),
        best_at=_share(min(room, count), count),
        auc=_auc(guess, bad),
        calibration=float(guess.mean() - truth.mean()),
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _auc(guess: np.ndarray, bad: np.ndarray) -> float:
    """Ties count half."""
    lower = guess[bad][:, None] - guess[~bad][None]
    return float(((lower < 0) + 0.5 * (lower == 0)).mean()) if lower.size else float("nan")
