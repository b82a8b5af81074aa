"""Files that are written whole or not at all, and JSON files whose errors name the file."""

import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["atomic_path", "check_writable", "is_half_written", "printable", "read_json_object"]
__all__ += ["write_atomic"]

_HALF_WRITTEN = re.compile(r"\..+\.\d+\.tmp")


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path, which replaces ``path`` (same folder) when the block ends without error.

    The folder is created if necessary. After an error in the block, ``path`` is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a whole file or none; see `atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Make ``folder`` and try to write there; a ValueError says that it fails."""
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"cannot write to the output folder {str(folder) or '(empty name)'} ({error.strerror}); "
            "choose another (OUTPUT_DIR, --output)"
        ) from error


def is_half_written(path: Path) -> bool:
    """Whether a file is what `atomic_path` leaves of a process that was killed in its block."""
    return _HALF_WRITTEN.fullmatch(path.name) is not None


def printable(text: str | os.PathLike[str]) -> str:
    """A name for a log, which takes UTF-8 only: bytes of the name that are not UTF-8 are escaped."""
    return os.fspath(text).encode("utf-8", "backslashreplace").decode()


def read_json_object(path: Path, fix: str) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        ValueError: it is not JSON, or holds something else. The message names the file and ends with ``fix``,
            what the user can do about it.
    """
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); {fix}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a JSON {type(content).__name__}, not an object; {fix}")
    return content
