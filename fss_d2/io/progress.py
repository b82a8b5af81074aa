"""Progress of long loops: a bar on a terminal, a line in the log every ten seconds anywhere else."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

__all__ = ["progress", "track"]

logger = logging.getLogger(__name__)

_PERIOD = 10.0  # seconds between two lines
_T = TypeVar("_T")

Advance = Callable[[], object]  # call it after each item


def track(items: Iterable[_T], what: str, total: int, *, done: int = 0) -> Iterator[_T]:
    """Yield the items and show the progress; the arguments are those of `progress`."""
    with progress(what, total, done=done) as advance:
        for item in items:
            yield item
            advance()


@contextmanager
def progress(what: str, total: int, *, done: int = 0) -> Iterator[Advance]:
    """Show the progress of the block, which calls what is yielded after each item.

    On a terminal that is a bar. Elsewhere (nohup, tee, CI) the log gets a line after the first item, then at
    most one every ten seconds, and one at the end. Only the main process shows anything.

    Args:
        what: the name of the work, for example "Label".
        total: number of items, those of an earlier run included.
        done: items that an earlier run has finished.
    """
    if not _is_main_process():
        yield lambda: None
    elif sys.stderr is not None and sys.stderr.isatty():
        with tqdm(total=total, initial=done, desc=what) as bar:
            yield bar.update
    else:
        lines = _Lines(what, total, done)
        try:
            yield lines.advance
        finally:
            lines.end()


class _Lines:
    """The log lines of one loop."""

    def __init__(self, what: str, total: int, done: int) -> None:
        self._what, self._total, self._done, self._before = what, total, done, done
        self._start, self._next = time.monotonic(), 0.0  # the first item gets a line at once

    def advance(self) -> None:
        """Count an item, and write a line when it is time."""
        self._done += 1
        now = time.monotonic()
        if self._done < self._total and now >= self._next:
            self._next = now + _PERIOD
            each = max(now - self._start, 1e-9) / (self._done - self._before)  # seconds
            left = _duration(each * (self._total - self._done))
            logger.info("%s: %d of %d, %s, %s left", self._what, self._done, self._total, _rate(each), left)

    def end(self) -> None:
        """Write the last line, unless nothing was done."""
        if self._done > self._before:
            took = _duration(time.monotonic() - self._start)
            logger.info("%s: %d of %d in %s", self._what, self._done, self._total, took)


def _rate(each: float) -> str:
    """Items per second, or seconds per item."""
    if each >= 1:
        return f"{each:.1f} s each" if each < 10 else f"{each:.0f} s each"
    return f"{1 / each:.1f} per s" if each > 0.1 else f"{1 / each:.0f} per s"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _is_main_process() -> bool:
    from detectron2.utils import comm  # late: programs import this module before they know their arguments

    return comm.is_main_process()
