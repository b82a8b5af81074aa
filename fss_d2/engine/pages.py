"""The parts of the pages that follow from data: published numbers of the tables, results of runs.

    <!-- published: PASCAL-5i -->       rows of configs/tables/*.yaml with that benchmark
    <!-- results: docs/results/*_glyphs.json -->       the results of tables, files of tools/reproduce.py
    <!-- end -->

What stands between such a line and the end is written by `updated`.
"""

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fss_d2.io.files import read_json_object

from .tables import Row, read_tables

__all__ = ["PAGES", "updated"]

PAGES = ("MODEL_ZOO.md", "docs/BENCHMARKS.md")
_PART = re.compile(r"(<!-- (published|results): (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
_CONVERTED = ("dcama", "hsnet", "mmformer", "pfenet")  # methods whose authors released weights that convert


def updated(page: str, root: Path) -> str:
    """A page of the repository ``root`` with its generated parts written anew."""

    def part(match: re.Match[str]) -> str:
        begin, kind, name, end = match.groups()
        text = _published(name, root) if kind == "published" else _results(name, root)
        return f"{begin}\n{text}\n\n{end}"

    return _PART.sub(part, (root / page).read_text(encoding="utf-8"))


def _published(benchmark: str, root: Path) -> str:
    """One line for each row of a method in its own paper's tables: config, keys, numbers, weights."""
    lines = []
    for paper, row in _own_rows(benchmark, root):
        last = row.stages[-1]
        keys = "".join(f" {key} {_word(value)}" for key, value in last.set.items())
        config = f"`{last.config.relative_to(root)}{keys}`"
        numbers = [_number(row.paper.get(f"{shots}-shot", {}).get("mIoU")) for shots in (1, 5)]
        lines.append([row.name, config, *numbers, f"`{paper}`" if paper in _CONVERTED else "none"])
    if not lines:
        raise ValueError(f"no table of configs/tables has rows of the benchmark {benchmark!r}")
    headers = ["model", "config", "paper, 1-shot", "paper, 5-shot", "weights"]
    return "\n".join(f"| {' | '.join(line)} |" for line in (headers, ["---"] * len(headers), *lines))


def _own_rows(benchmark: str, root: Path) -> Iterator[tuple[str, Row]]:
    for file in sorted((root / "configs" / "tables").glob("*.yaml")):
        for table in read_tables(file).values():
            for row in table.rows.values() if table.benchmark == benchmark else ():
                if row.stages and row.stages[-1].config.parent.name == file.stem:
                    yield file.stem, row


def _word(value: Any) -> str:
    """A value as it is written after its key on a command line."""
    return f'"({", ".join(map(repr, value))},)"' if isinstance(value, list) else str(value)


def _number(value: Any) -> str:
    return "-" if value is None else str(value)


def _results(pattern: str, root: Path) -> str:
    """What each results file holds, what it was made with, and its report."""
    from .reproduce import describe_resources, report  # imports torch

    parts = []
    for file in sorted(root.glob(pattern)):
        content = read_json_object(file, "run the table again")
        title = f"**{Path(content['file']).stem}, {content['table']}.** {content['about']}"
        parts.append("\n".join(textwrap.wrap(title, 110, break_on_hyphens=False)))
        parts += [describe_resources(content), report(content)]
    return "\n\n".join(parts) or "No table has been run yet."
