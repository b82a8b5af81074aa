from pathlib import Path

import pytest

from tests.data.datasets.archives import snapshot
from tests.data.datasets.conftest import Script

SMALL = ("--size", 32, "--images-per-class", 1, "--workers", 0)


def test_prepares_checks_and_counts(
    tmp_path: Path, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script("glyphs", "--root", tmp_path, *SMALL) == 0
    assert "glyphs_fold2_val        20 images, 20 classes" in capsys.readouterr().out.splitlines()
    before = snapshot(tmp_path)
    assert script("glyphs", "--root", tmp_path, "--check") == 0
    assert snapshot(tmp_path) == before


def test_root_is_that_of_the_environment(
    tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    assert script("glyphs", *SMALL) == 0
    assert (tmp_path / "data/glyphs/index.json").is_file()


def test_errors_are_one_line(tmp_path: Path, script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    assert script("glyphs", "--root", tmp_path, "--check") == 1
    assert script("glyphs", "--root", tmp_path, "--size", 4) == 1
    script("glyphs", "--root", tmp_path, *SMALL)
    assert script("glyphs", "--root", tmp_path, *SMALL, "--seed", 5) == 1
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 3
    assert "index.json" in errors[0]
    assert "size >= 32" in errors[1]
    assert "'seed': 0" in errors[2] and "'seed': 5" in errors[2]
