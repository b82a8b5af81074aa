"""The tool that runs tables: which cross-validations it starts, with which configs, and what it prints."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fss_d2.config import load_config
from fss_d2.engine.tables import read_tables
from tools import reproduce

ROOT = Path(__file__).parents[2]
GLYPHS = ROOT / "configs/dcama/glyphs_efficientnet_lite0.yaml"
TABLES = f"""
Table 1:
  about: What counts.
  config: {GLYPHS}
  rows:
    ours: {{}}
    the same: {{set: {{TEST.KSHOT: own}}}}
    other: {{set: {{MODEL.DCAMA.DROPOUT: 0.5, SOLVER.MAX_ITER: 2}}, paper: {{1-shot: 40}}}}
    theirs: {{config: null, paper: {{1-shot: 50}}}}
Table 2:
  config: {GLYPHS}
  test: True
  rows:
    votes: {{set: {{TEST.KSHOT: vote}}, folds: [0, 1]}}
    wide: {{set: {{MODEL.DCAMA.DROPOUT: 0.25, TEST.REGION_WISE: True}}}}
    ours: {{}}
Table 3:
  config: {ROOT}/configs/mmformer/stage2_glyphs.yaml
  rows:
    "10":
      after: {{config: {ROOT}/configs/mmformer/stage1_glyphs.yaml, set: {{MODEL.PROPOSALS.NUM_QUERIES: 10}}}}
      set: {{MODEL.PROPOSALS.NUM_QUERIES: 10}}
"""


class _Started:
    """In place of the processes: their commands, each of which leaves a summary in its --output."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str]) -> int:
        assert command[:2] == [sys.executable, str(ROOT / "tools" / "cross_validate.py")]
        self.commands.append(command[2:])
        output = Path(self.option("--output"))
        output.mkdir(parents=True, exist_ok=True)
        entry = {"test_set": "glyphs_val", "shots": 1, "metric": "mIoU", "mean": 40.0 + len(self.commands)}
        (output / "cross_validation.json").write_text(json.dumps({"summary": [entry], "runs": []}))
        return 0

    def option(self, name: str) -> str:
        """The value of an option of the last command."""
        return self.commands[-1][self.commands[-1].index(name) + 1]


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Started:
    (tmp_path / "paper.yaml").write_text(TABLES)
    monkeypatch.chdir(tmp_path)
    started = _Started()
    monkeypatch.setattr(reproduce, "_run", started)
    return started


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "--table", "paper.yaml", *arguments])
    reproduce.main()


def test_rows_are_cross_validated_with_their_configs(
    started: _Started, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows that change nothing share the config's runs; another has a file that train_net.py reads."""
    _run(monkeypatch, "Table 1", "--", "--jobs", "2", "SOLVER.MAX_ITER", "9")
    files = [command[1] for command in started.commands]
    other = "output/tables/paper/table_1_other.yaml"
    assert files == [str(GLYPHS), str(GLYPHS), other]
    assert started.commands[2][2:] == [
        *("--folds", "0", "1", "2", "3", "--seeds", "0", "--output", "output/tables/paper"),
        *("--jobs", "2", "SOLVER.MAX_ITER", "9"),
    ]
    cfg, base = load_config(other, num_gpus=0), load_config(str(GLYPHS), num_gpus=0)
    assert (cfg.MODEL.DCAMA.DROPOUT, cfg.SOLVER.MAX_ITER) == (0.5, 2)
    assert cfg.OUTPUT_DIR == "output/tables/paper/table_1_other"
    assert cfg.DATASETS == base.DATASETS
    printed = capsys.readouterr().out
    assert "paper.yaml: Table 1 (%)" in printed
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines()]
    assert ["other", "1", "43.00", "40.00", "+3.00"] in lines
    assert ["the same", "1", "42.00", "", ""] in lines
    rows = json.loads(Path("output/tables/paper/table_1.json").read_text())["rows"]
    assert [rows[name]["scores"][0]["mean"] for name in ("ours", "the same", "other")] == [41.0, 42.0, 43.0]
    assert rows["other"]["paper"] == {"1-shot": {"mIoU": 40}}


def test_rows_of_earlier_calls_stay(started: _Started, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are in the order of the table; a row without config is not run."""
    _run(monkeypatch, "1", "--rows", "other")
    _run(monkeypatch, "1", "--rows", "ours", "theirs")
    content = json.loads(Path("output/tables/paper/table_1.json").read_text())
    assert list(content["rows"]) == ["ours", "other"]
    assert content["rows"]["other"]["scores"][0]["mean"] == 41.0
    assert len(started.commands) == 2
    assert (content["table"], content["scale"]) == ("Table 1", "")


def test_a_small_scale_has_small_configs_and_one_fold(
    started: _Started, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _run(monkeypatch, "Table 3", "--scale", "pascal_part")
    (command,) = started.commands
    stages = [load_config(file, num_gpus=0) for file in command[1].split("+")]
    assert [cfg.DATASETS.TEST for cfg in stages] == [("pascal_part_fold1_val",)] * 2
    assert [cfg.MODEL.PROPOSALS.NUM_QUERIES for cfg in stages] == [10, 10]
    output = "output/tables/paper_pascal_part"
    assert command[2:] == ["--folds", "1", "--seeds", "0", "--output", output]
    assert "this is no reproduction" in capsys.readouterr().out


def test_a_row_that_trains_nothing_tests_its_configs_weights(
    started: _Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    _run(monkeypatch, "table 2", "--rows", "votes", "ours", "--seeds", "3", "--output", "out")
    training, test, ours = started.commands
    assert training[:7] == ["--config-file", str(GLYPHS), "--folds", "0", "1", "--seeds", "3"]
    assert "--eval-only" not in training
    assert test[1] == "out/table_2_votes.yaml"
    weights = "out/DCAMA_glyphs_efficientnet_lite0/fold{fold}_seed{seed}/model_final.pth"
    assert test[-3:] == ["--eval-only", "--weights", weights]
    assert ours[:7] == ["--config-file", str(GLYPHS), "--folds", "0", "1", "2", "3"]


def test_what_only_tests_is_trained_with_its_other_keys(
    started: _Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    _run(monkeypatch, "table 2", "--rows", "wide", "--output", "out")
    training, test = started.commands
    trained, tested = (load_config(command[1], num_gpus=0) for command in (training, test))
    assert training[1] == "out/glyphs_efficientnet_lite0_0_25.yaml"
    assert [cfg.MODEL.DCAMA.DROPOUT for cfg in (trained, tested)] == [0.25, 0.25]
    assert [cfg.TEST.REGION_WISE for cfg in (trained, tested)] == [False, True]
    assert test[-1] == "out/DCAMA_glyphs_efficientnet_lite0_0_25/fold{fold}_seed{seed}/model_final.pth"


def test_given_weights_are_tested(started: _Started, monkeypatch: pytest.MonkeyPatch) -> None:
    _run(monkeypatch, "Table 3", "--weights", "w{fold}.pth", "--folds", "2")
    (command,) = started.commands
    assert command[:4] == ["--config-file", "output/tables/paper/table_3_10.yaml", "--folds", "2"]
    assert command[-3:] == ["--eval-only", "--weights", "w{fold}.pth"]


def test_both_stages_have_their_keys(started: _Started, monkeypatch: pytest.MonkeyPatch) -> None:
    _run(monkeypatch, "Table 3")
    (command,) = started.commands
    files = command[1].split("+")
    assert files == [f"output/tables/paper/table_3_10{part}.yaml" for part in ("_stage1", "")]
    stages = [load_config(file, num_gpus=0) for file in files]
    assert [cfg.MODEL.PROPOSALS.NUM_QUERIES for cfg in stages] == [10, 10]
    assert [cfg.MODEL.META_ARCHITECTURE for cfg in stages] == ["PotentialObjectsSegmenter", "MMFormer"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Tabel 2"], "paper.yaml: there is no table 'Tabel 2'; did you mean 'Table 2'"),
        (["4"], "paper.yaml: there is no table '4'; did you mean 'Table"),
        (["Table 1", "--rows", "othr"], "paper.yaml: Table 1: there is no row 'othr'; did you mean 'other'"),
        (
            ["Table 2", "--rows", "votes", "--folds", "1", "2"],
            r"row 'votes': --folds \[1, 2\]; it has \[0, 1\]",
        ),
    ],
)
def test_what_is_not_there_is_refused(
    started: _Started, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        _run(monkeypatch, *arguments)
    assert started.commands == []


def test_a_wrong_key_is_refused_before_the_first_run(
    started: _Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("paper.yaml").write_text(TABLES.replace("MODEL.DCAMA.DROPOUT", "MODEL.DCAMA.DROP"))
    with pytest.raises(
        ValueError, match=r"paper.yaml: Table 1, row 'other': .*did you mean MODEL.DCAMA.DROPOUT"
    ):
        _run(monkeypatch, "Table 1")
    assert started.commands == []


def test_a_failed_run_ends_the_command(started: _Started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce, "_run", lambda command: 7)
    with pytest.raises(SystemExit) as ended:
        _run(monkeypatch, "Table 1")
    assert ended.value.code == 7


@pytest.mark.parametrize("arguments", [["--list"], ["--help"]])
def test_it_answers_without_torch(arguments: list[str]) -> None:
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['reproduce.py', *{arguments}]\n"
        "try:\n    runpy.run_path('tools/reproduce.py', run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "assert not {'torch', 'detectron2'} & set(sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    if arguments == ["--list"]:
        for file in (ROOT / "configs" / "tables").glob("*.yaml"):
            for name, table in read_tables(file).items():
                assert f"  {name}: {table.about}" in result.stdout
        assert (
            "    box: configs/dpcn/pascal5i_r50.yaml FEW_SHOT.TEST.SUPPORT_ANNOTATION=box (test only)"
            in result.stdout
        )


def test_a_table_must_be_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "--table", "paper.yaml"])
    with pytest.raises(SystemExit) as ended:
        reproduce.main()
    assert ended.value.code == 2
    assert "the name of a table" in capsys.readouterr().err
