"""Files that appear whole or not at all, JSON files whose errors name the file, and names that users give."""

import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["atomic_path", "check_writable", "expand_user", "ignores_case", "is_half_written", "json_text"]
__all__ += ["parse_json", "printable", "read_json", "read_json_object", "shortened", "write_atomic"]
__all__ += ["write_json"]

_HALF_WRITTEN = re.compile(r"\..+\.\d+\.tmp")
_LONGEST_NAME = 200  # bytes of a name that a temporary file's name still repeats; file systems allow 255
_MOST_SHOWN = 200  # characters of a name in a message
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_LARGEST_INTEGER = 2**64
_JSON_TYPES = {list: "list", str: "string", bool: "boolean", type(None): "null"}  # others: numbers


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path, which replaces ``path`` (same folder) when the block ends without error.

    The folder is created if necessary. After an error in the block, ``path`` is as it was; an OSError names
    ``path``, not the temporary file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.name
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    temporary = path.with_name(f".{name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno and error.filename in (None, os.fspath(temporary)):  # a full disk gives no name
            error.filename = os.fspath(path)
        raise
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


def ignores_case(folder: str | os.PathLike[str]) -> bool:
    """Whether the file system of a folder takes "a" and "A" for one name; the folder is made if necessary."""
    os.makedirs(folder, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".case", suffix=".1.tmp") as probe:
        return os.path.exists(os.path.join(folder, os.path.basename(probe.name).swapcase()))


def is_half_written(path: Path) -> bool:
    """Whether a file is what `atomic_path` leaves of a process that was killed in its block."""
    return _HALF_WRITTEN.fullmatch(path.name) is not None


def expand_user(path: str | os.PathLike[str]) -> str:
    """A path that a user gave, with "~" and "~name" at its start replaced by the home folder.

    Raises:
        ValueError: there is no such home folder, and no file of that name either.
    """
    expanded = os.path.expanduser(os.fspath(path))
    if expanded.startswith("~") and not os.path.exists(expanded):
        name = shortened(expanded.split(os.sep)[0])
        raise ValueError(f"{shortened(path)}: {name} is not a home folder; ./{name} names a folder here")
    return expanded


def printable(text: str | os.PathLike[str]) -> str:
    """A name for a log, which takes UTF-8 only: bytes of the name that are not UTF-8 are escaped."""
    return os.fspath(text).encode("utf-8", "backslashreplace").decode()


def shortened(name: object) -> str:
    """A name or value for a message: printable, on one line, cut after 200 characters."""
    text = os.fspath(name) if isinstance(name, os.PathLike) else str(name)
    if len(text) > _MOST_SHOWN:
        text = text[: _MOST_SHOWN - 3] + "..."
    return printable(_CONTROL.sub(lambda match: ascii(match[0])[1:-1], text))


def json_text(content: Any, **options: Any) -> str:
    """What `json.dumps` gives; NaN or infinity, which JSON does not have, is a ValueError with its key."""
    try:
        return json.dumps(content, allow_nan=False, **options)
    except ValueError as error:
        place, value = next(_not_finite(content), (None, None))
        if place is None:
            raise
        where = shortened(place) or "the content"
        raise ValueError(f"{where} is {value}, which JSON cannot hold; this file is not written") from error


def write_json(path: str | os.PathLike[str], content: Any, *, indent: int | None = 2) -> None:
    """Write a whole JSON file, which ends with a line break, or none; see `json_text`."""
    write_atomic(path, (json_text(content, indent=indent) + "\n").encode())


def parse_json(content: bytes | str, name: object = "", fix: str = "", *, any_number: bool = False) -> Any:
    """What JSON text holds. UTF-8, UTF-16 and UTF-32 are recognised, with or without a byte order mark.

    Raises:
        ValueError: it is not JSON. That includes NaN, Infinity and numbers too large for a float, integers of
            more than 64 bits, a key that stands twice in one object, and brackets nested too deeply. The
            message begins with ``name`` and ends with ``fix``, what the user can do about it; without a name
            it is the reason alone. ``any_number`` lets NaN, infinity and large numbers pass, for callers that
            check each number and can name its place.
    """
    try:
        if not content or content.isspace():
            raise ValueError("it is empty")
        return (_ANY_NUMBER if any_number else _STRICT).decode(_decoded(content))
    except RecursionError:
        reason = "its brackets are nested too deeply"
    except ValueError as error:
        reason = str(error)
    if name:
        reason = f"{shortened(name)} is not valid JSON ({reason})" + (f"; {fix}" if fix else "")
    raise ValueError(reason)


def read_json(path: str | os.PathLike[str], fix: str = "", *, any_number: bool = False) -> Any:
    """What a JSON file holds; raises as `parse_json`, and OSError."""
    return parse_json(Path(path).read_bytes(), path, fix, any_number=any_number)


def read_json_object(path: str | os.PathLike[str], fix: str, *, any_number: bool = False) -> dict[str, Any]:
    """Read a JSON file that holds an object; ValueError if it holds anything else. See `parse_json`."""
    content = read_json(path, fix, any_number=any_number)
    if not isinstance(content, dict):
        kind = _JSON_TYPES.get(type(content), "number")
        raise ValueError(f"{shortened(path)} holds a JSON {kind}, not an object; {fix}")
    return content


def _decoded(content: bytes | str) -> str:
    if isinstance(content, str):
        return content.removeprefix("\ufeff")
    encoding = json.detect_encoding(content)
    try:
        return content.decode(encoding, "surrogatepass")
    except UnicodeDecodeError as error:
        where = f"byte {error.start + 1} is 0x{content[error.start]:02x}"
        raise ValueError(f"it is not {encoding.upper()} text: {where}; save it as UTF-8") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {shortened(twice)!r} stands twice in one object")
    return found


def _refused_constant(text: str) -> Any:
    raise ValueError(f"it holds {text}; JSON has no such number")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"its number {text[:20]} is too large")
    return value


def _integer(text: str) -> int:
    if len(text) > 20 or abs(value := int(text)) >= _LARGEST_INTEGER:
        raise ValueError(f"its number {text[:20]}{'...' * (len(text) > 20)} has more than 64 bits")
    return value


_ANY_NUMBER = json.JSONDecoder(object_pairs_hook=_unique)
_STRICT = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_refused_constant, parse_float=_finite, parse_int=_integer
)


def _not_finite(content: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """Place, as "images[3].score", and value of every number in a JSON value that is NaN or infinite."""
    if isinstance(content, float) and not math.isfinite(content):
        yield place, content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _not_finite(value, f"{place}.{key}" if place else str(key))
    elif isinstance(content, Sequence) and not isinstance(content, str):
        for index, value in enumerate(content):
            yield from _not_finite(value, f"{place}[{index}]")
