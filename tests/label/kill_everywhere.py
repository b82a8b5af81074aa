"""Kill the auto-labeller at each of its writes and let it go on; a program, with the folder of a test.

The folder has `supports`, `images` and `late.png`, which comes to the images between the kill and the run
that goes on. Writes `killed 1`, `killed 2`, ... and `whole`, the same without a kill.
"""

import itertools
import os
import signal
import sys
from pathlib import Path

import fss_d2  # noqa: F401  isort: skip  (before detectron2: fss_d2.compat)
from fss_d2.label.job import Job, run_job
from fss_d2.label.supports import read_supports
from tests.label.fakes import ColourPredictor


def _work(root: Path, output: str, kill_at: int) -> None:
    """Label; the process dies where it would put its ``kill_at``-th file in place, 0: never."""
    replace, writes = os.replace, itertools.count(1)

    def deadly(source: Path, target: Path) -> None:
        if next(writes) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = deadly
    run_job(Job(root / "images", root / output), ColourPredictor(), read_supports(root / "supports"))


def _in_child(root: Path, output: str, kill_at: int = 0) -> int:
    """Do it in another process; return its exit code, negative for a signal."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            _work(root, output, kill_at)
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(root: Path) -> int:
    """Kill at each write, until a run has no more of them."""
    late, place = root / "late.png", root / "images/late.png"
    for number in itertools.count(1):
        ended = _in_child(root, f"killed {number}", kill_at=number)
        late.rename(place)
        finished = _in_child(root, f"killed {number}")
        if ended == 0:  # came to its end: a run of fewer images, then one of all
            return finished or _in_child(root, "whole")
        place.rename(late)
        if ended != -signal.SIGKILL or finished:
            return 1
    return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
