#!/usr/bin/env python3
"""Train and evaluate on all folds with several seeds, and report mean and deviation.

    python tools/cross_validate.py --config-file configs/dcama/glyphs_efficientnet_lite0.yaml \\
        --baseline configs/prototype/glyphs_efficientnet_lite0.yaml --folds 0 1 2 3 --shots 1 5 --seeds 0 1 2

Each (fold, seed) is one run of train_net.py in a folder of its own. Started again, the command skips the runs
that are finished and resumes the one that was interrupted. A seed stands for the initial weights, the
training episodes and the test episodes; a baseline is evaluated on the same test episodes, seed by seed.
"""

import argparse
import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fss_d2.engine.arguments import add_launch_arguments, load_config, parse_command_line, plan_from
from fss_d2.engine.errors import run_command
from fss_d2.engine.fold_report import METRICS, markdown, summarize
from fss_d2.engine.setup import start_log
from fss_d2.evaluation.report import TASK
from fss_d2.evaluation.rows import check_writable
from fss_d2.files import write_atomic

if TYPE_CHECKING:
    from detectron2.config import CfgNode

logger = logging.getLogger("fss_d2.cross_validate")

_PROGRAM = Path(__file__).resolve().parents[1] / "train_net.py"
# What a baseline takes over, so that it answers the same questions on the same pixels.
_SHARED_KEYS = (
    "DATASETS.TEST",
    "DATASETS.FOLDERS",
    "DATASETS.COCO_JSON",
    "FEW_SHOT.REPEAT_SUPPORTS",
    "FEW_SHOT.TEST.EPISODES",
    "FEW_SHOT.TEST.QUERY_RULE",
    "FEW_SHOT.TEST.MANIFEST",
    "INPUT.FEW_SHOT_SIZE",
    "INPUT.TEST_RESIZE",
    "TEST.FRAME",
    "TEST.COUNTING",
    "TEST.ABSENT_CLASSES",
)


@dataclass(frozen=True)
class Run:
    """One fold and seed of one method.

    Attributes:
        method: its name in the report.
        config_file: of the method.
        opts: config keys and values of this run, OUTPUT_DIR among them.
        eval_only: whether nothing is trained.
    """

    method: str
    fold: int
    seed: int
    config_file: str
    opts: tuple[str, ...]
    folder: Path
    eval_only: bool

    def config(self, num_gpus: int | None) -> "CfgNode":
        """The config as train_net.py will see it."""
        return load_config(self.config_file, self.opts, num_gpus=num_gpus)

    def finished(self, num_gpus: int | None) -> bool:
        """Whether the results are there.

        Raises:
            ValueError: the folder holds a run with other settings.
        """
        recorded = self.folder / "config.yaml"
        if recorded.is_file() and recorded.read_text() != self.config(num_gpus).dump():
            raise ValueError(
                f"{self.folder} holds a run with other settings; remove it, or give another --output"
            )
        return recorded.is_file() and (self.folder / "results.json").is_file()

    def scores(self) -> list[dict[str, Any]]:
        """One row per test set and number of shots."""
        results = json.loads((self.folder / "results.json").read_text())["results"]
        return [
            {
                "method": self.method,
                "fold": self.fold,
                "seed": self.seed,
                "test_set": without_fold(name.rpartition("/")[0]),
                "shots": int(name.rpartition("/")[2].removesuffix("shot")),
            }
            | {metric: tasks[TASK][metric] for metric in METRICS}
            for name, tasks in results.items()
        ]


def of_fold(value: Any, fold: int) -> Any:
    """Put a fold into every "fold<N>" of a name, or of the names in a list or dict; "fold": N as well."""
    if isinstance(value, str):
        return re.sub(r"fold\d+", f"fold{fold}", value)
    if isinstance(value, dict):
        return {key: fold if key == "fold" else of_fold(item, fold) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(of_fold(item, fold) for item in value)
    return value


def without_fold(name: str) -> str:
    """The name of a test set, whichever fold: "glyphs_val" for "glyphs_fold2_val"."""
    return re.sub(r"fold\d+_?", "", name)


def plan_runs(args: argparse.Namespace) -> list[Run]:
    """All runs that the arguments ask for, fold by fold, the baseline's first.

    Raises:
        ValueError: several folds of a config whose data sets carry no fold in their names; a number that
            is out of range; a config that does not score episodes.
    """
    main = load_config(args.config_file, args.opts, num_gpus=args.num_gpus)
    if min(args.seeds) < 0 or min(args.shots or [1]) < 1:
        raise ValueError(f"--seeds {args.seeds} must not be negative, --shots {args.shots} be 1 or more")
    if TASK not in main.TEST.EVALUATORS:
        raise ValueError(
            f"{args.config_file}: TEST.EVALUATORS {tuple(main.TEST.EVALUATORS)} lacks {TASK!r}, whose "
            "scores the table shows; cross-validate a config that segments episodes"
        )
    names = [*main.DATASETS.TRAIN, *main.DATASETS.TEST]
    if len(args.folds) > 1 and not any(re.search(r"fold\d", name) for name in names):
        raise ValueError(f'{args.config_file}: no "fold<N>" in the names of {names}; give one --folds only')
    output = Path(args.output or Path(main.OUTPUT_DIR) / "cross_validation")
    runs = []
    for fold in args.folds:
        for seed in args.seeds:
            shared = _shared_opts(main, fold, seed, args.shots)
            if args.baseline:
                runs.append(_baseline_run(args, main, fold, seed, output, shared))
            runs.append(_main_run(args, main, fold, seed, output, shared))
    return runs


def _shared_opts(main: "CfgNode", fold: int, seed: int, shots: Sequence[int]) -> list[str]:
    opts = ["SEED", str(seed), "FEW_SHOT.SEED", str(seed), "FEW_SHOT.TEST.SEED", str(seed)]
    opts += ["FEW_SHOT.TEST.SHOTS", repr(tuple(shots or main.FEW_SHOT.TEST.SHOTS))]
    return opts + _pairs(main, ("DATASETS.TEST", "DATASETS.FOLDERS", "DATASETS.COCO_JSON"), fold)


def _pairs(cfg: "CfgNode", keys: Iterable[str], fold: int) -> list[str]:
    opts: list[str] = []
    for key in keys:
        value: Any = cfg
        for part in key.split("."):
            value = value[part]
        opts += [key, repr(of_fold(value, fold))]
    return opts


def _main_run(
    args: argparse.Namespace, main: "CfgNode", fold: int, seed: int, output: Path, shared: Sequence[str]
) -> Run:
    folder = output / f"fold{fold}_seed{seed}"
    opts = [*args.opts, *shared, *_pairs(main, ("DATASETS.TRAIN",), fold), "OUTPUT_DIR", str(folder)]
    if args.weights:
        try:
            opts += ["MODEL.WEIGHTS", args.weights.format(fold=fold, seed=seed)]
        except (ValueError, KeyError, IndexError) as error:
            raise ValueError(f"--weights {args.weights}: only {{fold}} and {{seed}} are filled in") from error
    name = main.MODEL.META_ARCHITECTURE
    return Run(name, fold, seed, args.config_file, tuple(opts), folder, args.eval_only)


def _baseline_run(
    args: argparse.Namespace, main: "CfgNode", fold: int, seed: int, output: Path, shared: Sequence[str]
) -> Run:
    folder = output / f"baseline_fold{fold}_seed{seed}"
    opts = [*_pairs(main, _SHARED_KEYS, fold), *shared, "OUTPUT_DIR", str(folder)]
    name = load_config(args.baseline).MODEL.META_ARCHITECTURE + " (baseline)"
    return Run(name, fold, seed, args.baseline, tuple(opts), folder, eval_only=True)


def start(run: Run, args: argparse.Namespace) -> None:
    """Run train_net.py in a process of its own.

    Raises:
        ValueError: it failed; the message has its error.
    """
    command = [sys.executable, str(_PROGRAM), "--config-file", run.config_file]
    command += ["--eval-only"] if run.eval_only else ["--resume"]
    command += [] if args.num_gpus is None else ["--num-gpus", str(args.num_gpus)]
    command += ["--num-processes", str(args.num_processes), *run.opts]
    reason = "the run failed"
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr or ():
            if line.startswith("error: "):
                reason = line.removeprefix("error: ").strip()  # is told once, by this program
            else:
                sys.stderr.write(line)
    if process.returncode:
        raise ValueError(f"{run.folder}: {reason} (exit code {process.returncode})")


def run_all(args: argparse.Namespace, starter: Callable[[Run, argparse.Namespace], None] = start) -> str:
    """Do what is left to do, writing the report after each run; return it."""
    runs = plan_runs(args)
    output = runs[0].folder.parent
    check_writable(output)
    rows: list[dict[str, Any]] = []
    text = ""
    for number, run in enumerate(runs, start=1):
        if run.finished(args.num_gpus):
            logger.info("%s is finished, skipped", run.folder)
        else:
            logger.info("Run %d of %d: %s", number, len(runs), run.folder)
            starter(run, args)
        rows += run.scores()
        summary = summarize(rows)
        content = {"config_file": args.config_file, "opts": args.opts, "summary": summary, "runs": rows}
        text = markdown(summary, len(runs), number)
        write_atomic(output / "cross_validation.json", (json.dumps(content, indent=2) + "\n").encode())
        write_atomic(output / "cross_validation.md", text.encode())
    logger.info("Report in %s:\n%s", output / "cross_validation.md", text)
    return text


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; None takes that of the process."""
    parser = argparse.ArgumentParser(description="Train and evaluate on all folds with several seeds.")
    parser.add_argument("--config-file", required=True, metavar="FILE", help='data set names with "fold<N>"')
    parser.add_argument("--folds", type=int, nargs="+", default=[0, 1, 2, 3], metavar="F")
    parser.add_argument("--shots", type=int, nargs="+", metavar="K", help="default: FEW_SHOT.TEST.SHOTS")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="S")
    parser.add_argument(
        "--baseline", metavar="FILE", help="config of a method to evaluate beside it, untrained"
    )
    parser.add_argument("--eval-only", action="store_true", help="train nothing")
    parser.add_argument(
        "--weights", metavar="PATTERN", help='MODEL.WEIGHTS, "runs/{fold}/{seed}.pth" for example'
    )
    parser.add_argument("--output", metavar="DIR", help="default: OUTPUT_DIR/cross_validation")
    add_launch_arguments(parser)
    return parse_command_line(parser, arguments)


def main() -> None:
    """Parse, check that the processes can start, run."""
    args = parse_arguments()
    plan_from(args)
    start_log()
    run_all(args)


if __name__ == "__main__":
    sys.exit(run_command(main))
