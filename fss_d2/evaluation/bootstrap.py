"""The pixel counts of episodes, their file, and confidence intervals by resampling.

Percentile bootstrap (Efron, 1979): the N episodes of a run are drawn N times with replacement, the score is
computed again, and the interval holds the middle ``level`` of those scores. It estimates how far the score
would move with other episodes of the same classes, and says nothing about other training seeds.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fss_d2.io.files import json_text, parse_json, write_atomic

from .metrics import check_absent, episode_iou, iou

__all__ = ["EpisodeCounts", "bootstrap_episode_iou", "bootstrap_mean_iou", "interval", "interval_of_mean"]
__all__ += ["read_rows", "resample_weights", "stack_rows", "write_rows"]

_CHUNK_ELEMENTS = 2_000_000  # bounds the memory of one block of resamples (16 MB of weights)


@dataclass(frozen=True)
class EpisodeCounts:
    """One scored episode; None is what was not measured."""

    episode_index: int
    class_id: int
    query: int | str
    supports: tuple[int | str, ...]  # image ids of the K supports, in order
    intersection: tuple[int, int]  # pixels of (background, foreground)
    union: tuple[int, int]
    rom: float | None = None
    rum: float | None = None
    presence: float | None = None  # logit that the query shows the class


def stack_rows(rows: Sequence[EpisodeCounts]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return class ids (N,), intersections (N, 2) and unions (N, 2) of the rows, all int64."""
    class_ids = np.array([row.class_id for row in rows], np.int64)
    intersection = np.array([row.intersection for row in rows], np.int64).reshape(-1, 2)
    union = np.array([row.union for row in rows], np.int64).reshape(-1, 2)
    return class_ids, intersection, union


def write_rows(path: str | Path, rows: Iterable[EpisodeCounts]) -> None:
    """Write rows as JSON lines (``episodes.jsonl``)."""
    lines = (json_text({k: v for k, v in asdict(row).items() if v is not None}) + "\n" for row in rows)
    write_atomic(path, "".join(lines).encode())


def read_rows(path: str | Path) -> list[EpisodeCounts]:
    """Read an ``episodes.jsonl``; a line that holds no counts is a ValueError with file and line."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give the episodes.jsonl of an evaluation")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            rows.append(_parse_row(parse_json(line)))
        except (KeyError, TypeError, ValueError) as error:
            what = f"{path}:{number} is not an episode's counts ({error})"
            raise ValueError(f"{what}; evaluate again to rewrite the file") from error
    return rows


def _parse_row(fields: dict[str, Any]) -> EpisodeCounts:
    background, foreground = fields["intersection"]
    union_background, union_foreground = fields["union"]
    return EpisodeCounts(
        episode_index=int(fields["episode_index"]),
        class_id=int(fields["class_id"]),
        query=fields["query"],
        supports=tuple(fields["supports"]),
        intersection=(int(background), int(foreground)),
        union=(int(union_background), int(union_foreground)),
        rom=fields.get("rom"),
        rum=fields.get("rum"),
        presence=fields.get("presence"),
    )


def bootstrap_mean_iou(
    class_ids: np.ndarray,
    intersection: np.ndarray,
    union: np.ndarray,
    classes: Sequence[int],
    *,
    counting: str = "hsnet",
    absent: str = "zero",
    resamples: int = 1000,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> np.ndarray:
    """mIoU of each resample, (resamples,) float64 fractions; arguments as `metrics.mean_iou`.

    A class that the run draws but a resample misses is left out of that resample's mean; a class that the
    run itself never draws is treated as ``absent`` says. Equal ``seed`` and N give equal resamples. With
    ``groups`` (N,), labels of the episodes, whole groups are drawn: as many as there are.
    """
    check_absent(absent)
    order = np.argsort(class_ids, kind="stable")
    drawn, starts = np.unique(class_ids[order], return_index=True)
    inter, total = intersection[order, 1], union[order, 1]
    never_drawn = len(set(map(int, classes)) - set(map(int, drawn))) if absent == "zero" else 0
    scores = []
    count, member = len(class_ids), slice(None)
    if groups is not None:
        found, member = np.unique(groups, return_inverse=True)
        count = len(found)
    for weights in resample_weights(count, resamples, seed):
        weights = weights[:, member][:, order]  # (r, N), grouped by class
        present = np.add.reduceat(weights, starts, axis=1) > 0  # (r, drawn)
        per_class = iou(
            np.add.reduceat(weights * inter, starts, axis=1),
            np.add.reduceat(weights * total, starts, axis=1),
            counting,
        )
        scores.append((per_class * present).sum(axis=1) / (present.sum(axis=1) + never_drawn))
    return np.concatenate(scores)


def bootstrap_episode_iou(
    intersection: np.ndarray,
    union: np.ndarray,
    *,
    counting: str = "hsnet",
    resamples: int = 1000,
    seed: int = 0,
) -> np.ndarray:
    """Mean episode IoU of each resample, (resamples,); episodes without any foreground are left out."""
    scores = episode_iou(intersection, union, counting)
    scores = scores[~np.isnan(scores)]
    if not len(scores):
        return np.zeros(resamples)
    blocks = resample_weights(len(scores), resamples, seed)
    return np.concatenate([weights @ scores for weights in blocks]) / len(scores)


def interval(scores: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The middle ``level`` of the resampled scores (S,) as (low, high)."""
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def interval_of_mean(parts: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """The limits of the mean of independent scores, the folds of a cross-validation, from their own limits.

    Args:
        parts: (score, low, high) of each; the distances to the limits add up as squares.
    """
    scores, lows, highs = np.array(parts, np.float64).T
    mean, count = scores.mean(), len(scores)
    below, above = (np.sqrt(((limits - scores) ** 2).sum()) / count for limits in (lows, highs))
    return float(mean - below), float(mean + above)


def resample_weights(n: int, resamples: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Yield blocks (r, n) int64, ``resamples`` rows in all: how often each of n episodes is drawn."""
    rng = np.random.default_rng(seed)
    block = max(1, _CHUNK_ELEMENTS // max(n, 1))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        picks = rng.integers(0, n, size=(rows, n)) + n * np.arange(rows)[:, None]
        yield np.bincount(picks.ravel(), minlength=rows * n).reshape(rows, n)
