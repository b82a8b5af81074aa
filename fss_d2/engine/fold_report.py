"""Scores of several methods, folds and seeds: means, deviations, paired differences, and their tables."""

import json
import statistics
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tabulate import tabulate

from fss_d2.evaluation.bootstrap import Comparison, compare
from fss_d2.evaluation.rows import read_rows

from .cross_validation import Run, without_fold

__all__ = ["DIFFERENCE", "METRICS", "collect_scores", "markdown", "summarize"]

METRICS = ("mIoU", "FB_IoU")
DIFFERENCE = "difference"  # of the mIoU to the first method's on the same episodes, in points
_LEGEND = (
    "[ ]: 95 % bootstrap interval over the episodes of one run. ±: standard deviation over seeds,\n"
    "or over folds where there is one seed. Δ: mIoU less that of {first} on the same episodes, in points."
)


def collect_scores(runs: Iterable[Run], first: str) -> list[dict[str, Any]]:
    """One row per run, test set and number of shots.

    A row has METRICS, "mIoU_low" and "mIoU_high" where the evaluation has them, and for another method than
    ``first`` DIFFERENCE with "_low" and "_high", if ``first`` has answered the same question.

    Args:
        runs: finished and scored, in the order of the plan.
        first: the method that the others are compared with.

    Raises:
        ValueError: two methods were not evaluated on the same manifest.
        FileNotFoundError: an evaluation lacks its files.
    """
    rows: list[dict[str, Any]] = []
    references: dict[tuple[Any, ...], Path] = {}
    for run in runs:
        for folder, scores in run.scores().items():
            name, _, shots = folder.name.rpartition("_")
            row = {
                "method": run.method,
                "fold": run.fold,
                "seed": run.seed,
                "test_set": without_fold(name),
                "shots": int(shots.removesuffix("shot")),
            }
            wanted = (*METRICS, "mIoU_low", "mIoU_high")
            row |= {metric: scores[metric] for metric in wanted if metric in scores}
            question = (run.fold, run.seed, folder.name)
            if run.method == first:
                references[question] = folder
            elif question in references:
                paired = _compare(folder, references[question])
                row[DIFFERENCE] = paired.difference
                row |= {f"{DIFFERENCE}_low": paired.low, f"{DIFFERENCE}_high": paired.high}
            rows.append(row)
    return rows


@cache  # the report is written after each run
def _compare(folder: Path, reference: Path) -> Comparison:
    manifests = [each / "manifest.jsonl" for each in (folder, reference)]
    if manifests[0].read_bytes() != manifests[1].read_bytes():
        raise ValueError(
            f"{manifests[0]} and {manifests[1]} hold different episodes, no table can compare them; "
            "remove the older run and start again"
        )
    recorded = json.loads((reference / "results.json").read_text())
    return compare(
        read_rows(folder / "episodes.jsonl"),
        read_rows(reference / "episodes.jsonl"),
        classes=[entry["class_id"] for entry in recorded["per_class"]],
        counting=recorded["settings"]["counting"],
        absent=recorded["settings"]["absent_classes"],
    )


def summarize(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per method, test set, shots and metric: each fold's mean over the seeds, their mean, the deviations.

    "deviation_seeds" is the sample standard deviation, over the seeds that have all folds, of the mean over
    the folds; "deviation_folds" that of the folds' means. Both are None for fewer than two values. "interval"
    is (low, high) of the only row, None where there are several or it has none.
    """
    summary = []
    for method, test_set, shots in dict.fromkeys((r["method"], r["test_set"], r["shots"]) for r in rows):
        group = [r for r in rows if (r["method"], r["test_set"], r["shots"]) == (method, test_set, shots)]
        for metric in (*METRICS, DIFFERENCE):
            scored = [row for row in group if metric in row]
            if scored:
                named = {"method": method, "test_set": test_set, "shots": shots, "metric": metric}
                summary.append(named | _statistics(scored, metric))
    return summary


def _statistics(rows: Sequence[dict[str, Any]], metric: str) -> dict[str, Any]:
    folds = {fold: statistics.fmean(values) for fold, values in _grouped(rows, "fold", metric).items()}
    seeds = [
        statistics.fmean(values)
        for values in _grouped(rows, "seed", metric).values()
        if len(values) == len(folds)
    ]
    low, high = (rows[0].get(f"{metric}_{bound}") for bound in ("low", "high"))
    return {
        "runs": len(rows),
        "folds": folds,
        "mean": statistics.fmean(folds.values()),
        "deviation_seeds": _deviation(seeds),
        "deviation_folds": _deviation(list(folds.values())),
        "interval": None if len(rows) > 1 or low is None else (low, high),
    }


def _grouped(rows: Iterable[dict[str, Any]], key: str, metric: str) -> dict[int, list[float]]:
    groups: dict[int, list[float]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row[metric])
    return dict(sorted(groups.items()))


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def markdown(summary: Sequence[dict[str, Any]], first: str, planned: int, done: int) -> str:
    """The report: a table per test set with a row per method; with several runs also the folds, by metric."""
    parts = [f"{done} of {planned} runs.\n"]
    for test_set in dict.fromkeys(entry["test_set"] for entry in summary):
        entries = [entry for entry in summary if entry["test_set"] == test_set]
        parts.append(f"## {test_set} (%)\n\n{_overview(entries)}\n")
    parts.append(_LEGEND.format(first=first) + "\n")
    for metric in METRICS if any(entry["runs"] > 1 for entry in summary) else ():
        parts.append(f"## {metric} (%)\n\n{_by_fold([e for e in summary if e['metric'] == metric])}\n")
    return "\n".join(parts)


def _overview(entries: Sequence[dict[str, Any]]) -> str:
    cells = {(e["method"], e["shots"], e["metric"]): _cell(e) for e in entries}
    columns = [
        (shots, metric)
        for shots in sorted({e["shots"] for e in entries})
        for metric in (*METRICS, DIFFERENCE)
        if any(e["shots"] == shots and e["metric"] == metric for e in entries)
    ]
    lines = [
        [method, *(cells.get((method, *column), "-") for column in columns)]
        for method in dict.fromkeys(e["method"] for e in entries)
    ]
    headers = [f"{shots}-shot {'Δ' if metric == DIFFERENCE else metric}" for shots, metric in columns]
    return tabulate(lines, headers=["method", *headers], tablefmt="pipe", disable_numparse=True)


def _cell(entry: dict[str, Any]) -> str:
    sign = "+" if entry["metric"] == DIFFERENCE else ""
    text = f"{entry['mean']:{sign}.2f}"
    if entry["interval"] is not None:
        return text + " [{:{sign}.2f}, {:{sign}.2f}]".format(*entry["interval"], sign=sign)
    deviations = [entry[key] for key in ("deviation_seeds", "deviation_folds") if entry[key] is not None]
    return f"{text} ± {deviations[0]:.2f}" if deviations else text


def _by_fold(entries: Sequence[dict[str, Any]]) -> str:
    folds = sorted({fold for entry in entries for fold in entry["folds"]})
    headers = ["method", "test set", "shots", *(f"fold {fold}" for fold in folds)]
    headers += ["mean", "± seeds", "± folds"]
    lines = [
        [
            *(entry[key] for key in ("method", "test_set", "shots")),
            *(_number(entry["folds"].get(fold)) for fold in folds),
            *(_number(entry[key]) for key in ("mean", "deviation_seeds", "deviation_folds")),
        ]
        for entry in entries
    ]
    return tabulate(lines, headers=headers, tablefmt="pipe", disable_numparse=True)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
