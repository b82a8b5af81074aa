"""Makes the virtual environment `.venv`; `make` runs this with the Python that it was given.

Choices, as environment variables (or `make setup NAME=value`); each is remembered until it is set again:
    PYTHON       the interpreter; if it can already import torch and torchvision, they are used as they
                 are, and so is its detectron2
    TORCH_SPEC   what pip installs as torch and torchvision, instead of that
    TORCH_INDEX  one more package index for it, such as PyTorch's index of CPU-only builds

Standard library only. This file and its imports up to `main` must parse and run on a Python that is too old,
to say so.
"""

import contextlib
import fcntl
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Iterator, Tuple  # noqa: UP035  (an old Python must get as far as the version check)

OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 12)
JOURNAL = "fss_d2_setup.json"  # in .venv, see tools/environment/journal.py


def python_problem(version: Tuple[int, int]) -> str:  # noqa: UP006
    """One line on why this version of Python cannot be used, or "" when it can."""
    if OLDEST_PYTHON <= version <= NEWEST_PYTHON:
        return ""
    names = [f"python3.{minor}" for minor in range(NEWEST_PYTHON[1], OLDEST_PYTHON[1] - 1, -1)]
    found = [name for name in names if shutil.which(name)]
    mend = f"run `make setup PYTHON={found[0]}`" if found else "install one and run `make setup PYTHON=...`"
    wanted = f"{OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]} to {NEWEST_PYTHON[0]}.{NEWEST_PYTHON[1]}"
    return f"Python {wanted} is needed, this is {version[0]}.{version[1]}: {mend}"


def remembered_python(journal: Path) -> str:
    """The interpreter that an earlier run was given, or "" when there was none or it is gone."""
    try:
        chosen = json.loads(journal.read_text())["choices"]["PYTHON"].rpartition(" ")[0]
    except (OSError, ValueError, KeyError):
        return ""
    return chosen if os.access(chosen, os.X_OK) else ""


@contextlib.contextmanager
def only_one_at_a_time(root: Path) -> Iterator[None]:
    """Hold a lock on the repository folder, so that two runs do not build one environment together."""
    descriptor = os.open(str(root), os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.stdout.write("setup: waiting for another run to finish\n")
            sys.stdout.flush()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def main() -> int:
    """Make or refresh the environment; exit code 0 when it is ready, 1 with one clear line when not."""
    root = Path(__file__).resolve().parent.parent
    chosen = "" if os.environ.get("PYTHON") else remembered_python(root / ".venv" / JOURNAL)
    if chosen not in ("", sys.executable):
        os.environ["PYTHON"] = chosen
        os.execv(chosen, [chosen, __file__])
    problem = python_problem(sys.version_info[:2])
    if problem:
        sys.stderr.write(f"setup: {problem}\n")
        return 1
    sys.path.insert(0, str(root))
    from tools.environment.builder import Environment
    from tools.environment.commands import SetupError

    try:
        with only_one_at_a_time(root):
            Environment(root).make()
    except SetupError as error:
        sys.stderr.write(f"setup: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nsetup: interrupted; run it again (what was downloaded is kept)\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
