"""How a model behaves on queries that do not show the object, and how good its presence is.

All numbers come from two runs of the same episodes (`EpisodeCounts`): one with their own queries, and one in
which each episode has a query that does not show its class. docs/PROTOCOL.md has the formulas.
"""

from collections.abc import Sequence

import numpy as np
from tabulate import tabulate

from .bootstrap import EpisodeCounts, interval, resample_weights, stack_rows

__all__ = ["LEAST_SHARE", "area_under_curve", "calibration_error", "format_reliability"]
__all__ += ["presence_scores", "reliability"]

LEAST_SHARE = 0.01  # of the pixels of a picture: a mask counts where it covers more
_BINS = 10


def presence_scores(
    own: Sequence[EpisodeCounts], absent: Sequence[EpisodeCounts], *, resamples: int = 1000
) -> dict[str, float]:
    """Scores of the behaviour without the object.

    Args:
        own: rows of the episodes with their own queries; those with neither object nor mask are left out.
        absent: rows of episodes of the same run with queries that do not show the class.
        resamples: of the episodes, for intervals; 0 computes none.

    Returns:
        In percent "lost", "absent_masked" and "absent_area"; where all rows hold a presence, also "missed",
        "false_alarms", "presence_AUC" and "presence_ECE". "_low" and "_high" are the limits of 95 %
        intervals; "absent_queries" is the number of rows. Empty without rows.
    """
    own = [row for row in own if row.union[1] > 0]
    if not own or not absent:
        return {}
    (_, hits, _), (_, inside, union) = stack_rows(own), stack_rows(absent)
    area = union[:, 1] / (union[:, 0] + inside[:, 1])  # shares of the pixels that count
    means = {"lost": (hits[:, 1] == 0, 0), "absent_masked": (area > LEAST_SHARE, 1), "absent_area": (area, 1)}
    presence, shown = presences(own, absent)
    if len(presence):
        there = presence > 0.5
        means |= {"missed": (~there[shown], 0), "false_alarms": (there[~shown], 1)}

    def scores(*weights: np.ndarray) -> dict[str, float]:
        """From weights of the rows of either run."""
        found = {
            name: 100 * float(np.average(values, weights=weights[run]))
            for name, (values, run) in means.items()
            if weights[run].any()
        }
        if len(presence) and all(part.any() for part in weights):
            joined = np.concatenate(weights)
            found["presence_AUC"] = 100 * area_under_curve(presence, shown, joined)
            found["presence_ECE"] = 100 * calibration_error(presence, shown, joined)
        return found

    numbers = sorted({row.episode_index for row in (*own, *absent)})
    places = [np.searchsorted(numbers, [row.episode_index for row in rows]) for rows in (own, absent)]
    result = scores(np.ones(len(own)), np.ones(len(absent)))
    if resamples:
        blocks = resample_weights(len(numbers), resamples)
        drawn = [scores(*(weights[place] for place in places)) for block in blocks for weights in block]
        for name in list(result):
            values = np.array([each[name] for each in drawn if name in each])
            result[f"{name}_low"], result[f"{name}_high"] = interval(values)
    return {**result, "absent_queries": len(absent)}


def presences(own: Sequence[EpisodeCounts], absent: Sequence[EpisodeCounts]) -> tuple[np.ndarray, np.ndarray]:
    """The probabilities (N,) of presence, and whether the object is there (N,); empty if a row has none."""
    logits = [row.presence for row in (*own, *absent)]
    if any(logit is None for logit in logits):
        return np.zeros(0), np.zeros(0, bool)
    return 1 / (1 + np.exp(-np.array(logits))), np.arange(len(logits)) < len(own)


def area_under_curve(scores: np.ndarray, shown: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Area under the ROC curve: how often a picture with the object has the higher score; ties count half.

    Args:
        scores: (N,) of any scale.
        shown: (N,) bool, both values at least once.
        weights: (N,) of the pictures; None are ones.
    """
    weights = np.ones(len(scores)) if weights is None else weights
    _, place = np.unique(scores, return_inverse=True)
    with_object, without = (np.bincount(place, weights * part) for part in (shown, ~shown))
    below = np.cumsum(without) - without / 2
    return float((with_object * below).sum() / (with_object.sum() * without.sum()))


def reliability(probability: np.ndarray, shown: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """The reliability diagram: (10, 3) of weight, mean probability and share with the object, bin by bin.

    The bins have the width 0.1; an empty one is (0, NaN, NaN). Arguments as `area_under_curve`.
    """
    weights = np.ones(len(probability)) if weights is None else weights
    places = np.minimum((probability * _BINS).astype(int), _BINS - 1)
    total = np.bincount(places, weights, _BINS)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(places, weights * values, _BINS) / total for values in (probability, shown)]
    return np.column_stack([total, *means])


def calibration_error(probability: np.ndarray, shown: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Expected calibration error: mean distance of probability and share in `reliability`, by weight."""
    total, mean, share = reliability(probability, shown, weights).T
    return float(np.nansum(total * np.abs(mean - share)) / total.sum())


def format_reliability(bins: np.ndarray) -> str:
    """Markdown of a `reliability` diagram."""
    lines = [
        [f"{i / _BINS:.1f} to {(i + 1) / _BINS:.1f}", f"{total:.0f}", f"{mean:.2f}", f"{share:.2f}"]
        for i, (total, mean, share) in enumerate(bins)
    ]
    headers = ["probability", "pictures", "mean", "share with the object"]
    return tabulate(lines, headers=headers, tablefmt="pipe", disable_numparse=True)
