"""The benchmark's table and one tiny run."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_a_tiny_run_prints_ratios_and_writes_numbers(tmp_path: Path) -> None:
    output = tmp_path / "numbers.json"
    command = [sys.executable, ROOT / "tools" / "benchmark.py", "--shots", "2", "--size", "32"]
    options = ["--device", "cpu", "--threads", "1", "--repeats", "1", "--output", output]
    done = subprocess.run([*command, *options], capture_output=True, text=True, cwd=ROOT, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == "DCAMA, resnet50, 32x32, cpu, 1 threads"
    plain, fused = (line.split(" | ") for line in lines[-2:])
    assert (plain[1], plain[6], fused[1]) == ("plain", "1.00", "fused")
    rows = json.loads(output.read_text())["results"]
    assert [row["attention"] for row in rows] == ["plain", "fused"]
    assert all(0 < row["backbone_seconds"] < 60 and 0 < row["seconds"] < 60 for row in rows)


def test_a_folder_that_does_not_exist_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("benchmark", ROOT / "tools" / "benchmark.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmark"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    with pytest.raises(SystemExit) as stop:
        module.main(["--output", str(tmp_path / "none" / "x.json")])
    assert stop.value.code == 2
    assert "make it first" in capsys.readouterr().err
