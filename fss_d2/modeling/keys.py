"""Config keys of backbones and methods: each file declares its own, and checks what it reads."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from detectron2.config import CfgNode

__all__ = ["KEY_GROUPS", "at_least", "choose", "config_keys", "divides"]

T = TypeVar("T")
AddKeys = Callable[[CfgNode], None]

KEY_GROUPS: list[AddKeys] = []
"""Functions that add keys with their defaults to a config, in the order in which they were declared."""


def config_keys(add: AddKeys) -> AddKeys:
    """Decorator: declare a function that adds config keys; `fss_d2.config.add_fss_config` calls it."""
    KEY_GROUPS.append(add)
    return add


def choose(key: str, value: T, known: Iterable[T]) -> T:
    """Return the value of a key; raises ValueError if it is not one of the known values."""
    known = tuple(known)
    if value not in known:
        names = ", ".join(repr(name) if name == "" else str(name) for name in known)
        raise ValueError(f"unknown {key} {value!r}: choose from {names}")
    return value


def at_least(key: str, value: Any, least: float) -> Any:
    """Return the value of a key; raises ValueError if it is smaller than ``least``."""
    if value < least:
        raise ValueError(f"{key} is {value}; it must be at least {least}")
    return value


def divides(key: str, divisor: int, of: str, value: int) -> int:
    """Return the value of a key; raises ValueError unless it is at least 1 and divides that of another."""
    if value % at_least(key, divisor, 1):
        raise ValueError(f"{of} {value} is not a multiple of {key} {divisor}: change one of them")
    return divisor
