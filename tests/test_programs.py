"""Every program answers --help at once: it imports no torch and no detectron2 before it has its arguments."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fss_d2 import cli
from fss_d2.checkpoint.convert import CONVERTERS
from fss_d2.inference import export_command
from fss_d2.inference.export import FORMATS, INPUT_TYPES
from fss_d2.label import command
from fss_d2.label.writers import FORMATS as LABEL_FORMATS
from tools import convert_checkpoint

ROOT = Path(__file__).parents[1]
PROGRAMS = [
    *sorted(
        str(path.relative_to(ROOT))
        for pattern in ("tools/*.py", "demo/*.py", "datasets/prepare_*.py")
        for path in ROOT.glob(pattern)
    ),
    "train_net.py",
    "fss_d2/cli.py",
    *(f"fss_d2/cli.py {command}" for command in cli._COMMANDS),
    "fss_d2/check_env.py",
]
# One process for all, so a module counts for the first program that imports it.
_RUN_ALL = """
import contextlib, io, json, os, runpy, sys
heavy, answers = {"torch", "detectron2"}, {}
for line in sys.argv[1:]:
    program, *words = line.split()
    sys.argv, sys.path[0] = [program, *words, "--help"], os.path.dirname(os.path.abspath(program))
    code, output = None, io.StringIO()
    with contextlib.redirect_stdout(output):
        try:
            runpy.run_path(program, run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
    imported = heavy & sys.modules.keys()
    heavy -= imported
    answers[line] = code, output.getvalue().split(":")[0], sorted(imported)
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers() -> dict[str, list[object]]:
    """Exit code, first word and heavy imports of each program asked for --help."""
    done = subprocess.run(
        [sys.executable, "-c", _RUN_ALL, *PROGRAMS],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_imports_no_torch(program: str, answers: dict[str, list[object]]) -> None:
    assert answers[program] == [0, "usage", []]


def test_choices_that_are_listed_without_an_import_are_complete() -> None:
    assert tuple(FORMATS) == export_command.FORMATS
    assert tuple(INPUT_TYPES) == export_command.INPUT_TYPES
    assert tuple(sorted(CONVERTERS)) == convert_checkpoint.METHODS
    assert command._FORMATS.split(",") == list(LABEL_FORMATS)
