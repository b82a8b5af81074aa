"""Config files: YAML with `_BASE_`, read without surprises."""

import codecs
import os
from collections.abc import Iterable, Mapping
from typing import Any

import yaml
from detectron2.utils.file_io import PathManager

from fss_d2.io.files import shortened
from fss_d2.io.network import check_address, is_address

__all__ = ["read_yaml"]

_BASE = "_BASE_"
_MAX_BASES = 50  # that name one another
_MAX_BYTES, _MAX_VALUES = 10_000_000, 100_000  # of a config file; aliases count as what they stand for


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML would take the last."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        """See yaml.SafeLoader; here `<<` has not been replaced by what it stands for."""
        node = super().compose_mapping_node(anchor)
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [name for name in names if names.count(name) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"key {shortened(twice[0])} is there twice")
        return node


def read_yaml(path: str) -> dict[str, Any]:
    """Read a config file; its keys win over those of its bases, and later bases over earlier ones.

    A base is named relative to the file that names it. Python tags are not run, and nothing is fetched from
    a network unless the environment allows it (`fss_d2.io.network`).

    Raises:
        FileNotFoundError: no such file, or no such base.
        ValueError: it does not parse, holds no keys, names itself as its base, or names a base by address.
    """
    return _read(path, "", ())


def _brief(error: BaseException) -> str:
    """The message of an error on one line; the middle of a long one is left out."""
    text = " ".join(str(error).split())
    return text if len(text) <= 400 else f"{text[:200]} ... {text[-200:]}"


def _read(path: str, named_by: str, above: tuple[str, ...]) -> dict[str, Any]:
    """Read a file with its bases; ``named_by`` is the config whose base it is, ``above`` all before it."""
    where = f"{named_by}: its {_BASE}" if named_by else "config file"
    check_address(path, where)
    local = PathManager.get_local_path(path) if is_address(path) else os.path.expanduser(path)
    if not os.path.isfile(local):
        raise FileNotFoundError(f"{where} {shortened(path)} does not exist")
    if (real := os.path.realpath(local)) in above:
        raise ValueError(f"{named_by}: not a config: its {_BASE} {path} leads back to itself; remove it")
    if len(above) > _MAX_BASES:
        raise ValueError(f"{where} {path} comes after {len(above)} others: join some of these files")
    own = _parsed(local)
    merged: dict[str, Any] = {}
    for base in _bases(own.pop(_BASE, []), path):
        is_relative = not (is_address(base) or os.path.isabs(os.path.expanduser(base)))
        place = os.path.join(os.path.dirname(path), base) if is_relative else base
        _merge(_read(place, path, (*above, real)), merged, path)
    _merge(own, merged, path)
    return merged


def _bases(value: Any, path: str) -> Iterable[str]:
    bases = [value] if isinstance(value, str) else value
    if not isinstance(bases, list) or not all(isinstance(base, str) and base for base in bases):
        raise ValueError(
            f"{path}: its {_BASE} is {shortened(value)}: give the name of a file, or a list of them"
        )
    return bases


def _parsed(path: str) -> dict[str, Any]:
    """The content of one file, a dict with string keys."""
    if path.endswith(".py"):
        raise ValueError(f"{path}: not a config: Detectron2's lazy configs are not read; give a YAML file")
    if os.path.getsize(path) > _MAX_BYTES:
        raise ValueError(f"{path}: not a config: it is larger than {_MAX_BYTES:,} bytes")
    with open(path, "rb") as file:
        content = file.read()
    try:
        encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
        loaded = yaml.load(content.decode(encoding), _Loader)
        if not isinstance(loaded, dict):
            raise ValueError("it holds no keys")
        _check_tree(loaded, _MAX_VALUES)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a config: it is not UTF-8 text ({error.reason})") from error
    except RecursionError as error:
        raise ValueError(f"{path}: not a config: it is nested too deeply") from error
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a config: {_brief(error)}") from error
    return loaded


def _check_tree(value: Any, left: int) -> int:
    """Count the values down from ``left``; ValueError for too many and for keys that are no text."""
    if left <= 0:
        raise ValueError(f"it stands for more than {_MAX_VALUES:,} values")
    if isinstance(value, dict):
        if other := [key for key in value if not isinstance(key, str)]:
            raise ValueError(f"key {shortened(other[0])} is not text")
        value = list(value.values())
    if isinstance(value, float) and value != value:
        raise ValueError("it holds .nan, which is no number")
    for inner in value if isinstance(value, list) else ():
        left = _check_tree(inner, left)
    return left - 1


def _merge(new: Mapping[str, Any], into: dict[str, Any], path: str) -> None:
    """Put the keys of one config over those of another, in place; a group without keys changes nothing."""
    for key, value in new.items():
        if "." in key:
            raise ValueError(f"{path}: write {shortened(key)} as a key in its group, `MODEL: {{WEIGHTS: x}}`")
        if isinstance(value, dict):
            if into.get(key) is None:
                into[key] = {}  # a copy: YAML's aliases name one dict several times
            if not isinstance(into[key], dict):
                raise ValueError(f"{path}: {key} is a group of keys, and one value in its {_BASE}")
            _merge(value, into[key], path)
        elif value is not None or not isinstance(into.get(key), dict):
            into[key] = value
