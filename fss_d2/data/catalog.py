"""Datasets by name: lazy registration in Detectron2's catalogs, and lookup with helpful errors."""

import difflib
import inspect
import os
import re
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from fss_d2.io.files import expand_user, shortened

from . import datasets
from .datasets.class_maps import register_class_maps
from .datasets.custom import register_coco_json, register_folder
from .datasets.preparation import PAGE

__all__ = ["dataset_root", "get_records", "register_all", "register_datasets_from_cfg"]

# The registering functions behind the keys of DATASETS, with the arguments that are paths.
_KINDS: dict[str, tuple[Any, ...]] = {
    "FOLDERS": (register_folder, "root"),
    "COCO_JSON": (register_coco_json, "json_file", "image_root"),
    "CLASS_MAPS": (register_class_maps, "image_root", "mask_root", "pairs", "leave_out"),
}
# The folders of slices of larger data sets that several configs read; a script cuts each of them.
_CUT_SETS = ("coco_mini", "pascal_part")


def _data_sets() -> Iterator[ModuleType]:
    """The files of `datasets` that hold a data set.

    They have names() -> list[str], metadata(name) -> dict, load_records(name, root) -> list of dataset dicts.
    """
    for found in iter_modules(datasets.__path__):
        module = import_module(f"{datasets.__name__}.{found.name}")
        if hasattr(module, "load_records") and hasattr(module, "names"):
            yield module


def dataset_root() -> Path:
    """Return the folder of all prepared datasets: $DETECTRON2_DATASETS, or "datasets"."""
    return Path(expand_user(os.environ.get("DETECTRON2_DATASETS", "datasets")))


def register_all() -> None:
    """Register every built-in dataset by name; no file is read, and registered names stay as they are."""
    for module in _data_sets():
        for name in module.names():
            if name not in DatasetCatalog:
                DatasetCatalog.register(name, partial(_load_builtin, module, name))
                MetadataCatalog.get(name).set(**module.metadata(name))


def _load_builtin(module: ModuleType, name: str) -> list[dict[str, Any]]:
    return module.load_records(name, dataset_root())  # the root of the time of the call


def get_records(name: str) -> list[dict[str, Any]]:
    """Return the dataset dicts of a registered dataset (the last few are cached; do not change them)."""
    if name not in DatasetCatalog:
        raise ValueError(_unknown(name, DatasetCatalog.list()))
    return list(_remembered(DatasetCatalog[name], dataset_root().absolute()))


@lru_cache(maxsize=4)
def _remembered(load: Callable[[], list[dict[str, Any]]], root: Path) -> list[dict[str, Any]]:
    """Call a registered function; `root` is part of the key because built-in sets read from it."""
    return load()


def _unknown(name: str, known: list[str]) -> str:
    match = re.fullmatch(r"(.+_fold)(\d+)(_.+)", name)
    folds = [f for f in range(10) if match and f"{match[1]}{f}{match[3]}" in known]
    if match and folds:
        return f"dataset {name!r}: there is no fold {match[2]}; folds are {folds[0]}..{folds[-1]}"
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else "see datasets/README.md for the names"
    return f"dataset {name!r} is not registered: {hint}"


def register_datasets_from_cfg(cfg: CfgNode) -> None:
    """Register the sets of DATASETS.FOLDERS, .COCO_JSON and .CLASS_MAPS; a second call changes nothing.

    Relative paths start at $DETECTRON2_DATASETS, or at the current folder if nothing is there. Errors are
    those of `register_folder`, `register_coco_json` and `register_class_maps`; ValueError also for a wrong or
    missing argument.
    """
    for key, (register, *paths) in _KINDS.items():
        for entry in cfg.DATASETS[key]:
            try:
                arguments = inspect.signature(register).bind(**entry).arguments
                located = {path: _located(arguments[path]) for path in paths if arguments.get(path)}
                register(**{**arguments, **located})
            except TypeError as error:  # a wrong name, or a value of the wrong type
                raise ValueError(f"DATASETS.{key}: {error} in {shortened(entry)}") from error
            except FileNotFoundError as error:
                cut = [name for name in _CUT_SETS if str(dataset_root() / name) in str(error)]
                if not cut:
                    raise
                fix = f"run `python datasets/prepare_{cut[0]}.py`; {PAGE}"
                raise FileNotFoundError(f"{error}, or {fix}") from error


def _located(path: str) -> Path:
    below, here = dataset_root() / expand_user(path), Path(path)
    return here if here.exists() and not below.exists() else below
