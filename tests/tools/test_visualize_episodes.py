"""The tool that draws episodes of a dataset."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "visualize_episodes.py"
_tool = runpy.run_path(str(TOOL))


def test_draws_as_many_episodes_as_asked_for(dataset: str, tmp_path: Path) -> None:
    out = tmp_path / "pictures"
    argv = ["--dataset", dataset, "--shots", "2", "--num", "3", "--output", str(out), "--height", "64"]
    _tool["main"]([*argv, "DATALOADER.NUM_WORKERS", "0"])
    assert sorted(path.name for path in out.iterdir()) == ["0000.png", "0001.png", "0002.png", "grid.png"]
    rows = [Image.open(out / f"000{i}.png") for i in range(3)]
    # Two squashed (square) supports; query and truth in the query's own proportions.
    assert rows[0].size == (2 * 64 + 2 * 80 + 3 * 4, 64 + 18)
    assert Image.open(out / "grid.png").size == (rows[0].width, 3 * rows[0].height + 2 * 4)


def test_bad_arguments_are_one_line(dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _tool["main"](["--dataset", dataset, "--num", "0", "--output", str(tmp_path)])
    assert "--num must be at least 1" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write to the output folder"):
        _tool["main"](["--dataset", dataset, "--output", str(tmp_path / "file" / "x")])


def test_an_unknown_dataset_is_one_line_and_exit_code_one(tmp_path: Path) -> None:
    argv = [sys.executable, str(TOOL), "--dataset", "coco20i_fold9_val", "--output", str(tmp_path)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: dataset 'coco20i_fold9_val': there is no fold 9")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
