"""The tables of the papers as data, ``configs/tables/<paper>.yaml``: a row is a config and what it changes.

    Table 3:
      about: What the table compares.
      config: ../dcama/pascal5i_swinb.yaml  # of rows that name none; relative to this file
      rows:
        without background: {set: {MODEL.DCAMA.SUPPORT_BACKGROUND: False}}
        with background: {}

A table may give ``config``, ``set``, ``after``, ``test``, ``folds`` for its rows. A row's own come first;
its ``set`` is added. ``after`` is the config, or ``{config: ..., set: ...}``, from whose weights a row is
trained. ``test: True``: the row tests the weights of its config without ``set``. ``folds``: where it can run.
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

__all__ = ["Row", "Stage", "Table", "closest", "read_tables", "slug"]

_STAGE_FIELDS = ("config", "set", "after")
_ROW_FIELDS = (*_STAGE_FIELDS, "test", "folds")
_DEFAULTS = {"set": {}, "test": False, "folds": [0, 1, 2, 3]}


@dataclass(frozen=True)
class Stage:
    """A config file and what a row changes in it; ``row`` names file, table and row in errors."""

    row: str
    config: Path
    set: Mapping[str, Any]

    def load(self) -> "CfgNode":
        """The config with the keys of the row applied.

        Raises:
            ValueError: a key that does not exist, or a value of the wrong type.
        """
        from fss_d2.config import load_config  # imports torch

        try:
            return load_config(str(self.config), [word for pair in self.set.items() for word in pair])
        except ValueError as error:
            raise ValueError(f"{self.row}: {str(error).removeprefix('command line: ')}") from error


@dataclass(frozen=True)
class Row:
    """A row of a table. Each stage starts from the weights of the one before; the last is the row itself."""

    name: str
    stages: tuple[Stage, ...]
    test: bool
    folds: tuple[int, ...]


@dataclass(frozen=True)
class Table:
    """A table or figure of a paper: what it compares, and its rows by name."""

    name: str
    about: str
    rows: dict[str, Row]


def slug(text: str) -> str:
    """A name as a file name: lower-case letters, digits and underscores."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def closest(where: object, kind: str, name: str, known: Iterable[str]) -> str:
    """``name`` as it is written in ``known``, in any case of letters.

    Raises:
        ValueError: it is not known; the message has the closest name.
    """
    names = {each.lower(): each for each in known}
    if name.lower() in names:
        return names[name.lower()]
    close = [
        f"did you mean {names[each]!r}?" for each in difflib.get_close_matches(name.lower(), names, 1, 0.0)
    ]
    raise ValueError(f"{where}: there is no {kind} {name!r}; {(*close, 'it has none at all')[0]}")


def read_tables(file: str | Path) -> dict[str, Table]:
    """The tables of a file by name.

    Raises:
        FileNotFoundError: no such file, or a config that it names does not exist.
        ValueError: the file is not YAML or breaks the format; the message names table and row.
    """
    if not (file := Path(file)).is_file():
        raise FileNotFoundError(f"file of tables {file} does not exist")
    try:
        content = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: not YAML: {error}") from error
    return {str(name): _table(file, str(name), entry) for name, entry in _mapping(file, content).items()}


def _table(file: Path, name: str, entry: Any) -> Table:
    where = f"{file}: {name}"
    fields = _mapping(where, entry, (*_ROW_FIELDS, "about", "rows"))
    shared = _DEFAULTS | {key: value for key, value in fields.items() if key in _ROW_FIELDS}
    rows = {
        str(row): _row(file, f"{where}, row {str(row)!r}", str(row), shared, own)
        for row, own in _mapping(f"{where}, rows", fields.get("rows")).items()
    }
    if len({slug(row) for row in rows}) < len(rows):
        raise ValueError(f"{where}: the names of two rows differ in punctuation only; change one of them")
    return Table(name, str(fields.get("about", "")), rows)


def _row(file: Path, where: str, name: str, shared: Mapping[str, Any], own: Any) -> Row:
    fields = {**shared, **_mapping(where, own, _ROW_FIELDS)}
    fields["set"] = {**_mapping(where, shared["set"]), **_mapping(where, fields["set"])}
    test, folds = fields.pop("test"), fields.pop("folds")
    if not isinstance(test, bool) or not isinstance(folds, list) or {*map(type, folds)} != {int}:
        raise ValueError(f"{where}: test is {test!r}, folds {folds!r}; give True or False, a list of numbers")
    return Row(name, _stages(file, where, fields), test, tuple(folds))


def _stages(file: Path, where: str, entry: Any) -> tuple[Stage, ...]:
    """The stages that a row or an ``after`` stands for, first to last."""
    fields = {"config": entry} if isinstance(entry, str) else _mapping(where, entry, _STAGE_FIELDS)
    if not isinstance(fields.get("config"), str):
        raise ValueError(f"{where}: it names no config; give config: FILE, relative to {file}")
    config = Path(os.path.normpath(file.parent / fields["config"]))
    if not config.is_file():
        raise FileNotFoundError(f"{where}: config {config} does not exist")
    before = _stages(file, where, fields["after"]) if "after" in fields else ()
    return (*before, Stage(where, config, _mapping(where, fields.get("set", {}))))


def _mapping(where: object, value: Any, known: Sequence[str] = ()) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: {value!r} is no mapping; give names and values, {{name: value}}")
    for name in value if known else ():
        closest(where, "field", str(name), known)
    return value
