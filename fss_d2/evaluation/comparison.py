"""Two evaluations of the same episodes: the paired difference, its interval, and the classes won."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from fss_d2.io.files import read_json_object

from .bootstrap import EpisodeCounts, bootstrap_mean_iou, interval, read_rows, resample_weights, stack_rows
from .metrics import class_iou

__all__ = ["UNITS", "Comparison", "compare", "compare_classes", "compare_folders", "format_comparison"]

UNITS = ("episode", "query", "class")  # what is drawn with replacement


@dataclass(frozen=True)
class Comparison:
    """Evaluation a against b on the same episodes; mIoU in percent, ``difference`` = a - b in points.

    ``low`` and ``high`` bound the difference (bootstrap, the same resamples for both); ``better`` is the
    fraction of resamples in which a is strictly above b.
    """

    mean_iou_a: float
    mean_iou_b: float
    difference: float
    low: float
    high: float
    better: float
    episodes: int


def compare(
    rows_a: Sequence[EpisodeCounts],
    rows_b: Sequence[EpisodeCounts],
    *,
    same_supports: bool = True,
    classes: Sequence[int] | None = None,
    counting: str = "hsnet",
    absent: str = "zero",
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    unit: str = "episode",
) -> Comparison:
    """Compare two evaluations episode by episode.

    Args:
        rows_a, rows_b: the episodes of the two, in any order; a ValueError names the first difference.
        same_supports: False allows the two to differ in their supports, to compare supports.
        classes: the classes of the split; None takes those that the episodes draw.
        unit: one of `UNITS`. "query" draws pictures, each with all episodes that ask about it; "class" draws
            classes, which are what a benchmark has fewest of.
    """
    if unit not in UNITS:
        raise ValueError(f"resampling by {unit!r} is not known; choose one of {', '.join(UNITS)}")
    rows_a, rows_b = _pair(rows_a, rows_b, same_supports)
    stacked = stack_rows(rows_a), stack_rows(rows_b)
    classes = sorted({row.class_id for row in rows_a}) if classes is None else classes
    rule = {"counting": counting, "absent": absent}
    per_class = [class_iou(*counts, classes, **rule) for counts in stacked]
    a, b = (float(np.nanmean(each)) if not np.isnan(each).all() else 0.0 for each in per_class)
    if unit == "class":
        resampled = [_resampled_classes(each, resamples, seed) for each in per_class]
    else:
        names = {row.query: number for number, row in enumerate(rows_a)}
        groups = np.array([names[row.query] for row in rows_a]) if unit == "query" else None
        options = {**rule, "resamples": resamples, "seed": seed, "groups": groups}
        resampled = [bootstrap_mean_iou(*counts, classes, **options) for counts in stacked]
    low, high = interval(resampled[0] - resampled[1], level)
    better = float((resampled[0] > resampled[1]).mean())
    return Comparison(100 * a, 100 * b, 100 * (a - b), 100 * low, 100 * high, better, len(rows_a))


def _resampled_classes(per_class: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Mean (resamples,) over classes drawn with replacement; NaN of ``absent="skip"`` is left out."""
    scores = per_class[~np.isnan(per_class)]
    blocks = resample_weights(len(scores), resamples, seed)
    return np.concatenate([weights @ scores for weights in blocks]) / max(len(scores), 1)


def compare_folders(a: Path, b: Path, **options: Any) -> Comparison:
    """Compare two evaluations by their folders, counted as ``b`` was; ``options`` are those of `compare`.

    Raises:
        ValueError: they scored different episodes.
        FileNotFoundError: a folder is not that of an evaluation.
    """
    _check_manifests(a, b)
    classes, rule = _recorded(b)
    rows = (read_rows(folder / "episodes.jsonl") for folder in (a, b))
    return compare(*rows, classes=list(classes), **rule, **options)


def compare_classes(a: Path, b: Path) -> list[dict[str, Any]]:
    """Each class of two evaluations: "class", "a", "b", "difference" in percent, largest difference first."""
    _check_manifests(a, b)
    names, rule = _recorded(b)
    counts = [stack_rows(read_rows(folder / "episodes.jsonl")) for folder in (a, b)]
    of_a, of_b = (100 * class_iou(*each, list(names), **rule) for each in counts)
    lines = [
        {"class": name, "a": float(x), "b": float(y), "difference": float(x - y)}
        for name, x, y in zip(names.values(), of_a, of_b, strict=True)
        if not np.isnan(x)
    ]
    return sorted(lines, key=lambda line: -line["difference"])


def format_comparison(by_unit: dict[str, Comparison], classes: Sequence[dict[str, Any]]) -> str:
    """Markdown: the difference by what is resampled, and the classes with the number of wins."""
    first = next(iter(by_unit.values()))
    lines = [
        [unit, f"{c.difference:+.2f} [{c.low:+.2f}, {c.high:+.2f}]", f"{c.better:.1%}"]
        for unit, c in by_unit.items()
    ]
    headers = ["resampled by", "mIoU of a less b [95 %]", "a is ahead in"]
    table = tabulate(lines, headers=headers, tablefmt="pipe", disable_numparse=True)
    rows = [[c["class"], *(f"{c[name]:.2f}" for name in "ab"), f"{c['difference']:+.2f}"] for c in classes]
    headers = ["class", "a", "b", "a less b"]
    per_class = tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True)
    wins, losses = (sum(sign * c["difference"] > 0 for c in classes) for sign in (1, -1))
    scores = f"mIoU on {first.episodes} episodes: a {first.mean_iou_a:.2f}, b {first.mean_iou_b:.2f}."
    verdict = f"Of {len(classes)} classes, a is ahead in {wins} and b in {losses}."
    return "\n\n".join([scores, table, verdict, per_class])


def _recorded(folder: Path) -> tuple[dict[int, str], dict[str, str]]:
    """The classes of an evaluation, id to name, and its rule of counting."""
    recorded = read_json_object(folder / "results.json", "evaluate again")
    settings = recorded["settings"]
    names = {e["class_id"]: e.get("name", f"class {e['class_id']}") for e in recorded["per_class"]}
    return names, {"counting": settings["counting"], "absent": settings["absent_classes"]}


def _check_manifests(a: Path, b: Path) -> None:
    manifests = [folder / "manifest.jsonl" for folder in (a, b)]
    for file in manifests:
        if not file.is_file():
            fix = "give folders of evaluations, <run>/inference/<set>_1shot"
            raise FileNotFoundError(f"{file} does not exist; {fix}")
    if manifests[0].read_bytes() != manifests[1].read_bytes():
        what = f"{manifests[0]} and {manifests[1]} hold different episodes and cannot be compared"
        raise ValueError(f"{what}; remove the older run and start again")


def _pair(
    rows_a: Sequence[EpisodeCounts], rows_b: Sequence[EpisodeCounts], same_supports: bool
) -> tuple[list[EpisodeCounts], list[EpisodeCounts]]:
    """Sort both by episode and check that they hold the same ones."""
    if not rows_a:
        raise ValueError("there are no episodes to compare; give the rows of two finished evaluations")
    if len(rows_a) != len(rows_b):
        raise ValueError(
            f"cannot compare {len(rows_a)} with {len(rows_b)} episodes; score both on one manifest"
        )
    rows_a, rows_b = (sorted(rows, key=lambda row: row.episode_index) for rows in (rows_a, rows_b))
    for a, b in zip(rows_a, rows_b, strict=True):
        if _query(a) != _query(b) or (same_supports and a.supports != b.supports):
            first, second = (f"class {row.class_id}, query {row.query}" for row in (a, b))
            what = f"episode {a.episode_index} differs between the two: {first} against {second}"
            raise ValueError(f"{what}; score both on one manifest")
    return rows_a, rows_b


def _query(row: EpisodeCounts) -> tuple[object, ...]:
    return row.episode_index, row.class_id, row.query
