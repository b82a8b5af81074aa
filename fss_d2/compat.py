"""Bridges Detectron2 0.6 to today's Pillow, numpy, torch and Python; the only module that knows of them.

Importing `fss_d2` calls `apply` first of all. Three things are bridged:

- names that Detectron2 0.6 still uses and that Pillow and numpy have dropped;
- the compiled operators `detectron2._C`, which several modules import but nothing in fss_d2 calls: where they
  are absent, or were built for another torch, a stand-in takes their place whose use is a clear error;
- a missing Detectron2, which becomes one line that says what to do.

A compiled Detectron2 (its main branch) is left as it is.
"""

import importlib
import importlib.util
import logging
import sys
import types
from importlib.machinery import ModuleSpec, PathFinder
from typing import Literal

import numpy as np
import PIL.Image

__all__ = ["OperatorState", "apply", "operator_state"]

OperatorState = Literal["compiled", "absent", "broken"]
_OPERATORS = "detectron2._C"
_CHECK_ENV = "fss_d2.check_env"
# numpy 1.24 dropped these aliases of Python's own types; numpy 2 brought `bool` back.
_NUMPY_ALIASES = {"bool": bool, "int": int, "float": float}


class _NoOperators(types.ModuleType):
    """Stand-in for `detectron2._C`: imports succeed, using an operator is an error with a clear message."""

    def __init__(self, state: OperatorState) -> None:
        super().__init__(_OPERATORS, "Stand-in for Detectron2's compiled operators.")
        self.__spec__ = ModuleSpec(_OPERATORS, None, origin="fss_d2.compat")
        self.state = state

    def get_compiler_version(self) -> str:
        """As detectron2.utils.collect_env asks for it."""
        return "not compiled"

    get_cuda_version = get_compiler_version

    def has_cuda(self) -> bool:
        """Whether the operators have CUDA kernels: there are no operators."""
        return False

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(
            f"detectron2._C.{name} is not there: this Detectron2 has no compiled operators; "
            "build its main branch if you need them (INSTALL.md)"
        )


def apply() -> None:
    """Make Detectron2 importable. Calling it again changes nothing.

    Raises:
        ModuleNotFoundError: Detectron2 is not installed (fss_d2.check_env alone goes on, to report that).
    """
    _restore_dropped_names()
    spec = importlib.util.find_spec("detectron2")
    if spec is not None:
        _ensure_operators(list(spec.submodule_search_locations or []))
    elif _CHECK_ENV not in sys.orig_argv:
        raise ModuleNotFoundError(
            "detectron2 is not installed: run `make setup`, or in an environment of your own "
            "`python tools/install_detectron2.py` (INSTALL.md)",
            name="detectron2",
        )


def operator_state() -> OperatorState:
    """Whether Detectron2's compiled operators are in place, were never built, or do not load."""
    return getattr(sys.modules.get(_OPERATORS), "state", "compiled")


def _restore_dropped_names() -> None:
    if not hasattr(PIL.Image, "LINEAR"):
        PIL.Image.LINEAR = PIL.Image.BILINEAR
    for name, builtin in _NUMPY_ALIASES.items():
        if not hasattr(np, name):
            setattr(np, name, builtin)


def _ensure_operators(search_path: list[str]) -> None:
    """Import the operators found in the package's folders, or put the stand-in where they would be."""
    if _OPERATORS in sys.modules:
        return
    # PathFinder rather than importlib.util.find_spec, which would import the package first: a custom
    # DETECTRON2_ENV_MODULE may import parts of Detectron2 that need the stand-in.
    if PathFinder.find_spec(_OPERATORS, search_path) is None:
        sys.modules[_OPERATORS] = _NoOperators("absent")
        return
    try:
        importlib.import_module(_OPERATORS)
    except ImportError as error:
        sys.modules[_OPERATORS] = _NoOperators("broken")
        logging.getLogger(__name__).warning(
            "Detectron2's compiled operators do not load, going on without them; rebuild Detectron2 for the "
            "installed torch: %s",
            error,
        )
