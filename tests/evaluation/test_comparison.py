"""Two evaluations of the same episodes: differences, intervals by unit, classes, and the tool."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fss_d2.evaluation.bootstrap import (
    EpisodeCounts,
    bootstrap_mean_iou,
    interval,
    resample_weights,
    stack_rows,
    write_rows,
)
from fss_d2.evaluation.comparison import UNITS, compare, compare_classes, compare_folders
from tools import compare_results

CLASSES = range(4)
Rows = Callable[..., list[EpisodeCounts]]


def test_compare_with_itself_is_zero(make_rows: Rows) -> None:
    rows = make_rows(25)
    result = compare(rows, rows[::-1])
    assert (result.difference, result.low, result.high, result.better) == (0, 0, 0, 0)
    assert result.mean_iou_a == result.mean_iou_b > 0
    assert result.episodes == 25


def test_pairing_finds_what_single_intervals_hide(make_rows: Rows) -> None:
    better, worse = make_rows(60, gain=5), make_rows(60)
    result = compare(better, worse)
    assert result.difference == pytest.approx(result.mean_iou_a - result.mean_iou_b)
    assert 0 < result.low < result.difference < result.high
    assert result.better == 1.0
    opposite = compare(worse, better)
    assert opposite.difference == -result.difference
    assert (opposite.low, opposite.high) == pytest.approx((-result.high, -result.low))
    alone = 100 * bootstrap_mean_iou(*stack_rows(worse), CLASSES)
    low, high = interval(alone)
    assert high - low > 3 * (result.high - result.low)


def test_compare_of_supports(make_rows: Rows) -> None:
    """Other supports are other episodes, unless they are what is compared."""
    rows = make_rows(5)
    others = [replace(row, supports=("t",)) for row in rows]
    with pytest.raises(ValueError, match="episode 0 differs between the two"):
        compare(rows, others)
    assert compare(rows, others, same_supports=False) == compare(rows, rows)
    others[2] = replace(others[2], class_id=9)
    with pytest.raises(ValueError, match=r"episode 2 differs .* against class 9"):
        compare(rows, others, same_supports=False)


def test_compare_refuses_other_episodes(make_rows: Rows) -> None:
    rows = make_rows(5)
    with pytest.raises(ValueError, match="no episodes to compare"):
        compare([], [])
    with pytest.raises(ValueError, match="cannot compare 5 with 4 episodes"):
        compare(rows, rows[:4])
    other = [*rows[:3], replace(rows[3], query="elsewhere"), rows[4]]
    with pytest.raises(ValueError, match=r"episode 3 differs .* query elsewhere"):
        compare(rows, other)


def test_repeated_pictures_widen_the_interval(make_rows: Rows) -> None:
    """Each picture is asked about ten times, with the same answer."""
    better, worse = (
        [replace(row, episode_index=10 * i + k) for i, row in enumerate(rows) for k in range(10)]
        for rows in (make_rows(30, gain=30), make_rows(30))
    )
    by = {unit: compare(better, worse, unit=unit) for unit in UNITS}
    assert len({comparison.difference for comparison in by.values()}) == 1
    widths = {unit: comparison.high - comparison.low for unit, comparison in by.items()}
    assert widths["query"] > 2.5 * widths["episode"]  # sqrt(10) = 3.2


def test_classes_are_drawn(make_rows: Rows) -> None:
    rows, others = make_rows(40, gain=8), make_rows(40)
    result = compare(rows, others, classes=range(5), unit="class", resamples=50)
    difference = np.zeros(5)  # class 4 is never drawn: 0 for both
    for class_id in CLASSES:
        of_class = [[row for row in each if row.class_id == class_id] for each in (rows, others)]
        scores = [sum(r.intersection[1] for r in c) / sum(r.union[1] for r in c) for c in of_class]
        difference[class_id] = 100 * (scores[0] - scores[1])
    assert result.difference == pytest.approx(difference.mean())
    (weights,) = resample_weights(5, 50, 0)
    expected = np.quantile(weights @ difference / 5, [0.025, 0.975])
    assert (result.low, result.high) == pytest.approx(tuple(expected))


def test_an_unknown_unit_is_refused(make_rows: Rows) -> None:
    with pytest.raises(ValueError, match="'picture' is not known; choose one of episode, query, class"):
        compare(make_rows(2), make_rows(2), unit="picture")


def _write(folder: Path, rows: Sequence[EpisodeCounts], manifest: str = "m") -> Path:
    folder.mkdir(parents=True)
    write_rows(folder / "episodes.jsonl", rows)
    (folder / "manifest.jsonl").write_text(manifest)
    classes = [{"class_id": c, "name": name} for c, name in enumerate(("ant", "bee", "cat", "dog"))]
    settings = {"counting": "hsnet", "absent_classes": "zero"}
    (folder / "results.json").write_text(json.dumps({"settings": settings, "per_class": classes}))
    return folder


def test_folders_and_classes(make_rows: Rows, tmp_path: Path) -> None:
    rows, others = make_rows(40, gain=5), make_rows(40)
    a, b = _write(tmp_path / "a", rows), _write(tmp_path / "b", others)
    assert compare_folders(a, b) == compare(rows, others)
    classes = compare_classes(a, b)
    assert {line["class"] for line in classes} == {"ant", "bee", "cat", "dog"}
    assert [line["difference"] for line in classes] == sorted(
        (c["a"] - c["b"] for c in classes), reverse=True
    )
    assert np.mean([line["a"] for line in classes]) == pytest.approx(compare(rows, others).mean_iou_a)


def test_the_tool_compares_what_two_runs_have_in_common(
    make_rows: Rows, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, gain in (("a", 5), ("b", 0)):
        _write(tmp_path / name / "inference" / "set_1shot", make_rows(30, gain=gain))
    _write(tmp_path / "a" / "inference" / "set_5shot", make_rows(30))
    compare_results.main([str(tmp_path / "a"), str(tmp_path / "b"), "--output", str(tmp_path / "c.json")])
    printed = capsys.readouterr().out
    assert "## set_1shot" in printed and "set_5shot" not in printed
    assert "Of 4 classes, a is ahead in 4 and b in 0." in printed
    content = json.loads((tmp_path / "c.json").read_text())["evaluations"]["set_1shot"]
    assert list(content["by"]) == [*UNITS] and content["by"]["query"]["better"] == 1.0


def test_the_tool_refuses_other_episodes(make_rows: Rows, tmp_path: Path) -> None:
    a, b = (_write(tmp_path / name, make_rows(5), manifest=name) for name in "ab")
    with pytest.raises(ValueError, match="hold different episodes"):
        compare_results.main([str(a), str(b)])
    with pytest.raises(ValueError, match="no evaluation in common"):
        compare_results.main([str(tmp_path), str(tmp_path)])
    with pytest.raises(FileNotFoundError, match=r"manifest.jsonl does not exist; give folders"):
        compare_folders(tmp_path, a)
