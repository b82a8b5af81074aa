"""Files of episode counts."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fss_d2.evaluation.bootstrap import (
    EpisodeCounts,
    read_rows,
    stack_rows,
    write_rows,
)

Rows = Callable[..., list[EpisodeCounts]]


def test_rows_survive_the_file(tmp_path: Path, make_rows: Rows) -> None:
    rows = [*make_rows(3), EpisodeCounts(9, 1, 17, (3, 4), (5, 6), (7, 8), rom=0.5, rum=0.0)]
    write_rows(tmp_path / "episodes.jsonl", rows)
    assert read_rows(tmp_path / "episodes.jsonl") == rows


def test_stack_rows_of_nothing_keeps_its_shape() -> None:
    class_ids, intersection, union = stack_rows([])
    assert class_ids.shape == (0,)
    assert intersection.shape == union.shape == (0, 2)


@pytest.mark.parametrize("line", ["{", "[]", '{"episode_index": 0}', '{"intersection": [1]}'])
def test_a_bad_line_is_named(tmp_path: Path, make_rows: Rows, line: str) -> None:
    path = tmp_path / "episodes.jsonl"
    write_rows(path, make_rows(2))
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match=r"episodes\.jsonl:3 is not an episode's counts"):
        read_rows(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl does not exist"):
        read_rows(tmp_path / "none.jsonl")
