"""The benchmark of the feature cache, on a tiny training."""

import re
from pathlib import Path

import pytest

from tests.tiny_training import tiny_glyphs
from tools import benchmark_cache

_CONFIG = """
MODEL:
  META_ARCHITECTURE: DCAMA
"""


def test_a_tiny_run_prints_ratios(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with tiny_glyphs(tmp_path, _CONFIG, images_per_class=2) as config:
        benchmark_cache.main(["--config-file", str(config), "--number", "2", "MODEL.DEVICE", "cpu"])
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith(("| training iteration", "| test episode"))]
    assert len(rows) == 2
    assert all(re.fullmatch(r"\| \D+( +\| +\d+\.\d+){3} \|", row) for row in rows)
    assert re.fullmatch(r"\d+ entries of \d\.\d\d MiB each", lines[-1])


def test_wrong_numbers_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmark_cache.parse_arguments(["--config-file", "x.yaml", "--number", "0"])
    assert "--number must be at least 1" in capsys.readouterr().err
