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

from fss_d2.engine.command_line import add_launch_arguments, parse_command_line, plan_from, run_command

if TYPE_CHECKING:  # imported late, so that --help is quick
    from fss_d2.engine.cross_validation import Run

_PROGRAM = Path(__file__).resolve().parents[1] / "train_net.py"
_CONSOLE = "console.txt"  # in the folder of a run: its output, if several runs are done at once


def start(run: Run, args: argparse.Namespace) -> None:
    """Run train_net.py in a process of its own.

    Raises:
        ValueError: the run failed; the message contains its error.
    """
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
        subprocess.Popen(command, stdout=file, stderr=subprocess.PIPE, text=True, env=environment) as process,
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
    parser = argparse.ArgumentParser(
        description="Train and evaluate methods on all folds with several seeds."
    )
    parser.add_argument(
        "--config-file",
        required=True,
        nargs="+",
        metavar="FILE",
        help='one per method; data set names contain "fold<N>"; A+B: B starts from the weights of A',
    )
    parser.add_argument("--folds", type=int, nargs="+", default=[0, 1, 2, 3], metavar="F")
    parser.add_argument("--shots", type=int, nargs="+", metavar="K", help="default: FEW_SHOT.TEST.SHOTS")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="S")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at once, faster on a CPU")
    parser.add_argument("--eval-only", action="store_true", help="train nothing")
    parser.add_argument(
        "--weights", metavar="PATTERN", help='MODEL.WEIGHTS, "runs/{method}/{fold}/{seed}.pth" for example'
    )
    parser.add_argument("--output", metavar="DIR", help="default: OUTPUT_DIR/cross_validation")
    add_launch_arguments(parser)
    return parse_command_line(parser, arguments)


def main() -> None:
    """Run the tool; wrong arguments are reported before the first run."""
    args = parse_arguments()
    plan_from(args)
    from fss_d2.engine.cross_validation import run_all
    from fss_d2.engine.setup import start_log

    start_log()
    run_all(args, start)


if __name__ == "__main__":
    sys.exit(run_command(main))
