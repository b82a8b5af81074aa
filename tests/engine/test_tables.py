"""Tables as data: what a file of tables means, and what is refused."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from fss_d2.engine.tables import closest, find_tables, read_tables, slug

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file of tables next to two configs, and return it."""
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text("VERSION: 2\n")

    def write_tables(text: str) -> Path:
        (tmp_path / "paper.yaml").write_text(text)
        return tmp_path / "paper.yaml"

    return write_tables


def test_a_table_gives_its_rows_what_they_lack(write: Write) -> None:
    file = write(
        "Table 1:\n"
        "  about: Two things.\n"
        "  config: one.yaml\n"
        "  set: {SOLVER.MAX_ITER: 3, INPUT.REDRAWS: 1}\n"
        "  rows:\n"
        "    7: {}\n"
        "    b: {config: two.yaml, set: {SOLVER.MAX_ITER: 4}, test: True, folds: [0]}\n"
    )
    table = read_tables(file)["Table 1"]
    first, second = table.rows["7"], table.rows["b"]
    assert (table.name, table.about) == ("Table 1", "Two things.")
    assert [(stage.config.name, dict(stage.set)) for row in (first, second) for stage in row.stages] == [
        ("one.yaml", {"SOLVER.MAX_ITER": 3, "INPUT.REDRAWS": 1}),
        ("two.yaml", {"SOLVER.MAX_ITER": 4, "INPUT.REDRAWS": 1}),
    ]
    assert (first.test, first.folds, second.test, second.folds) == (False, (0, 1, 2, 3), True, (0,))


def test_published_numbers_stand_under_their_columns(write: Write) -> None:
    file = write(
        "T:\n"
        "  columns: [fold0, mIoU]\n"
        "  benchmark: COCO-20i\n"
        "  command: python a.py\n"
        "  rows:\n"
        "    theirs: {paper: {1-shot: [1.5, 2.5], 5-shot: [null, 3]}}\n"
        "    ours: {config: one.yaml}\n"
    )
    table = read_tables(file)["T"]
    assert table.rows["theirs"].paper == {"1-shot": {"fold0": 1.5, "mIoU": 2.5}, "5-shot": {"mIoU": 3}}
    assert (table.rows["theirs"].stages, table.rows["ours"].paper) == ((), {})
    assert (table.benchmark, table.commands) == ("COCO-20i", ("python a.py",))


def test_keys_of_one_scale(write: Write) -> None:
    """At a small scale each stage has the small config of its method; some rows have no counterpart."""
    for name in ("glyphs_efficientnet_lite0", "stage1_glyphs", "stage1_pascal"):
        (write("{}").parent / f"{name}.yaml").write_text("VERSION: 2\n")
    file = write(
        "T:\n"
        "  config: one.yaml\n"
        "  set: {SEED: 1}\n"
        "  large: {SOLVER.MAX_ITER: 9}\n"
        "  rows:\n"
        "    a: {small: {SOLVER.MAX_ITER: 2}, after: stage1_pascal.yaml}\n"
        "    b: {set: {SEED: 2}, small: False, paper: {1-shot: 5}}\n"
    )
    large, small = (read_tables(file, scale)["T"].rows for scale in ("", "glyphs"))
    assert [dict(row.stages[-1].set) for row in large.values()] == [
        {"SEED": 1, "SOLVER.MAX_ITER": 9},
        {"SEED": 2, "SOLVER.MAX_ITER": 9},
    ]
    assert [(stage.config.stem, stage.set) for stage in small["a"].stages] == [
        ("stage1_glyphs", {}),
        ("glyphs_efficientnet_lite0", {"SEED": 1, "SOLVER.MAX_ITER": 2}),
    ]
    assert (small["b"].stages, small["b"].paper) == ((), {"1-shot": {"mIoU": 5}})
    assert read_tables(write("T: {config: one.yaml, rows: {a: {folds: [0, 3]}}}"), "glyphs")["T"].rows[
        "a"
    ].folds == (0, 3)


def test_a_number_names_its_tables() -> None:
    tables = ["Table 1", "Table 10", "Table 3a, COCO", "Table 3b", "Figure S1", "Table A1"]
    found = {name: find_tables(Path("f"), name, tables) for name in ("1", "3", "3a", "s1", "table a1")}
    assert found == {
        "1": ["Table 1"],
        "3": ["Table 3a, COCO", "Table 3b"],
        "3a": ["Table 3a, COCO"],
        "s1": ["Figure S1"],
        "table a1": ["Table A1"],
    }
    with pytest.raises(ValueError, match="f: there is no table '2'"):
        find_tables(Path("f"), "2", tables)


def test_stages_come_first_to_last(write: Write) -> None:
    """``after`` of the table is a file; that of a row has keys and another stage before it."""
    file = write(
        "T:\n"
        "  config: two.yaml\n"
        "  after: one.yaml\n"
        "  rows:\n"
        "    a: {}\n"
        "    b: {after: {config: one.yaml, set: {SEED: 1}, after: two.yaml}, set: {SEED: 2}}\n"
    )
    rows = read_tables(file)["T"].rows
    assert [(stage.config.stem, stage.set) for stage in rows["a"].stages] == [("one", {}), ("two", {})]
    assert [(stage.config.stem, stage.set) for stage in rows["b"].stages] == [
        ("two", {}),
        ("one", {"SEED": 1}),
        ("two", {"SEED": 2}),
    ]


def test_the_keys_of_a_row_are_applied(write: Write) -> None:
    """Lists become the tuples that configs have; what a row does not name stays as in its config."""
    file = write("T: {config: one.yaml, rows: {a: {set: {TEST.SCALES: [64, 96], SOLVER.BASE_LR: 2.0}}}}")
    cfg = read_tables(file)["T"].rows["a"].stages[-1].load()
    assert (cfg.TEST.SCALES, cfg.SOLVER.BASE_LR, cfg.TEST.COUNTING) == ((64, 96), 2.0, "hsnet")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", r"paper.yaml: \[1, 2\] is no mapping"),
        ("T: {rows: [a]}", r"paper.yaml: T, rows: \['a'\] is no mapping"),
        ("T: {abuot: x, rows: {}}", "paper.yaml: T: there is no field 'abuot'; did you mean 'about'"),
        ("T: {config: one.yaml, rows: {a: }}", "T, row 'a': None is no mapping"),
        ("T: {rows: {a: {sett: {}}}}", "T, row 'a': there is no field 'sett'; did you mean 'set'"),
        ("T: {rows: {a: {}}}", "T, row 'a': it names no config"),
        ("T: {rows: {a: {config: one.yaml, set: [1]}}}", r"T, row 'a': \[1\] is no mapping"),
        ("T: {rows: {a: {config: one.yaml, test: 1}}}", "T, row 'a': test is 1"),
        ("T: {rows: {a: {config: one.yaml, folds: 0}}}", r"folds 0; give True or False, a list of numbers"),
        ("T: {rows: {a: {config: one.yaml, after: {rows: 1}}}}", "T, row 'a': there is no field 'rows'"),
        ("T: {config: one.yaml, rows: {a b: {}, a+b: {}}}", "T: the names of two rows differ in punctuation"),
        ("T: {rows: {a: {paper: {1-shot: [1, 2]}}}}", r"T, row 'a': 1-shot has 2 numbers for the columns"),
        ("T: {a: [", "paper.yaml: not YAML"),
    ],
)
def test_wrong_files_are_refused(write: Write, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_tables(write(text))


def test_missing_files_are_refused(write: Write) -> None:
    with pytest.raises(FileNotFoundError, match=r"row 'a': config .*three.yaml does not exist"):
        read_tables(write("T: {rows: {a: {config: three.yaml}}}"))
    with pytest.raises(FileNotFoundError, match=r"nowhere.yaml does not exist"):
        read_tables("nowhere.yaml")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("{TEST.KSHOTS: vote}", "no config key TEST.KSHOTS; did you mean TEST.KSHOT"),
        ("{SOLVER.MAX_ITER: many}", "SOLVER.MAX_ITER takes a whole number, not 'many'"),
    ],
)
def test_a_wrong_key_names_file_and_row(write: Write, keys: str, message: str) -> None:
    stage = (
        read_tables(write(f"T: {{config: one.yaml, rows: {{a: {{set: {keys}}}}}}}"))["T"].rows["a"].stages[0]
    )
    with pytest.raises(ValueError, match=rf"^\S*paper.yaml: T, row 'a': .*{message}"):
        stage.load()


def test_names() -> None:
    assert slug("Table A3 PASCAL-5i, w/o MS") == "table_a3_pascal_5i_w_o_ms"
    assert closest("here", "table", "table 3A", ["Table 3a", "Table 3b"]) == "Table 3a"
    with pytest.raises(ValueError, match=re.escape("here: there is no row 'sam'; did you mean 'SAM + FFM'?")):
        closest("here", "row", "sam", ["SAM + FFM", "x"])
    with pytest.raises(ValueError, match="there is no row 'a'; it has none at all"):
        closest("here", "row", "a", [])
