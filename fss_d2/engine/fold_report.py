"""Scores of several folds and seeds: their means, their deviations, and the tables that show them."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from tabulate import tabulate

__all__ = ["METRICS", "markdown", "summarize"]

METRICS = ("mIoU", "FB_IoU")


def summarize(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per method, test set, shots and metric: each fold's mean over the seeds, their mean, the deviations.

    "deviation_seeds" is the sample standard deviation, over the seeds that have all folds, of the mean over
    the folds; "deviation_folds" that of the folds' means. Both are None for fewer than two values.
    """
    summary = []
    for method, test_set, shots in dict.fromkeys((r["method"], r["test_set"], r["shots"]) for r in rows):
        group = [r for r in rows if (r["method"], r["test_set"], r["shots"]) == (method, test_set, shots)]
        for metric in METRICS:
            by_fold = _grouped(group, "fold", metric)
            folds = {fold: statistics.fmean(values) for fold, values in by_fold.items()}
            seeds = [
                statistics.fmean(values)
                for values in _grouped(group, "seed", metric).values()
                if len(values) == len(folds)
            ]
            summary.append(
                {
                    "method": method,
                    "test_set": test_set,
                    "shots": shots,
                    "metric": metric,
                    "folds": folds,
                    "mean": statistics.fmean(folds.values()),
                    "deviation_seeds": _deviation(seeds),
                    "deviation_folds": _deviation(list(folds.values())),
                }
            )
    return summary


def _grouped(rows: Iterable[dict[str, Any]], key: str, metric: str) -> dict[int, list[float]]:
    groups: dict[int, list[float]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row[metric])
    return dict(sorted(groups.items()))


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def markdown(summary: Sequence[dict[str, Any]], planned: int, done: int) -> str:
    """The report: one table per metric, a row per method, test set and number of shots."""
    parts = [f"{done} of {planned} runs.\n"]
    folds = sorted({fold for entry in summary for fold in entry["folds"]})
    headers = ["method", "test set", "shots", *(f"fold {fold}" for fold in folds)]
    headers += ["mean", "± seeds", "± folds"]
    for metric in METRICS:
        lines = [
            [
                *(entry[key] for key in ("method", "test_set", "shots")),
                *(_number(entry["folds"].get(fold)) for fold in folds),
                *(_number(entry[key]) for key in ("mean", "deviation_seeds", "deviation_folds")),
            ]
            for entry in summary
            if entry["metric"] == metric
        ]
        table = tabulate(lines, headers=headers, tablefmt="pipe", disable_numparse=True)
        parts.append(f"## {metric} (%)\n\n{table}\n")
    return "\n".join(parts)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
