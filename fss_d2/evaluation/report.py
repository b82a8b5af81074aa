"""The scores of a run in percent, as tables and as ``results.json``."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from fss_d2.files import write_atomic

from .bootstrap import bootstrap_episode_iou, bootstrap_mean_iou, interval
from .metrics import class_iou, class_sums, episode_iou, fb_iou, mean_iou
from .rows import EpisodeCounts, stack_rows

__all__ = [
    "CLASS_PREFIX",
    "TASK",
    "format_class_table",
    "format_table",
    "score_classes",
    "summarise",
    "write_results",
]

TASK = "few_shot_seg"  # the key of an evaluator's scores, like "sem_seg" in Detectron2
CLASS_PREFIX = "IoU/"
_COLUMNS = ("mIoU", "FB_IoU", "episode_IoU", "ROM", "RUM", "AR@10", "AR@50", "AR@100", "recall50@100")
_MAIN_COLUMNS = {"mIoU", "AR@100"}  # every evaluation has one of them


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
    class_ids, intersection, union = stack_rows(rows)
    rule = {"counting": counting, "absent": absent}
    single = episode_iou(intersection, union, counting)
    single = single[~np.isnan(single)]
    summary = {
        "mIoU": 100 * mean_iou(class_ids, intersection, union, classes, **rule),
        "FB_IoU": 100 * fb_iou(intersection, union, counting),
        "episode_IoU": 100 * float(single.mean()) if len(single) else 0.0,
    }
    if resamples:
        pooled = bootstrap_mean_iou(class_ids, intersection, union, classes, **rule, resamples=resamples)
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

    Raises:
        ValueError: no innermost dict holds "mIoU" or "AR@100".
    """
    runs = list(_runs(results))
    if not runs:
        raise ValueError("the results hold no mIoU and no AR@100; give the results of an evaluator")
    columns = [name for name in _COLUMNS if any(name in scores for _, scores in runs)]
    lines = [[name, *(_cell(scores, column) for column in columns)] for name, scores in runs]
    return tabulate(lines, headers=["", *columns], tablefmt="pipe", disable_numparse=True)


def format_class_table(scores: Mapping[str, float]) -> str:
    """The "IoU/<class name>" entries of one evaluation, best class first."""
    classes = {
        name.removeprefix(CLASS_PREFIX): score
        for name, score in scores.items()
        if name.startswith(CLASS_PREFIX)
    }
    lines = sorted(classes.items(), key=lambda item: (-item[1], item[0]))
    return tabulate(lines, headers=["class", "IoU"], tablefmt="pipe", floatfmt=".2f")


def write_results(
    path: str | Path,
    *,
    settings: Mapping[str, Any],
    summary: Mapping[str, float],
    per_class: Sequence[Mapping[str, Any]],
) -> None:
    """Write ``results.json`` (settings, summary, per_class) in one step."""
    content = {"settings": dict(settings), "summary": dict(summary), "per_class": list(per_class)}
    write_atomic(path, (json.dumps(content, indent=2) + "\n").encode())


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


def _cell(scores: Mapping[str, float], name: str) -> str:
    if name not in scores:
        return ""
    text = f"{scores[name]:.2f}"
    if f"{name}_low" in scores:
        text += f" [{scores[f'{name}_low']:.2f}, {scores[f'{name}_high']:.2f}]"
    return text
