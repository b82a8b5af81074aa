"""Results as tables for people and as JSON for programs."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from fss_d2.files import write_atomic

__all__ = ["CLASS_PREFIX", "TASK", "format_class_table", "format_table", "write_results"]

TASK = "few_shot_seg"  # the key of an evaluator's scores, as "sem_seg" is in Detectron2
CLASS_PREFIX = "IoU/"
_COLUMNS = ("mIoU", "FB_IoU", "episode_IoU", "ROM", "RUM", "AR@10", "AR@50", "AR@100", "recall50@100")
_MAIN_COLUMNS = {"mIoU", "AR@100"}  # every evaluation has one of them


def format_table(results: Mapping[str, Any]) -> str:
    """One line per evaluation: its name and its scores in percent, with their intervals.

    Args:
        results: nested dict whose innermost dicts hold "mIoU" or "AR@100" and so on: what one evaluator
            returns, or several of those under names such as "glyphs_fold0_val/1shot".

    Raises:
        ValueError: no innermost dict holds "mIoU" or "AR@100".
    """
    runs = list(_runs(results))
    if not runs:
        raise ValueError("the results hold no mIoU and no AR@100; give what an evaluator returned")
    columns = [name for name in _COLUMNS if any(name in scores for _, scores in runs)]
    lines = [[name, *(_cell(scores, column) for column in columns)] for name, scores in runs]
    return tabulate(lines, headers=["", *columns], tablefmt="pipe", disable_numparse=True)


def format_class_table(scores: Mapping[str, float]) -> str:
    """The "IoU/<class name>" entries of one evaluation, worst class last."""
    classes = {
        name[len(CLASS_PREFIX) :]: value for name, value in scores.items() if name.startswith(CLASS_PREFIX)
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
    """Write ``results.json`` (settings, summary, per_class), all or nothing."""
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
