"""Config keys of backbones and methods: each file declares its own, and checks the values that it reads."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from detectron2.config import CfgNode

__all__ = ["KEY_GROUPS", "at_least", "choose", "config_keys", "require", "share"]

T = TypeVar("T")
AddKeys = Callable[[CfgNode], None]

KEY_GROUPS: list[AddKeys] = []
"""Functions that add keys with their defaults to a config, in the order in which they were declared."""


def config_keys(add: AddKeys) -> AddKeys:
    """Decorator: declare a function that adds config keys; `fss_d2.config.add_fss_config` calls it."""
    KEY_GROUPS.append(add)
    return add


# Each check below takes the name of a key, or of an argument, for its error.


def require(fits: bool, name: str, value: Any, rule: str) -> None:
    """Raise ValueError "NAME VALUE must be RULE" unless the value fits."""
    if not fits:
        raise ValueError(f"{name} {value!r} must be {rule}")


def choose(name: str, value: T, known: Iterable[T]) -> T:
    """Return a value; raises ValueError if it is not one of the known values."""
    known = tuple(known)
    if value not in known:
        names = ", ".join(repr(one) if one == "" else str(one) for one in known)
        raise ValueError(f"unknown {name} {value!r}: choose from {names}")
    return value


def at_least(name: str, value: Any, least: float) -> Any:
    """Return a number; raises ValueError if it is smaller than ``least``."""
    require(value >= least, name, value, f"at least {least}")
    return value


def share(name: str, value: float) -> float:
    """Return a share, such as one of dropout; raises ValueError if it is below 0, or 1 or more."""
    require(0 <= value < 1, name, value, "at least 0 and below 1")
    return value
