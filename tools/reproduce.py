#!/usr/bin/env python3
"""Run rows of a paper's table, or resume them, and print their scores.

    python tools/reproduce.py --list
    python tools/reproduce.py --table configs/tables/dcama.yaml "Table 3"
    python tools/reproduce.py --table configs/tables/dpcn.yaml "Table A2" --row box --folds 0
    python tools/reproduce.py --table configs/tables/jc2a.yaml "Table 3" -- --jobs 2 SOLVER.IMS_PER_BATCH 8

tools/cross_validate.py runs each row over its folds: it skips finished runs and resumes interrupted ones, and
rows with the same config share their runs. What follows "--" goes to it. The output folder gets a config file
for each row that changes its config, a folder for each run, and the scores in <table>.json.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import yaml
from tabulate import tabulate

from fss_d2.engine.command_line import documented_parser, path_option, run_command
from fss_d2.engine.signals import Commands, forwarding
from fss_d2.engine.tables import Row, Stage, Table, closest, read_tables, slug
from fss_d2.io.files import read_json, write_atomic, write_json

_ROOT = Path(__file__).resolve().parents[1]


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; what follows "--" becomes ``rest``."""
    parser = documented_parser("Run rows of a paper's table and print their scores.")
    parser.usage = "%(prog)s --table FILE TABLE [TABLE ...] [options] [-- more of cross_validate.py]"
    add = parser.add_argument
    add("tables", nargs="*", metavar="TABLE", help='the names of tables, "Table 3" for example')
    add(
        "--table",
        type=path_option,
        metavar="FILE",
        help="configs/tables/<paper>.yaml; --list takes all by default",
    )
    add("--list", action="store_true", help="print tables and rows, run nothing")
    add("--row", nargs="+", metavar="NAME", help="default: all rows")
    add("--folds", type=int, nargs="+", metavar="F", help="default: all folds of the row")
    add("--seeds", type=int, nargs="+", metavar="S", help="default: FEW_SHOT.TEST.SEED of the row")
    add("--weights", metavar="PATTERN", help='train nothing, test these: "fold{fold}.pth" for example')
    add("--output", type=path_option, metavar="DIR", help="default: output/tables/<paper>")
    end = [*arguments, "--"].index("--")
    args = parser.parse_args(arguments[:end])
    args.rest = list(arguments[end + 1 :])
    if not args.list and not (args.table and args.tables):
        parser.error('give --table FILE and the name of a table, "Table 3" for example; --list prints all')
    return args


def choose(file: Path, args: argparse.Namespace) -> list[tuple[Table, list[Row]]]:
    """The tables and rows that the arguments name; each row must have the folds."""
    tables = read_tables(file)
    chosen = []
    for table in [tables[closest(file, "table", name, tables)] for name in args.tables or tables]:
        at = f"{file}: {table.name}"
        rows = [table.rows[closest(at, "row", name, table.rows)] for name in args.row or table.rows]
        for row in rows:
            if not {*(args.folds or row.folds)} <= {*row.folds}:
                raise ValueError(f"{at}, row {row.name!r}: --folds {args.folds}; it has {[*row.folds]} only")
        chosen.append((table, rows))
    return chosen


def describe(table: Table, rows: Sequence[Row]) -> str:
    """A table's rows with their configs and keys, one line each."""
    lines = [f"  {table.name}: {table.about}"]
    for row in rows:
        keys = (" ".join(["", *(f"{key}={value}" for key, value in s.set.items())]) for s in row.stages)
        stages = ", then ".join(os.path.relpath(s.config) + k for s, k in zip(row.stages, keys, strict=True))
        lines.append(f"    {row.name}: {stages}{' (test only)' if row.test else ''}")
    return "\n".join(lines)


def write_config(stage: Stage, path: Path) -> str:
    """Write a stage as a config file, unless its keys change nothing; return the file that has its config."""
    if stage.load() == Stage(stage.row, stage.config, {}).load():
        return str(stage.config)
    tree: dict[str, Any] = {"_BASE_": os.path.relpath(stage.config, path.parent)}
    for key, value in {**stage.set, "OUTPUT_DIR": str(path.with_suffix(""))}.items():
        *groups, name = key.split(".")
        reduce(lambda node, group: node.setdefault(group, {}), groups, tree)[name] = value
    write_atomic(path, yaml.safe_dump(tree, sort_keys=False).encode())
    return str(path)


def run_row(name: str, row: Row, output: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Train and test a row over its folds; return its summary. ``name`` is that of its config files."""
    *before, last = row.stages
    cfg = last.load()
    files = [write_config(stage, output / f"{name}_stage{i}.yaml") for i, stage in enumerate(before, 1)]
    trained = [*files, str(last.config)]  # what a row that trains nothing tests
    files.append(write_config(last, output / f"{name}.yaml"))
    seeds, weights = args.seeds or [cfg.FEW_SHOT.TEST.SEED], args.weights
    options = ["--folds", *(args.folds or row.folds), "--seeds", *seeds, "--output", output]
    if row.test and not weights:
        _cross_validate(trained, options, args.rest)
        folder = f"{cfg.MODEL.META_ARCHITECTURE}_{'+'.join(Path(file).stem for file in trained)}"
        weights = "" if files == trained else f"{output}/{folder}/fold{{fold}}_seed{{seed}}/model_final.pth"
    if weights:
        _cross_validate(files[-1:], [*options, "--eval-only", "--weights", weights], args.rest)
    elif not row.test:
        _cross_validate(files, options, args.rest)
    return read_json(output / "cross_validation.json")["summary"]


def _cross_validate(files: Sequence[str], options: Sequence[Any], rest: Sequence[str]) -> None:
    command = [sys.executable, _ROOT / "tools" / "cross_validate.py", "--config-file", "+".join(files)]
    if code := _run([*map(str, [*command, *options, *rest])]):
        sys.exit(code)  # cross_validate.py has printed its error


def _run(command: Sequence[str]) -> int:
    """Run a command, which also gets the signals that come here; return its exit code."""
    commands = Commands()
    with forwarding(commands.send), commands.start(command) as process:
        pass
    return process.returncode


def report(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The scores of rows, means over their folds in percent."""
    cells = []
    for row, summary in results.items():
        scores = {f"{e['test_set']} {e['shots']}-shot {e['metric']}": f"{e['mean']:.2f}" for e in summary}
        cells.append({"": row} | scores)
    return tabulate(cells, headers="keys", tablefmt="pipe", disable_numparse=True, missingval="-")


def main() -> None:
    """List, or check all rows and run one after the other."""
    args = parse_arguments(sys.argv[1:])
    files = [Path(args.table)] if args.table else sorted((_ROOT / "configs" / "tables").glob("*.yaml"))
    chosen = {file: choose(file, args) for file in files}
    if args.list:
        for file, tables in chosen.items():
            print("\n".join([os.path.relpath(file), *(describe(*each) for each in tables)]))
        return
    ((file, tables),) = chosen.items()
    for stage in [stage for _, rows in tables for row in rows for stage in row.stages]:
        stage.load()  # a wrong key is reported before anything runs
    output = args.output or Path("output", "tables", file.stem)
    for table, rows in tables:
        results: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            results[row.name] = run_row(slug(f"{table.name} {row.name}"), row, output, args)
            content = {"table": table.name, "arguments": sys.argv[1:], "rows": results}
            write_json(output / f"{slug(table.name)}.json", content)
        print(f"{file}: {table.name} (%)\n\n{report(results)}\n")


if __name__ == "__main__":
    sys.exit(run_command(main))
