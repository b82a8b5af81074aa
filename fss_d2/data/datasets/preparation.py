"""Files of prepared sets, and the worker pool, tables of counts and published lists of preparations."""

import gzip
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from fss_d2.files import atomic_path

__all__ = [
    "Count",
    "find_list",
    "format_counts",
    "parallel_map",
    "png_is_whole",
    "prepared_dir",
    "read_ids",
    "read_index",
    "read_index_header",
    "require",
    "write_class_map",
    "write_index",
    "write_text_if_changed",
]

_In = TypeVar("_In")
_Out = TypeVar("_Out")
_CHUNK = 16
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"


def prepared_dir(root: Path, dataset: str) -> Path:
    """Return the folder into which the preparation of ``dataset`` writes."""
    return Path(root) / "fss_d2" / dataset


def require(path: Path, fix: str) -> Path:
    """Return ``path`` if it exists, else raise FileNotFoundError with the path and the fix in one line."""
    if not path.exists():
        raise FileNotFoundError(f"{path} not found: {fix}")
    return path


def write_text_if_changed(path: Path, text: str) -> bool:
    """Write ``text`` atomically unless the file already contains it; return whether it was written."""
    if path.is_file() and path.read_text() == text:
        return False
    with atomic_path(path) as temporary:
        temporary.write_text(text)
    return True


def write_class_map(path: Path, class_map: np.ndarray) -> None:
    """Write a (H, W) uint8 class map as a single-channel PNG, atomically."""
    with atomic_path(path) as temporary:
        Image.fromarray(class_map).save(temporary, format="PNG")


def png_is_whole(path: Path) -> bool:
    """Return whether ``path`` exists and ends with the last chunk of a PNG, so that it is not truncated."""
    if not path.is_file() or path.stat().st_size < len(_PNG_END):
        return False
    with path.open("rb") as file:
        file.seek(-len(_PNG_END), os.SEEK_END)
        return file.read() == _PNG_END


def read_ids(path: Path) -> list[str]:
    """Return the first word of each line that is not empty."""
    return [line.split()[0] for line in path.read_text().splitlines() if line.strip()]


def read_index_header(path: Path) -> dict[str, Any] | None:
    """Return the header of an index file, or None if the file does not exist or has no header."""
    if not path.is_file():
        return None
    with path.open() as file:
        return _parse(file.readline())


def read_index(path: Path, fix: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of an index file, without its header.

    Raises:
        FileNotFoundError: no such file; the message ends with ``fix``.
        ValueError: a row is not JSON; the message names file and line.
    """
    with require(path, fix).open() as file:
        for number, line in enumerate(file, start=1):
            row = _parse(line)
            if row is None:
                raise ValueError(f"{path}:{number}: not a JSON row; delete the file, then {fix}")
            if number > 1:
                yield row


def write_index(
    path: Path, header: dict[str, Any], rows_from: Callable[[int], Iterable[dict[str, Any]]]
) -> bool:
    """Write a JSON-lines index with ``header``; return False if a file with that header exists.

    ``rows_from(n)`` yields the rows from the n-th on. They are written to ``<name>.partial``, which is
    renamed when complete; the partial file of an interrupted run with the same header is continued after its
    last whole row.
    """
    if read_index_header(path) == header:
        return False
    partial = path.with_name(path.name + ".partial")
    done = _keep_whole_rows(partial, header)
    with partial.open("a") as file:
        for row in rows_from(done):
            file.write(json.dumps(row, separators=(",", ":")) + "\n")
    os.replace(partial, path)
    return True


def _keep_whole_rows(partial: Path, header: dict[str, Any]) -> int:
    """Truncate a partial index after its last whole row, or restart one of another header; count its rows."""
    if read_index_header(partial) != header:
        with atomic_path(partial) as temporary:
            temporary.write_text(json.dumps(header) + "\n")
        return 0
    end, rows = 0, -1
    with partial.open("rb+") as file:
        for line in file:
            if not line.endswith(b"\n") or _parse(line) is None:
                break
            end, rows = end + len(line), rows + 1
        file.truncate(end)
    return rows


def _parse(line: str | bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


@dataclass(frozen=True)
class Count:
    """One line of a check: what was counted, the number found, the published number (None: unknown)."""

    what: str
    found: int
    published: int | None = None

    @property
    def verdict(self) -> str:
        """Return "same" or "DIFFERS" from the published number; "" if there is none."""
        if self.published is None:
            return ""
        return "same" if self.found == self.published else "DIFFERS"


def format_counts(counts: Sequence[Count]) -> str:
    """Return a text table: what, found, published, verdict."""
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

    ``function`` must be importable by name, because it is pickled; its errors are raised here.
    """
    with tqdm(total=len(items), desc=progress, file=sys.stderr, disable=None if items else True) as bar:
        for result in _map(function, items, workers):
            bar.update()
            yield result


def _map(function: Callable[[_In], _Out], items: Sequence[_In], workers: int) -> Iterator[_Out]:
    if workers == 0 or not items:
        yield from map(function, items)
        return
    # OpenCV's own threads do not survive a fork.
    with ProcessPoolExecutor(workers, initializer=cv2.setNumThreads, initargs=(0,)) as pool:
        yield from pool.map(function, items, chunksize=_CHUNK)


def find_list(folder: Path, stems: Sequence[str], suffix: str) -> str:
    """Return the text of a published list: the first ``<stem><suffix>`` in ``folder``, plain or with .gz.

    Raises:
        FileNotFoundError: none of the files exists.
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
