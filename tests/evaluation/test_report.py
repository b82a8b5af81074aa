"""Tables and the results file."""

import json
from pathlib import Path

import pytest

from fss_d2.evaluation.report import format_class_table, format_table, write_results

SCORES = {
    "mIoU": 41.234,
    "mIoU_low": 40.0,
    "mIoU_high": 42.5,
    "FB_IoU": 66.0,
    "IoU/cat": 30.0,
    "IoU/cow": 52.468,
}


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_table_of_one_evaluation() -> None:
    header, _, row = format_table({"few_shot_seg": SCORES}).splitlines()
    assert _cells(header) == ["", "mIoU", "FB_IoU"]
    assert _cells(row) == ["few_shot_seg", "41.23 [40.00, 42.50]", "66.00"]


@pytest.mark.parametrize("wrapped", [True, False])
def test_table_of_several_evaluations(wrapped: bool) -> None:
    runs = {"a/1shot": SCORES, "a/5shot": {"mIoU": 50.0, "episode_IoU": 1.0}}
    if wrapped:
        runs = {name: {"few_shot_seg": scores} for name, scores in runs.items()}
    header, _, first, second = format_table(runs).splitlines()
    assert _cells(header) == ["", "mIoU", "FB_IoU", "episode_IoU"]
    assert _cells(first) == ["a/1shot", "41.23 [40.00, 42.50]", "66.00", ""]
    assert _cells(second) == ["a/5shot", "50.00", "", "1.00"]


def test_table_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="hold no mIoU"):
        format_table({"bbox": {"AP": 1.0}})


def test_class_table_is_sorted_by_score() -> None:
    _, _, *rows = format_class_table(SCORES).splitlines()
    assert [_cells(row) for row in rows] == [["cow", "52.47"], ["cat", "30.00"]]


def test_results_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_results(path, settings={"shots": 1}, summary=SCORES, per_class=[{"name": "cat"}])
    assert json.loads(path.read_text()) == {
        "settings": {"shots": 1},
        "summary": SCORES,
        "per_class": [{"name": "cat"}],
    }
