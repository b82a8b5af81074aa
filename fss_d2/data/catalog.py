"""Datasets by name: lazy registration in Detectron2's catalogs, and lookup with helpful errors."""

import difflib
import inspect
import os
import re
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from .datasets import coco2pascal, coco20i, fss1000, glyphs, pascal5i
from .datasets.custom import register_coco_json, register_folder

__all__ = ["dataset_root", "get_records", "register_all", "register_datasets_from_cfg"]

# Each has names() -> list[str], metadata(name) -> dict, load_records(name, root) -> list of dataset dicts.
_MODULES: tuple[ModuleType, ...] = (pascal5i, coco20i, coco2pascal, fss1000, glyphs)


def dataset_root() -> Path:
    """Return the folder of all prepared datasets: $DETECTRON2_DATASETS, or "datasets"."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))


def register_all() -> None:
    """Register every built-in dataset by name; no file is read, and registered names stay as they are."""
    for module in _MODULES:
        for name in module.names():
            if name not in DatasetCatalog:
                DatasetCatalog.register(name, partial(_load_builtin, module, name))
                MetadataCatalog.get(name).set(**module.metadata(name))


def _load_builtin(module: ModuleType, name: str) -> list[dict[str, Any]]:
    return module.load_records(name, dataset_root())


def get_records(name: str) -> list[dict[str, Any]]:
    """Return the dataset dicts of a registered dataset (the last few are cached; do not change them).

    Raises:
        ValueError: there is no such name; the message lists similar ones, or the folds.
        FileNotFoundError: the files are missing; names the path and the command that writes them.
    """
    if name not in DatasetCatalog:
        raise ValueError(_unknown(name, DatasetCatalog.list()))
    return list(_remembered(DatasetCatalog[name], dataset_root().absolute()))


@lru_cache(maxsize=4)
def _remembered(load: Callable[[], list[dict[str, Any]]], root: Path) -> list[dict[str, Any]]:
    """Call a registered function; `root` is part of the key because built-in sets read from it."""
    return load()


def _unknown(name: str, known: list[str]) -> str:
    """Return the error message for a name that is not registered."""
    match = re.fullmatch(r"(.+_fold)(\d+)(_.+)", name)
    folds = [f for f in range(10) if match and f"{match[1]}{f}{match[3]}" in known]
    if match and folds:
        return f"dataset {name!r}: there is no fold {match[2]}; folds are {folds[0]}..{folds[-1]}"
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else "see datasets/README.md for the names"
    return f"dataset {name!r} is not registered: {hint}"


def register_datasets_from_cfg(cfg: CfgNode) -> None:
    """Register the user's own sets that a config lists; a second call changes nothing.

    Args:
        cfg: DATASETS.FOLDERS and DATASETS.COCO_JSON, lists of keyword arguments of `register_folder` and
            `register_coco_json`. Relative paths start at $DETECTRON2_DATASETS.

    Raises:
        FileNotFoundError, ValueError: see these functions; ValueError also for a wrong or missing argument.
    """
    for entry in cfg.DATASETS.FOLDERS:
        _register_entry(register_folder, "DATASETS.FOLDERS", entry, ("root",))
    for entry in cfg.DATASETS.COCO_JSON:
        _register_entry(register_coco_json, "DATASETS.COCO_JSON", entry, ("json_file", "image_root"))


def _register_entry(
    register: Callable[..., None], key: str, entry: Mapping[str, Any], paths: tuple[str, ...]
) -> None:
    try:
        arguments = inspect.signature(register).bind(**entry).arguments
        located = {path: dataset_root() / os.path.expanduser(arguments[path]) for path in paths}
        register(**{**arguments, **located})
    except TypeError as error:  # a wrong name, or a value of the wrong type
        raise ValueError(f"{key}: {error} in {entry}") from error
