"""What the preparations share: worker pool with progress, tables of counts, published lists."""

import gzip
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

__all__ = ["Count", "find_list", "format_counts", "parallel_map"]

_In = TypeVar("_In")
_Out = TypeVar("_Out")
_CHUNK = 16


@dataclass(frozen=True)
class Count:
    """One line of a check: what was counted, the number found, the published one (None: unknown)."""

    what: str
    found: int
    published: int | None = None

    @property
    def verdict(self) -> str:
        """ "same" or "DIFFERS" from the published number; empty where there is none."""
        if self.published is None:
            return ""
        return "same" if self.found == self.published else "DIFFERS"


def format_counts(counts: Sequence[Count]) -> str:
    """Return a plain table: what, found, published, verdict."""
    width = max([len(c.what) for c in counts] + [4])
    lines = [f"{'what':<{width}}  {'found':>8}  {'published':>9}"]
    for c in counts:
        published = "-" if c.published is None else str(c.published)
        lines.append(f"{c.what:<{width}}  {c.found:>8}  {published:>9}  {c.verdict}".rstrip())
    return "\n".join(lines)


def parallel_map(
    function: Callable[[_In], _Out], items: Sequence[_In], *, workers: int, progress: str
) -> Iterator[_Out]:
    """Yield ``function(item)`` in the order of ``items``, from ``workers`` processes (0: this one).

    ``function`` must be importable by name (a pool pickles it); its errors are raised here.
    """
    with tqdm(total=len(items), desc=progress, file=sys.stderr, disable=not items) as bar:
        if workers == 0 or not items:
            yield from _counted(map(function, items), bar)
        else:
            with Pool(workers) as pool:
                yield from _counted(pool.imap(function, items, chunksize=_CHUNK), bar)


def _counted(results: Iterable[_Out], bar: "tqdm") -> Iterator[_Out]:
    for result in results:
        bar.update()
        yield result


def find_list(folder: Path, stems: Sequence[str], suffix: str) -> str:
    """Return the text of a published list: ``<stem><suffix>`` in ``folder``, plain or with .gz; first match.

    Raises:
        FileNotFoundError: none of the files is there.
    """
    for stem in stems:
        path = folder / f"{stem}{suffix}"
        if path.is_file():
            return path.read_text()
        packed = path.with_name(path.name + ".gz")
        if packed.is_file():
            with gzip.open(packed, "rt") as file:
                return file.read()
    names = " or ".join(f"{stem}{suffix}[.gz]" for stem in stems)
    raise FileNotFoundError(f"{folder} holds no {names}: give the folder of the published lists with --lists")
