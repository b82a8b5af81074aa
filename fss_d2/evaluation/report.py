"""The scores of a run, and of the runs of a cross-validation: in percent, as tables, as ``results.json``."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from fss_d2.io.files import write_json

from .bootstrap import EpisodeCounts, bootstrap_episode_iou, bootstrap_mean_iou, interval, stack_rows
from .metrics import class_iou, class_sums, episode_iou, fb_iou, mean_iou

__all__ = ["CLASS_PREFIX", "DIFFERENCE", "FOLD_METRICS", "TASK", "format_class_table", "format_folds"]
__all__ += ["format_score", "format_table", "score_classes", "summarise", "summarise_folds", "write_results"]

TASK = "few_shot_seg"  # the key of an evaluator's scores, like "sem_seg" in Detectron2
CLASS_PREFIX = "IoU/"
# Of a cross-validation: the first two always, the others where an evaluator gives them (docs/PROTOCOL.md).
FOLD_METRICS = (
    *("mIoU", "FB_IoU", "mIoU_foreign", "absent_masked", "lost", "false_alarms", "missed", "presence_AUC"),
    *("oracle", "ROM", "RUM"),
)
DIFFERENCE = "difference"  # mIoU minus the mIoU of the first method on the same episodes, in points
_COLUMNS = ("mIoU", "FB_IoU", "episode_IoU", "ROM", "RUM", "AR@10", "AR@50", "AR@100", "recall50@100")
_MAIN_COLUMNS = {"mIoU", "AR@100"}  # every evaluation has one of them
_LEGEND = (
    "[ ]: 95 % bootstrap interval over the episodes of one run. ±: standard deviation over seeds, or over\n"
    "folds if there is one seed. Δ: mIoU minus that of {first} on the same episodes, in points."
)


def summarise(
    rows: Sequence[EpisodeCounts],
    classes: Sequence[int],
    *,
    counting: str = "hsnet",
    absent: str = "zero",
    resamples: int = 1000,
) -> dict[str, float]:
    """Scores of a run over the split's classes.

    Returns:
        "mIoU", "FB_IoU", "episode_IoU" in percent; "mIoU_low", "mIoU_high", "episode_IoU_low",
        "episode_IoU_high", the 95 % intervals, unless ``resamples`` is 0; "ROM" and "RUM", fractions, if
        the rows hold them.
    """
    _, intersection, union = stacked = stack_rows(rows)
    rule = {"counting": counting, "absent": absent}
    single = episode_iou(intersection, union, counting)
    single = single[~np.isnan(single)]
    summary = {
        "mIoU": 100 * mean_iou(*stacked, classes, **rule),
        "FB_IoU": 100 * fb_iou(intersection, union, counting),
        "episode_IoU": 100 * float(single.mean()) if len(single) else 0.0,
    }
    if resamples:
        pooled = bootstrap_mean_iou(*stacked, classes, **rule, resamples=resamples)
        alone = bootstrap_episode_iou(intersection, union, counting=counting, resamples=resamples)
        for name, scores in (("mIoU", pooled), ("episode_IoU", alone)):
            summary[f"{name}_low"], summary[f"{name}_high"] = interval(100 * scores)
    for name in ("rom", "rum"):
        values = [getattr(row, name) for row in rows if getattr(row, name) is not None]
        if values:
            summary[name.upper()] = float(np.mean(values))
    return summary


def score_classes(
    rows: Sequence[EpisodeCounts],
    classes: Sequence[int],
    class_names: Sequence[str],
    *,
    counting: str = "hsnet",
    absent: str = "zero",
) -> list[dict[str, Any]]:
    """One dict per class, in the order of ``classes``; ``absent="skip"`` leaves out classes never drawn.

    Returns:
        dicts of "class_id", "name", "IoU" (percent), "episodes" (how many draw it), "intersection" and
        "union" (pixels of background and foreground, added over those episodes).
    """
    class_ids, intersection, union = stack_rows(rows)
    scores = class_iou(class_ids, intersection, union, classes, counting=counting, absent=absent)
    episodes = class_sums(class_ids, np.ones(len(rows), np.int64), classes)
    inter, total = class_sums(class_ids, intersection, classes), class_sums(class_ids, union, classes)
    return [
        {
            "class_id": int(class_id),
            "name": class_names[class_id] if class_id < len(class_names) else f"class {class_id}",
            "IoU": 100 * float(scores[i]),
            "episodes": int(episodes[i]),
            "intersection": inter[i].tolist(),
            "union": total[i].tolist(),
        }
        for i, class_id in enumerate(classes)
        if not np.isnan(scores[i])
    ]


def format_table(results: Mapping[str, Any]) -> str:
    """One line per evaluation: its name and its scores in percent, with their intervals.

    Args:
        results: nested dicts; the innermost ones hold "mIoU" or "AR@100". One evaluator returns such a
            dict; several can be joined under names such as "glyphs_fold0_val/1shot".
    """
    if not (runs := list(_runs(results))):
        raise ValueError("the results hold no mIoU and no AR@100; give the results of an evaluator")
    columns = [name for name in _COLUMNS if any(name in scores for _, scores in runs)]
    lines = [[name, *(format_score(scores, column) for column in columns)] for name, scores in runs]
    return tabulate(lines, headers=["", *columns], tablefmt="pipe", disable_numparse=True)


def format_class_table(scores: Mapping[str, float]) -> str:
    """The "IoU/<class name>" entries of one evaluation, best class first."""
    classes = [(n.removeprefix(CLASS_PREFIX), s) for n, s in scores.items() if n.startswith(CLASS_PREFIX)]
    lines = sorted(classes, key=lambda item: (-item[1], item[0]))
    return tabulate(lines, headers=["class", "IoU"], tablefmt="pipe", floatfmt=".2f")


def write_results(
    path: str | Path,
    *,
    settings: Mapping[str, Any],
    summary: Mapping[str, float],
    per_class: Sequence[Mapping[str, Any]],
) -> None:
    """Write ``results.json``."""
    content = {"settings": dict(settings), "summary": dict(summary), "per_class": list(per_class)}
    write_json(path, content)


def _runs(
    results: Mapping[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[str, Mapping[str, float]]]:
    if _MAIN_COLUMNS & results.keys():
        named = path[:-1] if len(path) > 1 and path[-1] == TASK else path
        yield "/".join(named), results
        return
    for name, value in results.items():
        if isinstance(value, Mapping):
            yield from _runs(value, (*path, name))


def format_score(scores: Mapping[str, float], name: str) -> str:
    """A score with two decimals and its interval; "" if it is not among the scores."""
    if name not in scores:
        return ""
    text = f"{scores[name]:.2f}"
    if f"{name}_low" in scores:
        text += f" [{scores[f'{name}_low']:.2f}, {scores[f'{name}_high']:.2f}]"
    return text


def summarise_folds(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The mean over folds and seeds, and the deviations, per method, test set, number of shots and metric.

    Args:
        rows: one per run and evaluation, with "method", "test_set", "shots", "fold", "seed", `FOLD_METRICS`
            and optionally "mIoU_low", "mIoU_high", `DIFFERENCE` and its "_low" and "_high".

    Returns:
        dicts of "method", "test_set", "shots", "metric", "runs", "folds" (fold -> mean over the seeds),
        "mean" (over the folds), "deviation_seeds" (sample standard deviation, over the seeds that have all
        folds, of the mean over folds), "deviation_folds" (of the means in "folds"), both None for fewer than
        two values, and "interval" ((low, high) of a single run, else None).
    """
    keys = ("method", "test_set", "shots")
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return [
        dict(zip(keys, names, strict=True)) | {"metric": metric} | _statistics(scored, metric)
        for names, group in groups.items()
        for metric in (*FOLD_METRICS, DIFFERENCE)
        if (scored := [row for row in group if metric in row])
    ]


def _statistics(rows: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Any]:
    folds, seeds = (_grouped(rows, key, metric) for key in ("fold", "seed"))
    fold_means = {fold: statistics.fmean(scores) for fold, scores in folds.items()}
    seed_means = [statistics.fmean(scores) for scores in seeds.values() if len(scores) == len(folds)]
    low, high = (rows[0].get(f"{metric}_{bound}") for bound in ("low", "high"))
    return {
        "runs": len(rows),
        "folds": fold_means,
        "mean": statistics.fmean(fold_means.values()),
        "deviation_seeds": _deviation(seed_means),
        "deviation_folds": _deviation(list(fold_means.values())),
        "interval": None if len(rows) > 1 or low is None else (low, high),
    }


def _grouped(rows: Sequence[Mapping[str, Any]], key: str, metric: str) -> dict[int, list[float]]:
    values = sorted({row[key] for row in rows})
    return {value: [row[metric] for row in rows if row[key] == value] for value in values}


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def format_folds(summary: Sequence[Mapping[str, Any]], first: str) -> str:
    """Markdown: a table per test set with one row per method; with several runs also a table of the folds.

    ``summary`` is that of `summarise_folds`; the other methods are compared with ``first``.
    """
    parts = []
    for test_set in dict.fromkeys(entry["test_set"] for entry in summary):
        entries = [entry for entry in summary if entry["test_set"] == test_set]
        parts.append(f"## {test_set} (%)\n\n{_overview(entries)}\n")
    parts.append(f"{_LEGEND.format(first=first)}\n")
    for metric in FOLD_METRICS if any(entry["runs"] > 1 for entry in summary) else ():
        if entries := [entry for entry in summary if entry["metric"] == metric]:
            parts.append(f"## {metric} (%)\n\n{_by_fold(entries)}\n")
    return "\n".join(parts)


def _overview(entries: Sequence[Mapping[str, Any]]) -> str:
    cells = {(e["method"], e["shots"], e["metric"]): _fold_cell(e) for e in entries}
    found = {(shots, metric) for _, shots, metric in cells}
    order = (*FOLD_METRICS, DIFFERENCE)
    columns = sorted(found, key=lambda column: (column[0], order.index(column[1])))
    lines = [
        [method, *(cells.get((method, *column), "-") for column in columns)]
        for method in dict.fromkeys(e["method"] for e in entries)
    ]
    headers = [f"{shots}-shot {'Δ' if metric == DIFFERENCE else metric}" for shots, metric in columns]
    return tabulate(lines, headers=["method", *headers], tablefmt="pipe", disable_numparse=True)


def _fold_cell(entry: Mapping[str, Any]) -> str:
    sign = "+" if entry["metric"] == DIFFERENCE else ""
    text = f"{entry['mean']:{sign}.2f}"
    if entry["interval"] is not None:
        return text + " [{:{sign}.2f}, {:{sign}.2f}]".format(*entry["interval"], sign=sign)
    deviations = [entry[key] for key in ("deviation_seeds", "deviation_folds") if entry[key] is not None]
    return f"{text} ± {deviations[0]:.2f}" if deviations else text


def _by_fold(entries: Sequence[Mapping[str, Any]]) -> str:
    folds = sorted({fold for entry in entries for fold in entry["folds"]})
    headers = ["method", "test set", "shots", *(f"fold {f}" for f in folds), "mean", "± seeds", "± folds"]
    lines = []
    for entry in entries:
        numbers = [entry["folds"].get(fold) for fold in folds]
        numbers += [entry[key] for key in ("mean", "deviation_seeds", "deviation_folds")]
        cells = ("-" if number is None else f"{number:.2f}" for number in numbers)
        lines.append([entry["method"], entry["test_set"], entry["shots"], *cells])
    return tabulate(lines, headers=headers, tablefmt="pipe", disable_numparse=True)
