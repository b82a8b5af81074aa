#!/usr/bin/env python3
"""Train and evaluate methods on all folds with several seeds, and report them in one table.

    python tools/cross_validate.py --folds 0 1 2 3 --shots 1 5 --seeds 0 1 2 --config-file \\
        configs/prototype/glyphs_efficientnet_lite0.yaml configs/dcama/glyphs_efficientnet_lite0.yaml \\
        configs/mmformer/stage1_glyphs.yaml+configs/mmformer/stage2_glyphs.yaml

Each method, fold and seed is one run of train_net.py in its own folder; a training-free method is only
evaluated, and A+B trains B from the final weights of A. Started again, the command skips finished runs and
resumes interrupted ones. A seed determines the initial weights, the training episodes and the test episodes.
All methods take the test settings (data, episodes, supports, input size, counting) from the first method and
are compared with it episode by episode; KEY VALUE pairs apply to all.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from fss_d2.engine import command_line
from fss_d2.engine.signals import Commands, forwarding

if TYPE_CHECKING:  # imported late, so that --help is quick
    from fss_d2.engine.cross_validation import Run

_PROGRAM = Path(__file__).resolve().parents[1] / "train_net.py"
_COMMANDS = Commands()
_CONSOLE = "console.txt"  # in the folder of a run: its output, if several runs are done at once


def start(run: Run, args: argparse.Namespace) -> None:
    """Run train_net.py in a process of its own; a run that fails is a ValueError with its message."""
    command = [sys.executable, str(_PROGRAM), "--config-file", run.config_file]
    command += ["--eval-only"] if run.eval_only else ["--resume"]
    command += [] if args.num_gpus is None else ["--num-gpus", str(args.num_gpus)]
    command += ["--num-processes", str(args.num_processes), *run.opts]
    environment = dict(os.environ)
    if args.jobs > 1:
        run.folder.mkdir(parents=True, exist_ok=True)
        threads = max(1, (os.cpu_count() or 1) // (args.jobs * args.num_processes))
        environment.setdefault("OMP_NUM_THREADS", str(threads))
    reason = "the run failed"
    with (
        (run.folder / _CONSOLE).open("a") if args.jobs > 1 else nullcontext() as file,
        _COMMANDS.start(command, stdout=file, stderr=subprocess.PIPE, env=environment) as process,
    ):
        for line in process.stderr or ():
            if line.startswith("error: "):
                reason = line.removeprefix("error: ").strip()  # reported once, by this program
            else:
                (file or sys.stderr).write(line)
    if process.returncode:
        raise ValueError(f"{run.folder}: {reason} (exit code {process.returncode})")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; None takes that of the process."""
    parser = command_line.documented_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    note = 'one per method; data set names contain "fold<N>"; A+B: B starts from the weights of A'
    add("--config-file", required=True, nargs="+", metavar="FILE", help=note)
    add("--folds", type=int, nargs="+", default=[0, 1, 2, 3], metavar="F")
    add("--shots", type=int, nargs="+", metavar="K", help="default: FEW_SHOT.TEST.SHOTS")
    add("--seeds", type=int, nargs="+", default=[0], metavar="S")
    add("--jobs", type=int, default=1, metavar="N", help="runs at once, faster on a CPU")
    add("--eval-only", action="store_true", help="train nothing")
    note = 'MODEL.WEIGHTS, "runs/{method}/{fold}/{seed}.pth" for example'
    add("--weights", metavar="PATTERN", help=note)
    add("--output", type=command_line.path_option, metavar="DIR", help="default: OUTPUT_DIR/cross_validation")
    command_line.add_launch_arguments(parser)
    return command_line.parse_command_line(parser, arguments)


def main() -> None:
    """Run the tool."""
    args = parse_arguments()
    command_line.plan_from(args)  # wrong arguments are reported before the first run
    from fss_d2.engine.cross_validation import run_all

    command_line.start_log()
    with forwarding(_COMMANDS.send, "; the same command goes on where the runs stopped"):
        run_all(args, start)


if __name__ == "__main__":
    sys.exit(command_line.run_command(main))
