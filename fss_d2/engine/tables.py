"""The tables of the papers as data, ``configs/tables/<paper>.yaml``: a row is a config and what it changes.

    Table 3:
      about: What the table compares.
      config: ../dcama/pascal5i_swinb.yaml  # of rows that name none; relative to this file
      columns: [mIoU, FB_IoU]  # of the published numbers; the default is [mIoU]
      rows:
        without background: {set: {MODEL.DCAMA.SUPPORT_BACKGROUND: False}, paper: {1-shot: [67.3, 76.2]}}
        with background: {paper: {1-shot: [69.3, 78.5]}}
        another method: {config: null, paper: {1-shot: [60.8, 73.3]}}

A table may give ``config``, ``set``, ``large``, ``small``, ``after``, ``test``, ``folds`` for its rows. A
row's own come first; its keys are added to those of the table. ``after`` is the config, or ``{config: ...,
set: ...}``, from whose weights a row is trained. ``test: True`` trains nothing of its own: the row tests
weights that were trained without its keys of the test (``TEST``, ``FEW_SHOT.TEST``). ``folds`` are the folds
that a row can run on. A row without config has published numbers only, ``paper``, in the order of
``columns``; null is what the paper does not print.

At a small scale (`SCALES`) the config of a stage is the small one of its method on the data of that name, in
the same folder. ``set`` holds there too, ``large`` at the published size only, ``small`` at a small scale
only; ``small: False`` leaves the row out.

``command`` is what a figure, or a table of other numbers than scores, is made with. ``benchmark`` names the
benchmark under which MODEL_ZOO.md lists the rows of a table.
"""

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from detectron2.config import CfgNode

__all__ = ["SCALES", "Row", "Stage", "Table", "closest", "describe", "find_tables", "read_tables", "slug"]

SCALES = {"glyphs": (0, 1, 2, 3), "pascal_part": (1, 2, 3)}  # small data and its folds
_KEYS = ("set", "large", "small")
_TESTED = ("TEST.", "FEW_SHOT.TEST.")  # keys that no training reads
_STAGE_FIELDS = ("config", *_KEYS, "after")
_ROW_FIELDS = (*_STAGE_FIELDS, "test", "folds")
_DEFAULTS = {"config": None, "test": False, "folds": [0, 1, 2, 3]}


@dataclass(frozen=True)
class Stage:
    """A config file and what a row changes in it; ``row`` names file, table and row in errors."""

    row: str
    config: Path
    set: Mapping[str, Any]

    def load(self) -> "CfgNode":
        """The config with the keys of the row applied; a wrong key or value is a ValueError."""
        from fss_d2.config import load_config  # imports torch

        try:
            return load_config(str(self.config), [word for pair in self.set.items() for word in pair])
        except ValueError as error:
            raise ValueError(f"{self.row}: {str(error).removeprefix('command line: ')}") from error


@dataclass(frozen=True)
class Row:
    """A row of a table. Each stage starts from the weights of the one before; the last is the row itself.

    Without stages it only has published numbers. ``paper`` holds these, {"1-shot": {"fold0": 67.5, "mIoU":
    64.6}}.
    """

    name: str
    stages: tuple[Stage, ...]
    test: bool
    folds: tuple[int, ...]
    paper: Mapping[str, Mapping[str, float | str]]

    @property
    def trained(self) -> Stage:
        """The last stage as it is trained: of a row that only tests, without its keys of the test."""
        last = self.stages[-1]
        if not self.test:
            return last
        keys = {key: value for key, value in last.set.items() if not key.startswith(_TESTED)}
        return Stage(last.row, last.config, keys)


@dataclass(frozen=True)
class Table:
    """A table or figure of a paper: what it compares, its rows by name, and the commands of a figure."""

    name: str
    about: str
    rows: dict[str, Row]
    commands: tuple[str, ...] = ()
    benchmark: str = ""


def slug(text: str) -> str:
    """A name as a file name: lower-case letters, digits and underscores."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def closest(where: object, kind: str, name: str, known: Iterable[str]) -> str:
    """``name`` as it is written in ``known``, in any case of letters; a ValueError names the closest."""
    names = {each.lower(): each for each in known}
    if name.lower() in names:
        return names[name.lower()]
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.0)
    hint = f"did you mean {names[close[0]]!r}?" if close else "it has none at all"
    raise ValueError(f"{where}: there is no {kind} {name!r}; {hint}")


def find_tables(file: Path, name: str, tables: Iterable[str]) -> list[str]:
    """The tables that a name means: "3" is "Table 3", or "Table 3a" and "Table 3b, COCO-20i"."""
    tables = list(tables)
    for start in (name, f"table {name}", f"figure {name}"):
        pattern = re.compile(re.escape(start.lower()) + r"(?![0-9]).*")
        exact = [each for each in tables if each.lower() == start.lower()]
        if found := exact or [each for each in tables if pattern.fullmatch(each.lower())]:
            return found
    return [closest(file, "table", name, tables)]


def read_tables(file: str | Path, scale: str = "") -> dict[str, Table]:
    """The tables of a file by name; ValueError and FileNotFoundError name table and row.

    ``scale`` is one of `SCALES`, or empty for the published size.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"file of tables {file} does not exist")
    try:
        content = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: not YAML: {error}") from error
    entries = _mapping(file, content).items()
    return {str(name): _table(file, str(name), entry, scale) for name, entry in entries}


def describe(table: Table, rows: Sequence[Row]) -> str:
    """A table's rows with their configs, keys and published numbers, one line each; or its commands."""
    lines = [f"  {table.name}: {table.about}", *(f"    {command}" for command in table.commands)]
    for row in rows:
        keys = (" ".join(["", *(f"{key}={value}" for key, value in s.set.items())]) for s in row.stages)
        stages = ", then ".join(os.path.relpath(s.config) + k for s, k in zip(row.stages, keys, strict=True))
        lines.append(
            f"    {row.name}: {stages or 'not run here'}{' (test only)' if row.test and stages else ''}"
        )
        for kind, numbers in row.paper.items():
            lines.append(f"      paper, {kind}: {', '.join(f'{k} {v}' for k, v in numbers.items())}")
    return "\n".join(lines)


def _table(file: Path, name: str, entry: Any, scale: str) -> Table:
    where = f"{file}: {name}"
    fields = _mapping(where, entry, (*_ROW_FIELDS, "about", "rows", "columns", "command", "benchmark"))
    shared = _DEFAULTS | {key: value for key, value in fields.items() if key in _ROW_FIELDS}
    columns = [str(column) for column in fields.get("columns", ["mIoU"])]
    rows = {
        str(row): _row(file, f"{where}, row {str(row)!r}", str(row), shared, own, columns, scale)
        for row, own in _mapping(f"{where}, rows", fields.get("rows", {})).items()
    }
    if len({slug(row) for row in rows}) < len(rows):
        raise ValueError(f"{where}: the names of two rows differ in punctuation only; change one of them")
    commands = fields.get("command", [])
    commands = (commands,) if isinstance(commands, str) else tuple(commands)
    return Table(name, str(fields.get("about", "")), rows, commands, str(fields.get("benchmark", "")))


def _row(
    file: Path, where: str, name: str, shared: Mapping[str, Any], own: Any, columns: list[str], scale: str
) -> Row:
    fields = {**shared, **_mapping(where, own, (*_ROW_FIELDS, "paper"))}
    for keys in _KEYS:
        if fields.get(keys) is not False:
            both = (_mapping(where, each.get(keys) or {}) for each in (shared, fields))
            fields[keys] = {key: value for each in both for key, value in each.items()}
    test, folds = fields.pop("test"), fields.pop("folds")
    if not isinstance(test, bool) or not isinstance(folds, list) or {*map(type, folds)} != {int}:
        raise ValueError(f"{where}: test is {test!r}, folds {folds!r}; give True or False, a list of numbers")
    paper = _paper(where, fields.pop("paper", {}), columns)
    stages: tuple[Stage, ...] = ()
    if not ((fields["config"] is None and paper) or (scale and fields["small"] is False)):
        stages = _stages(file, where, fields, scale)
    folds = [fold for fold in folds if fold in SCALES.get(scale, folds)]
    return Row(name, stages, test, tuple(folds), paper)


def _paper(where: str, value: Any, columns: list[str]) -> dict[str, dict[str, float | str]]:
    numbers = {}
    for kind, entry in _mapping(where, value).items():
        listed = entry if isinstance(entry, list) else [entry]
        if len(listed) != len(columns):
            raise ValueError(f"{where}: {kind} has {len(listed)} numbers for the columns {columns}")
        pairs = zip(columns, listed, strict=True)
        numbers[str(kind)] = {column: number for column, number in pairs if number is not None}
    return numbers


def _stages(file: Path, where: str, entry: Any, scale: str) -> tuple[Stage, ...]:
    """The stages that a row or an ``after`` stands for, first to last."""
    fields = {"config": entry} if isinstance(entry, str) else _mapping(where, entry, _STAGE_FIELDS)
    if not isinstance(fields.get("config"), str):
        raise ValueError(f"{where}: it names no config; give config: FILE, relative to {file}")
    config = Path(os.path.normpath(file.parent / fields["config"]))
    keys = {**_mapping(where, fields.get("set", {}))}
    keys |= _mapping(where, fields.get("small" if scale else "large", {}))
    if scale:
        config = _small(config, scale)
    if not config.is_file():
        raise FileNotFoundError(f"{where}: config {config} does not exist")
    before = _stages(file, where, fields["after"], scale) if "after" in fields else ()
    return (*before, Stage(where, config, keys))


def _small(config: Path, scale: str) -> Path:
    """The small config of a method: "glyphs_efficientnet_lite0.yaml", of MM-Former "stage1_glyphs.yaml"."""
    stage = re.match(r"stage\d_", config.name)
    return config.with_name(f"{stage[0]}{scale}.yaml" if stage else f"{scale}_efficientnet_lite0.yaml")


def _mapping(where: object, value: Any, known: Sequence[str] = ()) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: {value!r} is no mapping; give names and values, {{name: value}}")
    for name in value if known else ():
        closest(where, "field", str(name), known)
    return value
