#!/usr/bin/env python3
"""Compare two results that were scored on the same episodes: a paired bootstrap, and each class.

    python tools/compare_results.py output/a/inference/glyphs_fold0_val_1shot \\
        output/b/inference/glyphs_fold0_val_1shot
    python tools/compare_results.py output/a output/b --unit query --output comparison.json

A folder is that of one evaluation, or of a run, of which all evaluations that both runs have are compared.
--unit says what is drawn with replacement: episodes, query pictures (each with all of its episodes, since
pictures repeat) or classes. By default all three intervals are shown. docs/PROTOCOL.md says which answers
what.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from fss_d2.engine.command_line import documented_parser, path_option, run_command
from fss_d2.io.files import write_json

UNITS = ("episode", "query", "class")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = documented_parser(__doc__)
    add = parser.add_argument
    add("a", type=path_option, metavar="A", help="folder of an evaluation or of a run")
    add("b", type=path_option, metavar="B", help="the one that A is compared with")
    add("--unit", nargs="+", choices=UNITS, default=UNITS, help="what is resampled; default: each")
    add("--resamples", type=int, default=1000, metavar="N")
    add("--seed", type=int, default=0, metavar="S", help="of the resamples")
    add("--output", type=path_option, metavar="FILE", help="write the numbers as JSON")
    args = parser.parse_args(argv)
    if args.resamples < 1:
        parser.error("--resamples must be at least 1")
    return args


def evaluations(a: Path, b: Path) -> dict[str, tuple[Path, Path]]:
    """The pairs of evaluations of two folders by name."""
    if (a / "episodes.jsonl").is_file() or (b / "episodes.jsonl").is_file():
        return {b.name: (a, b)}
    found = {each.parent.name: each.parent for each in sorted(a.glob("inference/*/episodes.jsonl"))}
    others = {each.parent.name: each.parent for each in sorted(b.glob("inference/*/episodes.jsonl"))}
    pairs = {name: (folder, others[name]) for name, folder in found.items() if name in others}
    if not pairs:
        both = f"{a} has {', '.join(found) or 'none'}, {b} has {', '.join(others) or 'none'}"
        raise ValueError(f"the two have no evaluation in common: {both}")
    return pairs


def main(argv: Sequence[str] | None = None) -> None:
    """Run the tool."""
    args = parse(argv)
    from fss_d2.evaluation.comparison import compare_classes, compare_folders, format_comparison

    content = {}
    for name, pair in evaluations(args.a, args.b).items():
        options = {"resamples": args.resamples, "seed": args.seed}
        by_unit = {unit: compare_folders(*pair, unit=unit, **options) for unit in args.unit}
        classes = compare_classes(*pair)
        print(f"## {name}\n\na: {pair[0]}\nb: {pair[1]}\n\n{format_comparison(by_unit, classes)}\n")
        content[name] = {"by": {unit: asdict(each) for unit, each in by_unit.items()}, "classes": classes}
    if args.output:
        write_json(args.output, {"a": str(args.a), "b": str(args.b), "evaluations": content})


if __name__ == "__main__":
    sys.exit(run_command(main))
