"""Folds of a few-shot set: which classes are held out, and what a dataset name says."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["MIN_CLASS_PIXELS", "NUM_FOLDS", "FoldName", "fold_metadata", "fold_names", "held_out_classes"]

NUM_FOLDS = 4
# A class counts for an image where it covers at least this many pixels of the original label
# (PFENet, Tian et al., TPAMI 2020: 2 * 32 * 32).
MIN_CLASS_PIXELS = 2 * 32 * 32
IGNORE_LABEL = 255
_NO_NOVEL = "_no_novel"
_NAME = re.compile(r"(?P<variant>\w+?)_fold(?P<fold>\d+)_(?P<split>train|val)(?P<clean>_no_novel)?")


@dataclass(frozen=True)
class FoldName:
    """What ``<variant>_fold<i>_<split>`` says; ``no_novel`` drops images that show a novel class."""

    variant: str
    fold: int
    split: str
    no_novel: bool = False

    @classmethod
    def parse(cls, name: str, variants: Iterable[str]) -> "FoldName":
        """Read a dataset name.

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
            raise KeyError(f"dataset {name!r}: {_NO_NOVEL} is for train splits only")
        return cls(match["variant"], int(match["fold"]), match["split"], match["clean"] is not None)


def fold_names(variants: Iterable[str], no_novel: Iterable[str] = ()) -> list[str]:
    """Return all dataset names of ``variants``; those in ``no_novel`` have a ``_train_no_novel`` too."""
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
    """Return the metadata of one split: its episodes draw base classes in training, novel ones else."""
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
