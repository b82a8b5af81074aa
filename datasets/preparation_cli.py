"""Command line that the preparation scripts share."""

import argparse
import os
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from fss_d2.engine.command_line import documented_parser, path_option, start_log


def root_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the option ``--root``."""
    parser = documented_parser(description)
    root = os.environ.get("DETECTRON2_DATASETS", "datasets")
    parser.add_argument(
        "--root", type=path_option, default=root, help="default: $DETECTRON2_DATASETS or datasets"
    )
    return parser


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options of the preparations of published sets."""
    parser = root_parser(description)
    parser.add_argument("--workers", type=int, default=2, help="worker processes; 0 works in this one")
    parser.add_argument("--lists", type=path_option, help="folder with published split lists to install")
    parser.add_argument("--check", action="store_true", help="write nothing; verify and count what is there")
    return parser


def run(
    args: argparse.Namespace, preparation: ModuleType, checked: Mapping[str, Any] = {}, **more: Any
) -> int:
    """Call the module's ``prepare`` (unless ``--check``), then ``check``, and print its counts and faults.

    Both get the root and ``checked``, ``prepare`` also ``more``. The exit code is 1 if an input is missing or
    a prepared file is missing or broken; counts that differ from published ones leave it at 0.
    """
    from fss_d2.data.datasets.preparation import format_counts

    try:
        if args.workers < 0:
            raise ValueError(f"--workers {args.workers} is negative, use 0 or more")
        if not args.check:
            start_log()
            preparation.prepare(args.root, workers=args.workers, lists=args.lists, **checked, **more)
        counts, faults = preparation.check(args.root, **checked)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(format_counts(counts))
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    return 1 if faults else 0
