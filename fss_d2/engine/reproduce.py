"""Rows of a table: their config files, their results, and the report next to the published numbers."""

import os
import shlex
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import yaml
from tabulate import tabulate

from fss_d2.evaluation.bootstrap import interval_of_mean
from fss_d2.evaluation.comparison import compare_folders
from fss_d2.evaluation.report import FOLD_METRICS
from fss_d2.io.files import read_json, write_atomic

from .resources import commit
from .tables import Row, Stage, Table

__all__ = ["collect", "describe_resources", "report", "row_results", "write_config"]

NO_REPRODUCTION = (
    "Small data, a small backbone and minutes of training: this is no reproduction. It shows the direction\n"
    "of a change at best; the published numbers are on another data set."
)


def write_config(stage: Stage, path: Path) -> str:
    """Write a stage as a config file, unless its keys change nothing; return the file that has its config."""
    if stage.load() == Stage(stage.row, stage.config, {}).load():
        return str(stage.config)
    tree: dict[str, Any] = {"_BASE_": os.path.relpath(stage.config, path.parent)}
    for key, value in {**stage.set, "OUTPUT_DIR": str(path.with_suffix(""))}.items():
        *groups, name = key.split(".")
        reduce(lambda node, group: node.setdefault(group, {}), groups, tree)[name] = value
    write_atomic(path, yaml.safe_dump(tree, sort_keys=False).encode())
    return str(path)


def row_results(row: Row, cross_validation: Path) -> dict[str, Any]:
    """The results of a row: "scores", "runs", "resources" of the first run, and the published numbers.

    ``cross_validation`` is the JSON file that `run_all` wrote for it. "scores" holds, for each test set,
    number of shots and metric, the mean over folds, its interval (over episodes) and each fold.
    """
    content = read_json(cross_validation)
    scores = []
    for entry in content["summary"]:
        score = {key: entry[key] for key in ("test_set", "shots", "metric", "mean")}
        score["folds"] = {str(fold): value for fold, value in entry.get("folds", {}).items()}
        parts = [
            (run["mIoU"], run["mIoU_low"], run["mIoU_high"])
            for run in content["runs"]
            if (run["test_set"], run["shots"]) == (entry["test_set"], entry["shots"]) and "mIoU_low" in run
        ]
        if entry["metric"] == "mIoU" and parts:
            score["low"], score["high"] = interval_of_mean(parts)
        scores.append(score)
    runs = content["runs"]
    used = read_json(Path(runs[0]["folder"]).parents[1] / "results.json").get("resources", {}) if runs else {}
    return {"scores": scores, "runs": runs, "resources": used, "paper": row.paper}


def collect(file: str, table: Table, scale: str, rows: dict[str, Any]) -> dict[str, Any]:
    """The content of a table's JSON file; rows are in the order of the table.

    Every row is compared, run by run on the same episodes, with the last row that ran: "against".
    """
    rows = {name: rows[name] for name in table.rows if name in rows}
    last = list(rows)[-1]
    for name, entry in rows.items():
        if name != last:
            entry["against"] = {"row": last, **_paired(entry["runs"], rows[last]["runs"])}
    content = {"file": file, "table": table.name, "about": table.about, "scale": scale, "commit": commit()}
    return content | {"rows": rows}


def _paired(runs: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """By test set and shots the difference of mIoU in points, over the folds that both have scored alike."""
    places = {_question(run): Path(run["folder"]) for run in reference}
    found: dict[str, list[tuple[float, float, float]]] = {}
    for run in runs:
        folder, other = Path(run["folder"]), places.get(_question(run))
        if other is None or not (folder / "episodes.jsonl").is_file():
            continue
        try:
            compared = compare_folders(folder, other)
        except ValueError:
            continue  # other episodes: nothing to compare
        found.setdefault(_place(run), []).append((compared.difference, compared.low, compared.high))
    differences = {}
    for place, parts in found.items():
        low, high = interval_of_mean(parts)
        mean = sum(part[0] for part in parts) / len(parts)
        above = sum(part[1] > 0 for part in parts)  # folds whose interval lies above 0
        differences[place] = {"difference": mean, "low": low, "high": high, "above": [above, len(parts)]}
    return differences


def _place(score: Mapping[str, Any]) -> str:
    return f"{score['test_set']}, {score['shots']}-shot"


def _question(run: Mapping[str, Any]) -> tuple[Any, ...]:
    return run["fold"], run["seed"], run["test_set"], run["shots"]


def report(content: Mapping[str, Any]) -> str:
    """Markdown of a table's results: mIoU of each fold, the mean with its interval, the paper's, the rest.

    At the published size the difference to the paper follows; at a small scale, or without published numbers,
    the paired difference to the last row, the number of folds whose interval is above 0, and what the
    difference is in the paper. Other scores are means over the folds, with the paper's in parentheses.
    """
    rows = content["rows"]
    small = bool(content["scale"]) or not any(row["paper"] for row in rows.values())
    scores = [score for row in rows.values() for score in row["scores"]]
    folds = sorted({fold for score in scores for fold in score["folds"]})
    folds = folds if len(folds) > 1 else []
    others = [metric for metric in FOLD_METRICS[1:] if any(score["metric"] == metric for score in scores)]
    headers = ["row", "test set", "shots", *(f"fold {fold}" for fold in folds), "mIoU [95 %]", "paper"]
    small_headers = ["less the last row [95 %]", "folds above", "in the paper"]
    headers += small_headers if small else ["difference to the paper [95 %]"]
    lines = [headers + others]
    last = next(reversed(rows.values()), {"paper": {}})
    for name, row in rows.items():
        for test_set, shots in dict.fromkeys((score["test_set"], score["shots"]) for score in row["scores"]):
            of = {s["metric"]: s for s in row["scores"] if (s["test_set"], s["shots"]) == (test_set, shots)}
            main = of["mIoU"]
            cells = [name, test_set, str(shots), *(_number(main["folds"].get(fold)) for fold in folds)]
            cells += [_interval(main, "mean"), _number(_published(row, main, every_fold=small))]
            cells += _against(row, last, main) if small else [_to_paper(row, main)]
            lines.append([*cells, *(_with_paper(row, of.get(metric)) for metric in others)])
    text = tabulate(_plain(lines), headers="firstrow", tablefmt="pipe", disable_numparse=True)
    return f"{NO_REPRODUCTION}\n\n{text}" if content["scale"] else text


def _plain(lines: list[list[str]]) -> list[list[str]]:
    """Header and lines without the columns that say nothing: empty ones, and the test set if there is one."""
    columns = list(zip(*lines, strict=True))
    one_set = len(set(columns[1][1:])) == 1
    kept = [c for i, c in enumerate(columns) if any(c[1:]) and not (i == 1 and one_set)]
    return [list(line) for line in zip(*kept, strict=True)]


def _to_paper(row: Mapping[str, Any], score: Mapping[str, Any]) -> str:
    """The difference to the paper with its interval; the paper's number counts as exact."""
    paper = _published(row, score, every_fold=False)
    if paper is None:
        return ""
    shifted = {key: score[key] - paper for key in ("mean", "low", "high") if key in score}
    return _interval(shifted, "mean", sign="+")


def _against(row: Mapping[str, Any], last: Mapping[str, Any], score: Mapping[str, Any]) -> list[str]:
    """The paired difference to the last row, the folds in which it is above 0, and the paper's."""
    paired = row.get("against", {}).get(_place(score))
    if paired is None:
        return ["", "", ""]
    numbers = [_published(each, score, every_fold=True) for each in (row, last)]
    theirs = "" if None in numbers else f"{numbers[0] - numbers[1]:+.1f}"
    above, folds = paired["above"]
    return [_interval(paired, "difference", sign="+"), f"{above} of {folds}" if folds > 1 else "", theirs]


def _with_paper(row: Mapping[str, Any], score: Mapping[str, Any] | None) -> str:
    if score is None:
        return ""
    paper = _published(row, score, every_fold=True)
    return _number(score["mean"]) + ("" if paper is None else f" ({paper:.2f})")


def _published(row: Mapping[str, Any], score: Mapping[str, Any], *, every_fold: bool) -> float | None:
    """The paper's number: its mean over all folds, or over those that were run where it prints them."""
    numbers = row["paper"].get(f"{score['shots']}-shot", {})
    of_folds = [numbers.get(f"fold{fold}") for fold in score["folds"]]
    if not every_fold and score["metric"] == "mIoU" and 0 < len(of_folds) < 4 and None not in of_folds:
        return sum(of_folds) / len(of_folds)
    number = numbers.get(score["metric"])
    return number if isinstance(number, (int, float)) else None


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _interval(score: Mapping[str, Any], key: str, sign: str = "") -> str:
    text = f"{score[key]:{sign}.2f}"
    return text + (" [{low:{s}.2f}, {high:{s}.2f}]".format(**score, s=sign) if "low" in score else "")


def describe_resources(content: Mapping[str, Any]) -> str:
    """What a table's results were made with, by the last row that was trained."""
    rows = [row["resources"] for row in content["rows"].values()]
    used = next((used for used in reversed(rows) if used["labels"]["sets"]), rows[-1])
    labels, backbone, protocol = used["labels"], used["backbone"], used["protocol"]
    sets = ", ".join(f"{name} ({count} classes)" for name, count in labels["classes"].items())
    size = "x".join(map(str, protocol["INPUT.FEW_SHOT_SIZE"]))
    lines = {
        "command": f"`python tools/reproduce.py {shlex.join(content['arguments'])}`",
        "code": f"commit {used['commit'] or 'unknown'}",
        "labels": f"{sets or 'none'}, supports as {labels['supports']}",
        "backbone": f"{backbone['weights'] or 'none'}, pre-trained on {backbone['pretraining'] or 'nothing'}"
        + (", frozen" if backbone["frozen"] else ""),
        "seeds": ", ".join(f"`{key}` {seed}" for key, seed in used["seeds"].items()),
        "test": f"{', '.join(protocol['DATASETS.TEST'])}, {protocol['FEW_SHOT.TEST.EPISODES']} episodes, "
        f"rule `{protocol['FEW_SHOT.TEST.QUERY_RULE']}`, {size} pixels, frame `{protocol['TEST.FRAME']}`, "
        f"counting `{protocol['TEST.COUNTING']}`",
    }
    return "\n".join(
        ["| made with | |", "|---|---|", *(f"| {name} | {text} |" for name, text in lines.items())]
    )
