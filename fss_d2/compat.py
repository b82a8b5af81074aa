"""Bridges Detectron2 0.6 to current Pillow, numpy, torch and Python; the only module that knows of them.

`import fss_d2` calls `apply` before anything else. It bridges three things, without importing torch:

- names that Detectron2 0.6 still uses and that Pillow and numpy have dropped;
- the compiled operators `detectron2._C`, which several modules import but nothing in fss_d2 calls: where they
  are absent, or were built for another torch, a stand-in takes their place, whose use is a clear error;
- a missing Detectron2, which becomes one line that says what to do.

A compiled Detectron2 (its main branch) is left as it is.
"""

import importlib
import importlib.util
import logging
import sys
import types
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from typing import Literal

import numpy as np
import PIL.Image

__all__ = ["OperatorState", "apply", "operator_state", "require_onnx_translations", "require_safe_torch_load"]

OperatorState = Literal["compiled", "absent", "broken"]
_OPERATORS = "detectron2._C"
_CHECK_ENV = "fss_d2.check_env"
# numpy 1.24 dropped these aliases of Python's own types; numpy 2 brought `bool` back.
_NUMPY_ALIASES = {"bool": bool, "int": int, "float": float}


def apply() -> None:
    """Make Detectron2 importable, once or more. Where it is missing, only fss_d2.check_env continues."""
    if not hasattr(PIL.Image, "LINEAR"):
        PIL.Image.LINEAR = PIL.Image.BILINEAR
    for name, builtin in _NUMPY_ALIASES.items():
        if not hasattr(np, name):
            setattr(np, name, builtin)
    if not any(isinstance(finder, _OperatorFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _OperatorFinder())
    if importlib.util.find_spec("detectron2") is None and _CHECK_ENV not in sys.orig_argv:
        raise ModuleNotFoundError(
            "detectron2 is not installed: run `make setup`, or in an environment of your own "
            "`python tools/install_detectron2.py` (INSTALL.md)",
            name="detectron2",
        )


def operator_state() -> OperatorState:
    """Whether Detectron2's compiled operators are in place, were never built, or do not load."""
    return getattr(importlib.import_module(_OPERATORS), "state", "compiled")


def require_safe_torch_load(what: str) -> None:
    """Raise ValueError where `torch.load` of another library would read a pickle unsafely.

    Before torch 2.6 ``weights_only`` ran code from some files (CVE-2025-32434). Files that are given by path
    do not need this: `fss_d2.io.weight_files` reads them without `torch.load`.
    """
    version = _torch_before_2_6()
    if version:
        raise ValueError(
            f"{what} may be a pickle, which torch {version} reads unsafely: install torch 2.6 or newer, or "
            "download the file and set the key to its path"
        )


def require_onnx_translations() -> None:
    """Raise ValueError where `torch.onnx.export` takes no translations of single operators."""
    if version := _torch_before_2_6():
        raise ValueError(
            f"onnx needs torch 2.6 or newer, this is {version}: choose torch_export or torchscript"
        )


def _torch_before_2_6() -> str:
    """The version of torch if it is below 2.6, otherwise an empty text."""
    import torch  # here, so that --help does not wait for it

    is_old = tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 6)
    return torch.__version__ if is_old else ""


class _NoOperators(types.ModuleType):
    """Stand-in for `detectron2._C`: imports succeed, using an operator is an error with a clear message."""

    def __init__(self, state: OperatorState) -> None:
        super().__init__(_OPERATORS, "Stand-in for Detectron2's compiled operators.")
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


class _OperatorFinder(MetaPathFinder):
    """Finds the operators, or the stand-in, when they are first imported: a compiled file imports torch."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        """See MetaPathFinder."""
        if fullname != _OPERATORS:
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is None or spec.loader is None:
            return ModuleSpec(fullname, _OperatorLoader(None), origin="fss_d2.compat")
        spec.loader = _OperatorLoader(spec.loader)
        return spec


class _OperatorLoader(Loader):
    """Loads the operators; gives the stand-in where there are none or they do not load."""

    def __init__(self, compiled: Loader | None) -> None:
        self._compiled = compiled

    def create_module(self, spec: ModuleSpec) -> types.ModuleType | None:
        """See Loader; opens the compiled file."""
        if self._compiled is None:
            return _NoOperators("absent")
        try:
            return self._compiled.create_module(spec)
        except ImportError as error:
            return _broken(error)

    def exec_module(self, module: types.ModuleType) -> None:
        """See Loader."""
        if self._compiled is None or isinstance(module, _NoOperators):
            return
        try:
            self._compiled.exec_module(module)
        except ImportError as error:
            sys.modules[_OPERATORS] = _broken(error)


def _broken(error: ImportError) -> _NoOperators:
    logging.getLogger(__name__).warning(
        "Detectron2's compiled operators do not load, continuing without them; rebuild Detectron2 for the "
        "installed torch: %s",
        error,
    )
    return _NoOperators("broken")
