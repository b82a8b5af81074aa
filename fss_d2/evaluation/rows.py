"""The pixel counts of one episode as a record, and the files that hold them (``episodes.jsonl``)."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fss_d2.files import write_atomic

__all__ = ["EpisodeCounts", "read_rows", "stack_rows", "write_rows"]


@dataclass(frozen=True)
class EpisodeCounts:
    """One scored episode.

    Attributes:
        supports: image ids of the K supports, in order.
        intersection, union: pixels of (background, foreground).
        rom, rum: the region-wise measures; None if they are not measured.
    """

    episode_index: int
    class_id: int
    query: int | str
    supports: tuple[int | str, ...]
    intersection: tuple[int, int]
    union: tuple[int, int]
    rom: float | None = None
    rum: float | None = None


def stack_rows(rows: Sequence[EpisodeCounts]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return class ids (N,), intersections (N, 2) and unions (N, 2) of the rows, all int64."""
    class_ids = np.array([row.class_id for row in rows], np.int64)
    intersection = np.array([row.intersection for row in rows], np.int64).reshape(-1, 2)
    union = np.array([row.union for row in rows], np.int64).reshape(-1, 2)
    return class_ids, intersection, union


def write_rows(path: str | Path, rows: Iterable[EpisodeCounts]) -> None:
    """Write rows as JSON lines (``episodes.jsonl``), all or nothing."""
    lines = (json.dumps({k: v for k, v in asdict(row).items() if v is not None}) + "\n" for row in rows)
    write_atomic(path, "".join(lines).encode())


def read_rows(path: str | Path) -> list[EpisodeCounts]:
    """Read an ``episodes.jsonl``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line does not hold the counts of an episode; the message names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give the episodes.jsonl of an evaluation")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            rows.append(_parse_row(json.loads(line)))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}:{number} is not an episode's counts ({error}); evaluate again to rewrite the file"
            ) from error
    return rows


def _parse_row(fields: dict[str, Any]) -> EpisodeCounts:
    background, foreground = fields["intersection"]
    union_background, union_foreground = fields["union"]
    return EpisodeCounts(
        episode_index=int(fields["episode_index"]),
        class_id=int(fields["class_id"]),
        query=fields["query"],
        supports=tuple(fields["supports"]),
        intersection=(int(background), int(foreground)),
        union=(int(union_background), int(union_foreground)),
        rom=fields.get("rom"),
        rum=fields.get("rum"),
    )
