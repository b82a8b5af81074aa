#!/usr/bin/env python3
"""Run rows of a paper's tables, or resume them, and print their scores next to the published ones.

    python tools/reproduce.py --list
    python tools/reproduce.py --list --table dcama/3
    python tools/reproduce.py --table dcama/3
    python tools/reproduce.py --table dpcn/A2 --rows box --folds 0
    python tools/reproduce.py --table jc2a/3 --scale glyphs
    python tools/reproduce.py --table configs/tables/jc2a.yaml "Table 3" -- --jobs 2 SOLVER.IMS_PER_BATCH 8

tools/cross_validate.py runs each row over its folds: it skips finished runs and resumes interrupted ones, and
rows with the same config share their runs. What follows "--" goes to it. The output folder gets a config file
for each row that changes its config, a folder for each run, and <table>.json with the scores, what they were
made with, and the paired difference to the table's last row. Rows of earlier calls stay in that file.

--scale glyphs (pascal_part) runs the same rows in minutes on that data, with a small backbone, on one fold.
That is no reproduction: it shows the direction of a change at best.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fss_d2.engine.command_line import documented_parser, path_option, run_command
from fss_d2.engine.signals import Commands, forwarding
from fss_d2.engine.tables import SCALES, Row, Table, closest, describe, find_tables, read_tables, slug
from fss_d2.io.files import read_json_object, write_json

_ROOT = Path(__file__).resolve().parents[1]
_TABLES = _ROOT / "configs" / "tables"


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; what follows "--" becomes ``rest``."""
    parser = documented_parser("Run rows of a paper's tables and print their scores.")
    parser.usage = "%(prog)s --table PAPER/TABLE [options] [-- more of cross_validate.py]"
    add = parser.add_argument
    add("tables", nargs="*", metavar="TABLE", help='further tables of the file, "Table 3" for example')
    add("--table", metavar="PAPER/TABLE", help='"dcama/3"; or a file, followed by the names of tables')
    add("--list", action="store_true", help="print tables and rows, run nothing")
    add("--rows", nargs="+", metavar="NAME", help="default: all rows that have a config")
    add("--folds", type=int, nargs="+", metavar="F", help="default: all folds of the row; one with --scale")
    add("--seeds", type=int, nargs="+", metavar="S", help="default: FEW_SHOT.TEST.SEED of the row")
    add("--scale", choices=sorted(SCALES), default="", help="small data and backbone instead")
    add("--weights", metavar="PATTERN", help='train nothing, test these: "fold{fold}.pth" for example')
    add("--output", type=path_option, metavar="DIR", help="default: output/tables/<paper>[_<scale>]")
    end = [*arguments, "--"].index("--")
    args = parser.parse_args(arguments[:end])
    args.rest = list(arguments[end + 1 :])
    args.file = None
    if args.table:
        paper, _, name = args.table.partition("/")
        if (_TABLES / f"{paper}.yaml").is_file():
            args.file, args.tables = _TABLES / f"{paper}.yaml", [*([name] if name else []), *args.tables]
        else:
            args.file = Path(path_option(args.table))
    if not args.list and not (args.file and args.tables):
        parser.error("give --table PAPER/TABLE, or a file and the name of a table; --list prints all")
    return args


def choose(file: Path, args: argparse.Namespace) -> list[tuple[Table, list[Row]]]:
    """The tables and rows that the arguments name; each row must have the folds."""
    tables = read_tables(file, args.scale)
    names = [found for name in args.tables for found in find_tables(file, name, tables)] or list(tables)
    chosen = []
    known = [row for name in names for row in tables[name].rows]
    wanted = {closest(f"{file}: {', '.join(names)}", "row", name, known) for name in args.rows or ()}
    for table in [tables[name] for name in names]:
        rows = [row for row in table.rows.values() if (row.name in wanted) or not wanted]
        for row in rows:
            if not {*(args.folds or row.folds)} <= {*row.folds}:
                what = f"{file}: {table.name}, row {row.name!r}"
                raise ValueError(f"{what}: --folds {args.folds}; it has {[*row.folds]} only")
        if rows or args.list:
            chosen.append((table, rows))
    return chosen


def run_row(name: str, row: Row, output: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Train and test a row over its folds; return its results. ``name`` is that of its config files."""
    from fss_d2.engine.reproduce import row_results, write_config

    *before, last = row.stages
    cfg = last.load()
    files = [write_config(stage, output / f"{name}_stage{i}.yaml") for i, stage in enumerate(before, 1)]
    as_trained = slug(" ".join([last.config.stem, *map(str, row.trained.set.values())]))
    trained = [*files, write_config(row.trained, output / f"{as_trained}.yaml")] if row.test else []
    files.append(write_config(last, output / f"{name}.yaml"))
    seeds, weights = args.seeds or [cfg.FEW_SHOT.TEST.SEED], args.weights
    folds = args.folds or (row.folds[:1] if args.scale else row.folds)
    options = ["--folds", *folds, "--seeds", *seeds, "--output", output]
    if row.test and not weights:
        _cross_validate(trained, options, args.rest)
        folder = f"{cfg.MODEL.META_ARCHITECTURE}_{'+'.join(Path(file).stem for file in trained)}"
        weights = "" if files == trained else f"{output}/{folder}/fold{{fold}}_seed{{seed}}/model_final.pth"
    if weights:
        _cross_validate(files[-1:], [*options, "--eval-only", "--weights", weights], args.rest)
    elif not row.test:
        _cross_validate(files, options, args.rest)
    return row_results(row, output / "cross_validation.json")


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


def run_table(file: Path, table: Table, rows: Sequence[Row], output: Path, args: argparse.Namespace) -> None:
    """Run the rows of a table that have a config, and print its report after the last one."""
    from fss_d2.engine.reproduce import collect, report

    results_file = output / f"{slug(table.name)}.json"
    results = read_json_object(results_file, "remove it")["rows"] if results_file.is_file() else {}
    content: dict[str, Any] = {}
    for row in (row for row in rows if row.stages):
        results[row.name] = run_row(slug(f"{table.name} {row.name}"), row, output, args)
        content = collect(os.path.relpath(file, _ROOT), table, args.scale, results)
        write_json(results_file, content | {"arguments": sys.argv[1:]})
    if content:
        print(f"{file}: {table.name} (%)\n\n{report(content)}\n")
    else:
        print(describe(table, rows))


def main() -> None:
    """List, or check all rows and run one after the other."""
    args = parse_arguments(sys.argv[1:])
    files = [args.file] if args.file else sorted(_TABLES.glob("*.yaml"))
    chosen = {file: choose(file, args) for file in files}
    if args.list:
        for file, tables in chosen.items():
            print("\n".join([os.path.relpath(file), *(describe(*each) for each in tables)]))
        return
    ((file, tables),) = chosen.items()
    for stage in [stage for _, rows in tables for row in rows for stage in row.stages]:
        stage.load()  # a wrong key is reported before anything runs
    output = args.output or Path("output", "tables", "_".join(filter(None, [file.stem, args.scale])))
    for table, rows in tables:
        run_table(file, table, rows, output, args)


if __name__ == "__main__":
    sys.exit(run_command(main))
