"""Files of prepared sets, and the worker pool, tables of counts and published lists of preparations."""

import gzip
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
from PIL import Image

from fss_d2.io.files import atomic_path, json_text, parse_json, shortened
from fss_d2.io.progress import track

from .splits import NUM_FOLDS

__all__ = [
    "PAGE",
    "Count",
    "find_fold_lists",
    "find_list",
    "format_counts",
    "list_path",
    "parallel_map",
    "parse_pairs",
    "png_is_whole",
    "prepared_dir",
    "read_ids",
    "read_index",
    "read_text",
    "require",
    "write_class_map",
    "write_index",
    "write_text_if_changed",
]

PAGE = "datasets/README.md says what goes where"  # ends the errors about data that are not there
_In = TypeVar("_In")
_Out = TypeVar("_Out")
_CHUNK = 16
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"


def prepared_dir(root: Path, dataset: str) -> Path:
    """Return the folder into which the preparation of ``dataset`` writes."""
    return Path(root) / "fss_d2" / dataset


def list_path(root: Path, dataset: str, name: str) -> Path:
    """Return the path of a prepared list, such as ``hsnet/val_fold0.json`` of ``coco20i``."""
    return prepared_dir(root, dataset) / "lists" / name


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


def read_text(path: Path) -> str:
    """Return what a list contains; ValueError if it is not UTF-8 text."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: get or write the list again") from error


def read_ids(path: Path) -> list[str]:
    """Return the first word of each line that is not empty."""
    return [line.split()[0] for line in read_text(path).splitlines() if line.strip()]


def parse_pairs(text: str, source: str, num_classes: int) -> list[tuple[str, int]]:
    """Parse lines ``<image id>__<class id + 1>`` into (image id, class id); errors name a line."""
    pairs = []
    for number, line in enumerate(text.split(), start=1):
        image_id, mark, class_number = line.rpartition("__")
        if not mark or not class_number.isdigit() or not 1 <= int(class_number) <= num_classes:
            found = repr(shortened(line))
            wanted = f"<image id>__<class number 01 to {num_classes:02d}>"
            raise ValueError(f"{source}:{number}: {found} is not {wanted}")
        pairs.append((image_id, int(class_number) - 1))
    return pairs


def _read_header(path: Path) -> dict[str, Any] | None:
    """Return the header of an index file, or None if the file does not exist or has no header."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return _parse(file.readline())


def read_index(path: Path, fix: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of an index file, without its header; errors name the line and the ``fix``."""
    with require(path, fix).open("rb") as file:
        for number, line in enumerate(file, start=1):
            row = _parse(line)
            if row is None:
                raise ValueError(f"{path}:{number}: not a JSON row; delete the file, then {fix}")
            if number > 1:
                yield row


def write_index(
    path: Path,
    header: dict[str, Any],
    row_of: Callable[[_In], dict[str, Any]],
    items: Callable[[], Sequence[_In]],
    *,
    workers: int,
    progress: str = "Index",
) -> None:
    """Write a JSON-lines index: ``header``, then the row of each item (`parallel_map`).

    Nothing is read or written if a file with that header exists. Rows go to ``<name>.partial``, which is
    renamed when complete; the partial file of an interrupted run with the same header is continued after its
    last whole row.
    """
    if _read_header(path) == header:
        return
    partial = path.with_name(path.name + ".partial")
    done = _keep_whole_rows(partial, header)
    with partial.open("a") as file:
        for row in parallel_map(row_of, items()[done:], workers=workers, progress=progress):
            file.write(json_text(row, separators=(",", ":")) + "\n")
    os.replace(partial, path)


def _keep_whole_rows(partial: Path, header: dict[str, Any]) -> int:
    """Truncate a partial index after its last whole row, or restart one of another header; count its rows."""
    if _read_header(partial) != header:
        with atomic_path(partial) as temporary:
            temporary.write_text(json_text(header) + "\n")
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
        row = parse_json(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


class Count(NamedTuple):
    """One line of a check: what was counted, the number found, the published number (None: unknown)."""

    what: str
    found: int
    published: int | None = None

    @property
    def verdict(self) -> str:
        """Return "same" or "DIFFERS" from the published number; "" if there is none."""
        return "" if self.published is None else "same" if self.found == self.published else "DIFFERS"


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
    yield from track(_map(function, items, workers), progress, len(items))


def _map(function: Callable[[_In], _Out], items: Sequence[_In], workers: int) -> Iterator[_Out]:
    if workers == 0 or not items:
        yield from map(function, items)
        return
    # OpenCV's own threads do not survive a fork.
    with ProcessPoolExecutor(workers, initializer=cv2.setNumThreads, initargs=(0,)) as pool:
        yield from pool.map(function, items, chunksize=_CHUNK)


def find_list(folder: Path, stems: Sequence[str], suffix: str) -> str:
    """Return the text of a published list: the first ``<stem><suffix>`` in ``folder``, plain or with .gz."""
    for stem in stems:
        path = folder / f"{stem}{suffix}"
        if path.is_file():
            return read_text(path)
        packed = path.with_name(path.name + ".gz")
        if packed.is_file():
            try:
                with gzip.open(packed, "rt", encoding="utf-8") as file:
                    return file.read()
            except (UnicodeDecodeError, EOFError, zlib.error) as error:
                raise ValueError(f"{packed} is damaged or not UTF-8 text: get the list again") from error
    names = " or ".join(f"{stem}{suffix}[.gz]" for stem in stems)
    raise FileNotFoundError(f"{folder} holds no {names}: give the folder of the published lists with --lists")


def find_fold_lists(folder: Path, suffix: str) -> Iterator[tuple[str, int, str, str]]:
    """Yield (split, fold, file name, text) of HSNet's lists ``{trn,val}_fold{0..3}`` in ``folder``."""
    for split in ("trn", "val"):
        for fold in range(NUM_FOLDS):
            stem = f"{split}_fold{fold}"
            yield split, fold, stem + suffix, find_list(folder, (stem, f"{split}/fold{fold}"), suffix)
