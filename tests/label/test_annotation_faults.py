"""Annotation files with random faults are read or refused, in bounded time and memory."""

import json
import subprocess
import sys
from pathlib import Path


def test_random_faults(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.label.annotation_faults", str(tmp_path), "3", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, "\n".join(done.stderr.splitlines()[-20:])
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["read"] > 10 and counts["refused"] > 50
    assert counts["slowest"] < 2  # seconds
