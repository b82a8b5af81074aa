"""The tables of the papers: numbers that fit together, rows that are tested alike, commands that exist."""

import re
import shlex
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pytest

from fss_d2.engine.pages import PAGES, updated
from fss_d2.engine.tables import Table, read_tables
from tools import visualize

ROOT = Path(__file__).parents[1]
TABLES = [
    (file.stem, table)
    for file in sorted((ROOT / "configs" / "tables").glob("*.yaml"))
    for table in read_tables(file).values()
]
NAMES = [f"{paper}: {table.name}" for paper, table in TABLES]
PAPERS = {  # the last table and figure of each paper, and how many it has
    "danet": (["Table 1", "Table 2", "Table 3"], 2),
    "dcama": ([*(f"Table {n}" for n in range(1, 5)), *(f"Table S{n}" for n in range(1, 6))], 12),
    "dpcn": ([*(f"Table {n}" for n in range(1, 7)), *(f"Table A{n}" for n in range(1, 6))], 12),
    "jc2a": ([f"Table {n}" for n in range(1, 7)], 4),
    "mmformer": (["Table 1", "Table 2", "Table 3a", "Table 3b", "Table 3c", "Table 4a", "Table 4b"], 6),
}
# Means that the papers print and that are not those of the folds which they print.
MISPRINTS = {
    ("dcama", "Table S3", "none"),  # 67.3 by the folds; the text counts from 66.2
    ("dpcn", "Table 6", "CANet"),
    ("dpcn", "Table A4", "CANet"),
    ("jc2a", "Table 1", "JC2A, ResNet-50"),
    ("mmformer", "Table 1", "PFENet, ResNet-50"),  # fold 3 is 30.1 in other papers
}
PROTOCOL = (
    *("FEW_SHOT.TEST.EPISODES", "FEW_SHOT.TEST.SEED", "FEW_SHOT.TEST.QUERY_RULE", "INPUT.FEW_SHOT_SIZE"),
    *("FEW_SHOT.TEST.SUPPORT_ANNOTATION", "INPUT.TEST_RESIZE", "TEST.FRAME", "TEST.COUNTING", "TEST.SCALES"),
)
SUBJECTS = {  # what a table compares may differ in it
    ("dpcn", "Table A2"): "FEW_SHOT.TEST.SUPPORT_ANNOTATION",
    ("dpcn", "Table A3"): "TEST.SCALES",
    ("dpcn", "Table A5"): "TEST.FRAME",
}


def test_every_table_and_figure_of_the_papers_is_there() -> None:
    for paper, (tables, figures) in PAPERS.items():
        names = [table.name for file, table in TABLES if file == paper]
        for name in tables:
            assert any(re.match(rf"{name}(?![0-9])", each) for each in names), (paper, name)
        numbers = [n for each in names if each.startswith("Figure") for n in re.findall(r"[AS]?\d+", each)]
        assert len(set(numbers)) == figures, (paper, numbers)


@pytest.mark.parametrize(("paper", "table"), TABLES, ids=NAMES)
def test_printed_means_are_those_of_the_folds(paper: str, table: Table) -> None:
    """To the rounding of one decimal; it finds a digit that was typed wrong."""
    for row in table.rows.values():
        for kind, numbers in row.paper.items():
            folds = [numbers[f"fold{fold}"] for fold in range(4) if f"fold{fold}" in numbers]
            if len(folds) == 4 and (paper, table.name, row.name) not in MISPRINTS:
                assert sum(folds) / 4 == pytest.approx(numbers["mIoU"], abs=0.101), (row.name, kind)


@pytest.mark.parametrize(("paper", "table"), TABLES, ids=NAMES)
def test_rows_of_an_ablation_are_tested_alike(paper: str, table: Table) -> None:
    """In tables of comparisons (``benchmark``) other methods have the protocols of their own papers."""
    if table.benchmark or paper == "extensions":
        return
    seen: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in (row for row in table.rows.values() if row.stages):
        cfg = row.stages[-1].load()
        keys = {key: reduce(getitem, key.split("."), cfg) for key in PROTOCOL}
        keys.pop(SUBJECTS.get((paper, table.name), ""), None)
        assert seen.setdefault(tuple(cfg.DATASETS.TEST), keys) == keys, row.name


@pytest.mark.parametrize(("paper", "table"), TABLES, ids=NAMES)
def test_commands_name_what_exists(paper: str, table: Table) -> None:
    assert table.rows or table.commands or "nothing to run" in table.about
    for command in table.commands:
        words = shlex.split(command)
        files = [word for word in words if word.startswith(("configs/", "tools/")) or word == "train_net.py"]
        assert files or words[0] == "fss-d2"
        assert [file for file in files if not (ROOT / file).is_file()] == []
        if "tools/visualize.py" in words:
            visualize.parse(words[2:])


@pytest.mark.parametrize("page", PAGES)
def test_pages_are_up_to_date(page: str) -> None:
    """`python tools/update_pages.py` writes them."""
    assert updated(page, ROOT) == (ROOT / page).read_text()
