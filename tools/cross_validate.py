#!/usr/bin/env python3
"""Train and evaluate methods on all folds with several seeds, and report them in one table.

    python tools/cross_validate.py --folds 0 1 2 3 --shots 1 5 --seeds 0 1 2 --config-file \\
        configs/prototype/glyphs_efficientnet_lite0.yaml configs/dcama/glyphs_efficientnet_lite0.yaml \\
        configs/mmformer/stage1_glyphs.yaml+configs/mmformer/stage2_glyphs.yaml

Each method, fold and seed is one run of train_net.py in a folder of its own; a training-free method is only
evaluated, and A+B trains B from A's final weights. Started again, the command skips the runs that are
finished and resumes those that were interrupted. A seed stands for the initial weights, the training episodes
and the test episodes. All methods take data, episodes, input size and counting of the test from the first,
and are compared with it episode by episode; KEY VALUE pairs hold for all.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from fss_d2.engine.command_line import add_launch_arguments, parse_command_line, plan_from, run_command
from fss_d2.files import write_atomic

if TYPE_CHECKING:  # imported late, so that --help is quick
    from fss_d2.engine.cross_validation import Run

logger = logging.getLogger("fss_d2.cross_validate")

_PROGRAM = Path(__file__).resolve().parents[1] / "train_net.py"
_CONSOLE = "console.txt"  # in a run's folder: what it prints, where several run at once


def start(run: Run, args: argparse.Namespace) -> None:
    """Run train_net.py in a process of its own.

    Raises:
        ValueError: it failed; the message has its error.
    """
    from fss_d2.evaluation.rows import check_writable

    command = [sys.executable, str(_PROGRAM), "--config-file", run.config_file]
    command += ["--eval-only"] if run.eval_only else ["--resume"]
    command += [] if args.num_gpus is None else ["--num-gpus", str(args.num_gpus)]
    command += ["--num-processes", str(args.num_processes), *run.opts]
    environment = dict(os.environ)
    if args.jobs > 1:
        check_writable(run.folder)
        threads = max(1, (os.cpu_count() or 1) // (args.jobs * args.num_processes))
        environment.setdefault("OMP_NUM_THREADS", str(threads))
    reason = "the run failed"
    with (
        (run.folder / _CONSOLE).open("a") if args.jobs > 1 else nullcontext() as file,
        subprocess.Popen(command, stdout=file, stderr=subprocess.PIPE, text=True, env=environment) as process,
    ):
        for line in process.stderr or ():
            if line.startswith("error: "):
                reason = line.removeprefix("error: ").strip()  # is told once, by this program
            else:
                (file or sys.stderr).write(line)
    if process.returncode:
        raise ValueError(f"{run.folder}: {reason} (exit code {process.returncode})")


def run_all(args: argparse.Namespace, starter: Callable[[Run, argparse.Namespace], None] = start) -> str:
    """Do what is left to do, --jobs runs at once, writing the report after each; return it.

    Raises:
        ValueError: a run failed; none is started after it, and those under way are waited for.
    """
    from fss_d2.engine.cross_validation import plan_runs
    from fss_d2.evaluation.rows import check_writable

    runs = plan_runs(args)
    output = runs[0].folder.parents[1]
    check_writable(output)
    done = {run.folder for run in runs if run.finished(args.num_gpus)}
    for folder in sorted(done):
        logger.info("%s is finished, skipped", folder)
    text = _report(args, runs, done) if done else ""
    waiting = [run for run in runs if run.folder not in done]
    under_way: dict[Future[None], Run] = {}
    with ThreadPoolExecutor(args.jobs) as pool:
        while waiting or under_way:
            ready = [run for run in waiting if run.after is None or run.after in done]
            for run in ready[: args.jobs - len(under_way)]:
                logger.info("Run %d of %d: %s", runs.index(run) + 1, len(runs), run.folder)
                waiting.remove(run)
                under_way[pool.submit(starter, run, args)] = run
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                run = under_way.pop(future)
                if future.exception() and under_way:
                    logger.info("%s failed; waiting for %d other runs", run.folder, len(under_way))
                future.result()
                done.add(run.folder)
                text = _report(args, runs, done)
    logger.info("Report in %s:\n%s", output / "cross_validation.md", text)
    return text


def _report(args: argparse.Namespace, runs: Sequence[Run], done: set[Path]) -> str:
    """Write the table of what is done, and return it."""
    from fss_d2.engine.fold_report import collect_scores, markdown, summarize

    scored = [run for run in runs if run.scored]
    first = scored[0].method
    rows = collect_scores((run for run in scored if run.folder in done), first)
    summary = summarize(rows)
    content = {"config_file": args.config_file, "opts": args.opts, "summary": summary, "runs": rows}
    text = markdown(summary, first, len(runs), len(done))
    output = runs[0].folder.parents[1]
    write_atomic(output / "cross_validation.json", (json.dumps(content, indent=2) + "\n").encode())
    write_atomic(output / "cross_validation.md", text.encode())
    return text


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
        help='one a method, data set names with "fold<N>"; A+B: B is trained from the weights of A',
    )
    parser.add_argument("--folds", type=int, nargs="+", default=[0, 1, 2, 3], metavar="F")
    parser.add_argument("--shots", type=int, nargs="+", metavar="K", help="default: FEW_SHOT.TEST.SHOTS")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="S")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at once, on a CPU the fastest")
    parser.add_argument("--eval-only", action="store_true", help="train nothing")
    parser.add_argument(
        "--weights", metavar="PATTERN", help='MODEL.WEIGHTS, "runs/{method}/{fold}/{seed}.pth" for example'
    )
    parser.add_argument("--output", metavar="DIR", help="default: OUTPUT_DIR/cross_validation")
    add_launch_arguments(parser)
    return parse_command_line(parser, arguments)


def main() -> None:
    """Parse, check that the processes can start, run."""
    args = parse_arguments()
    from fss_d2.engine.setup import start_log

    plan_from(args)
    start_log()
    run_all(args)


if __name__ == "__main__":
    sys.exit(run_command(main))
