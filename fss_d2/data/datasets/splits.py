"""Base and novel classes of a split: dataset names, folds, named classes, metadata, registration."""

import difflib
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

__all__ = [
    "FOLD_RULES",
    "MIN_CLASS_PIXELS",
    "NUM_FOLDS",
    "SPLITS",
    "ClassDivision",
    "FoldName",
    "first_duplicate",
    "fold_metadata",
    "fold_names",
    "held_out_classes",
    "ids_of",
    "register_once",
]

SPLITS = ("all", "train", "val")
FOLD_RULES = ("interleaved", "contiguous")
NUM_FOLDS = 4
# A class counts for an image if it covers at least this many pixels of the original label
# (PFENet, Tian et al., TPAMI 2020: 2 * 32 * 32).
MIN_CLASS_PIXELS = 2 * 32 * 32
IGNORE_LABEL = 255
_NO_NOVEL = "_no_novel"
_NAME = re.compile(r"(?P<variant>\w+?)_fold(?P<fold>\d+)_(?P<split>train|val)(?P<clean>_no_novel)?")


@dataclass(frozen=True)
class FoldName:
    """The parts of ``<variant>_fold<i>_<split>``; ``no_novel`` drops images that show a novel class."""

    variant: str
    fold: int
    split: str
    no_novel: bool = False

    @classmethod
    def parse(cls, name: str, variants: Iterable[str]) -> "FoldName":
        """Parse a dataset name.

        Raises:
            KeyError: the variant is not one of ``variants``, or the fold is not 0 to 3.
        """
        match = _NAME.fullmatch(name)
        known = sorted(variants)
        if match is None or match["variant"] not in known:
            raise KeyError(f"dataset {name!r} is not <variant>_fold<0-3>_<train|val>, variant one of {known}")
        if int(match["fold"]) >= NUM_FOLDS:
            raise KeyError(f"dataset {name!r}: fold {match['fold']} does not exist, use 0 to {NUM_FOLDS - 1}")
        if match["clean"] and match["split"] != "train":
            raise KeyError(f"dataset {name!r}: {_NO_NOVEL} exists for train splits only")
        return cls(match["variant"], int(match["fold"]), match["split"], match["clean"] is not None)


def fold_names(variants: Iterable[str], no_novel: Iterable[str] = ()) -> list[str]:
    """Return all dataset names of ``variants``; those in ``no_novel`` also have a ``_train_no_novel``."""
    names = [f"{v}_fold{i}_{split}" for v in variants for i in range(NUM_FOLDS) for split in ("train", "val")]
    return names + [f"{v}_fold{i}_train{_NO_NOVEL}" for v in no_novel for i in range(NUM_FOLDS)]


def held_out_classes(num_classes: int, fold: int, *, interleaved: bool) -> list[int]:
    """Return the novel class ids (0-based) of a fold.

    Contiguous folds (Shaban et al., BMVC 2017; PANet's COCO folds) hold out a block of
    ``num_classes / 4``; interleaved ones (Nguyen and Todorovic, ICCV 2019) every fourth class.
    """
    if interleaved:
        return list(range(fold, num_classes, NUM_FOLDS))
    size = num_classes // NUM_FOLDS
    return list(range(fold * size, (fold + 1) * size))


def fold_metadata(
    class_names: Sequence[str], novel: Sequence[int], *, fold: int | None, train: bool
) -> dict[str, Any]:
    """Return the metadata of one split: it samples base classes for training, novel classes otherwise."""
    base = [c for c in range(len(class_names)) if c not in set(novel)]
    return {
        "stuff_classes": list(class_names),
        "base_class_ids": base,
        "novel_class_ids": list(novel),
        "class_ids": base if train else list(novel),
        "ignore_label": IGNORE_LABEL,
        "fold": fold,
        "evaluator_type": "few_shot_seg",
    }


@dataclass(frozen=True)
class ClassDivision:
    """The division of a dataset's classes into base and novel ones, and the classes that a split samples.

    Either by fold, or by names (if one list is given, the other is its complement), or not at all: then the
    split must be "all".

    Raises:
        ValueError: the settings contradict each other; the message starts with `dataset`.
    """

    dataset: str
    split: str = "all"
    fold: int | None = None
    num_folds: int = 4
    fold_rule: str = "interleaved"
    base_classes: Sequence[str] | None = None
    novel_classes: Sequence[str] | None = None

    def __post_init__(self) -> None:
        named = self.base_classes is not None or self.novel_classes is not None
        for key, choices in (("split", SPLITS), ("fold_rule", FOLD_RULES)):
            if getattr(self, key) not in choices:
                raise ValueError(f"{self.dataset}: {key} {getattr(self, key)!r} is not one of {choices}")
        if self.fold is not None and not 0 <= self.fold < self.num_folds:
            raise ValueError(
                f"{self.dataset}: fold {self.fold} does not exist, use 0 to {self.num_folds - 1} "
                f"or change num_folds {self.num_folds}"
            )
        if self.fold is not None and named:
            raise ValueError(f"{self.dataset}: give either fold or base_classes/novel_classes, not both")
        if self.split != "all" and self.fold is None and not named:
            raise ValueError(
                f"{self.dataset}: split {self.split!r} needs fold, base_classes or novel_classes"
            )

    def metadata(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Return the metadata of the split of a dataset with these classes (index = class id).

        Raises:
            ValueError: a named class is not among them, is both base and novel, or a side is empty.
        """
        base, novel = self._base_and_novel(class_names)
        if both := sorted(set(base) & set(novel)):
            raise ValueError(
                f"{self.dataset}: class {class_names[both[0]]!r} is in base_classes and novel_classes"
            )
        drawn = {"all": list(range(len(class_names))), "train": base, "val": novel}[self.split]
        if not drawn:
            raise ValueError(
                f"{self.dataset}: no class is left for split {self.split!r} of {len(class_names)} classes"
            )
        fields = fold_metadata(class_names, novel, fold=self.fold, train=self.split == "train")
        return fields | {"base_class_ids": base, "class_ids": drawn}

    def _base_and_novel(self, class_names: Sequence[str]) -> tuple[list[int], list[int]]:
        count = len(class_names)
        named_base = ids_of(self.base_classes, class_names, f"{self.dataset}: base_classes")
        novel = ids_of(self.novel_classes, class_names, f"{self.dataset}: novel_classes")
        if self.fold is not None and self.fold_rule == "interleaved":
            novel = list(range(self.fold, count, self.num_folds))
        elif self.fold is not None:
            novel = list(
                range(self.fold * count // self.num_folds, (self.fold + 1) * count // self.num_folds)
            )
        elif novel is None:
            novel = [] if named_base is None else [c for c in range(count) if c not in named_base]
        base = [c for c in range(count) if c not in novel] if named_base is None else named_base
        return base, novel


def ids_of(wanted: Sequence[str] | None, class_names: Sequence[str], where: str) -> list[int] | None:
    """Return the rising ids of the named classes (None for None); ValueError for an unknown name."""
    if wanted is None:
        return None
    for name in wanted:
        if name not in class_names:
            near = difflib.get_close_matches(str(name), class_names, n=3) or list(class_names[:5])
            raise ValueError(f"{where}: there is no class {name!r}; perhaps {', '.join(near)}?")
    return sorted(class_names.index(name) for name in set(wanted))


def register_once(
    name: str,
    load: Callable[[], list[dict[str, Any]]],
    arguments: Mapping[str, Any],
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Register a dataset in Detectron2's catalogs; a second call with the same arguments does nothing.

    Raises:
        ValueError: the name belongs to a dataset with other arguments.
    """
    if name in DatasetCatalog:
        before = MetadataCatalog.get(name).get("registered_as")
        if before != dict(arguments):
            keys = [k for k in arguments if before is None or before.get(k) != arguments[k]]
            raise ValueError(
                f"dataset {name!r} is registered already with another {', '.join(keys)}: choose another name"
            )
        return
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(**(metadata or {}), registered_as=dict(arguments))


def first_duplicate(values: Iterable[Any]) -> Any | None:
    """Return a value that occurs twice, or None."""
    return next((a for a, b in itertools.pairwise(sorted(values)) if a == b), None)
