"""Command line and config of the programs that train and evaluate."""

import argparse
import itertools
import re
import sys
from collections.abc import Sequence

from fss_d2.config import get_cfg, load_config

from .launch import LaunchPlan

__all__ = ["add_launch_arguments", "argument_parser", "load_config", "parse_command_line", "plan_from"]

_DOTTED_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)+")  # SOLVER.BASE_LR


def argument_parser(description: str) -> argparse.ArgumentParser:
    """The arguments of Detectron2's programs; parse them with `parse_command_line`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="YAML config")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, do not train")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR, if there is one"
    )
    add_launch_arguments(parser)
    return parser


def parse_command_line(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None
) -> argparse.Namespace:
    """Parse flags and ``KEY VALUE`` pairs in any order; the pairs become ``opts``.

    Args:
        parser: knows the flags; gets the positional "opts" added.
        arguments: None takes those of the process.
    """
    parser.add_argument(
        "opts", nargs="*", metavar="KEY VALUE", help="config keys to change, SOLVER.BASE_LR 0.01 for example"
    )
    top_level = get_cfg()
    flags, pairs = [], []
    rest = iter(sys.argv[1:] if arguments is None else arguments)
    for word in rest:
        # Taken out beforehand, as a flag of several values ("--folds 0 1 KEY VALUE") would swallow them.
        if _DOTTED_KEY.fullmatch(word) or word in top_level:
            pairs += [word, *itertools.islice(rest, 1)]
        else:
            flags.append(word)
    args = parser.parse_intermixed_args(flags)
    args.opts += pairs
    return args


def add_launch_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say how many processes run, and where."""
    group = parser.add_argument_group("processes (not needed under torchrun)")
    group.add_argument(
        "--num-gpus", type=int, metavar="N", help="GPUs per machine; default: 1 if there is one"
    )
    group.add_argument(
        "--num-processes", type=int, default=1, metavar="N", help="CPU processes per machine, without GPUs"
    )
    group.add_argument("--num-machines", type=int, default=1, metavar="N")
    group.add_argument("--machine-rank", type=int, default=0, metavar="R", help="0 to N-1")
    group.add_argument(
        "--dist-url", default="auto", metavar="URL", help="tcp://HOST:PORT of machine 0, for several machines"
    )


def plan_from(args: argparse.Namespace) -> LaunchPlan:
    """The plan that the arguments of `add_launch_arguments` describe.

    Raises:
        ValueError: the arguments contradict each other, or ask for GPUs that are not there.
    """
    return LaunchPlan(
        num_gpus=args.num_gpus,
        num_processes=args.num_processes,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
    )
