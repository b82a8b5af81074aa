"""The user's own data: photographs with class maps, as PASCAL VOC stores them."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from fss_d2.data.mask_files import Frame
from fss_d2.data.masks import IGNORE, read_class_map
from fss_d2.data.picture_files import pictures_in
from fss_d2.io.files import expand_user

from .preparation import parse_pairs, read_ids, read_text
from .splits import ClassDivision, first_duplicate, record_of, register_once

__all__ = ["register_class_maps"]


def register_class_maps(
    name: str,
    image_root: str | PathLike[str],
    mask_root: str | PathLike[str],
    classes: Sequence[str],
    *,
    pairs: str | PathLike[str] = "",
    leave_out: str | PathLike[str] = "",
    base_classes: Sequence[str] | None = None,
    novel_classes: Sequence[str] | None = None,
    fold: int | None = None,
    num_folds: int = 4,
    fold_rule: str = "interleaved",
    split: str = "all",
    min_area: int = 0,
    exclude_images_with_novel: bool = False,
) -> None:
    """Register photographs with class maps: 0 background, 1 the first class, 255 ignored.

    Every class map is read when the dataset is first used, a few milliseconds each: what a photograph shows
    is known exactly. Wrong arguments are refused at once.

    Args:
        name, base_classes, novel_classes, split: as in `register_folder`.
        image_root, mask_root: folders of the photographs and of their class maps, `<same stem>.png`.
        classes: the names of the values 1, 2, ..., in this order.
        pairs: pattern of lists of lines `<stem>__<value>`, such as "lists/val_fold*.txt": a photograph counts
            for the listed classes only. "": every photograph, for every class.
        leave_out: a file of stems, one a line, that are not used; "": none.
        fold, num_folds, fold_rule, min_area: as in `register_coco_json`; PASCAL-5i's folds are "contiguous".
        exclude_images_with_novel: "train" drops every photograph with a pixel of a novel class.

    Example:
        >>> import pathlib, tempfile
        >>> from PIL import Image
        >>> from fss_d2.data import get_records, register_class_maps
        >>> root = pathlib.Path(tempfile.mkdtemp())
        >>> for part in ("photos", "maps"):
        ...     (root / part).mkdir()
        >>> Image.new("RGB", (8, 6)).save(root / "photos/a.jpg")
        >>> Image.new("L", (8, 6), 2).save(root / "maps/a.png")
        >>> register_class_maps("my_maps", root / "photos", root / "maps", ["cat", "dog"])
        >>> [(r["image_id"], r["classes"]) for r in get_records("my_maps")]
        [('a', [1])]
    """
    image_root, mask_root = expand_user(image_root), expand_user(mask_root)
    pairs, leave_out = (path and expand_user(path) for path in (pairs, leave_out))
    arguments = dict(locals())
    division = ClassDivision(name, split, fold, num_folds, fold_rule, base_classes, novel_classes)
    _check(name, classes, min_area, exclude_images_with_novel and split == "all")
    metadata = division.metadata(classes)
    is_clean = exclude_images_with_novel and split == "train"
    source = _Source(
        name,
        *(Path(path) if path else None for path in (image_root, mask_root, pairs, leave_out)),
        classes=tuple(classes),
        used=frozenset(metadata["class_ids"]),
        banned=frozenset(metadata["novel_class_ids"] if is_clean else ()),
        min_area=min_area,
    )
    source.check_files()
    register_once(name, partial(_load, source), arguments, metadata)


@dataclass(frozen=True)
class _Source:
    """What `_load` reads."""

    name: str
    image_root: Path
    mask_root: Path
    pairs: Path | None
    leave_out: Path | None
    classes: tuple[str, ...]
    used: frozenset[int]  # class ids that the split samples
    banned: frozenset[int]  # a photograph that shows one is dropped
    min_area: int

    def check_files(self) -> None:
        """Raise FileNotFoundError if a folder or list does not exist."""
        for folder in (self.image_root, self.mask_root):
            if not folder.is_dir():
                raise FileNotFoundError(f"{self.name}: folder {folder} does not exist; correct its path")
        if self.pairs is not None and not self.lists():
            raise FileNotFoundError(f"{self.name}: no list {self.pairs} exists; correct pairs")
        if self.leave_out is not None and not self.leave_out.is_file():
            raise FileNotFoundError(f"{self.name}: file {self.leave_out} does not exist; correct leave_out")

    def lists(self) -> list[Path]:
        """The lists of pairs, by name."""
        return sorted(self.pairs.parent.glob(self.pairs.name)) if self.pairs else []

    def candidates(self, stems: Iterable[str]) -> dict[str, Collection[int]]:
        """The classes for which each photograph may count, in the order of the lists."""
        found: dict[str, Collection[int]]
        if self.pairs is None:
            found = dict.fromkeys(stems, self.used)
        else:
            listed: dict[str, list[int]] = {}
            for path in self.lists():
                for stem, class_id in parse_pairs(read_text(path), str(path), len(self.classes)):
                    listed.setdefault(stem, []).append(class_id)
            found = {stem: self.used.intersection(classes) for stem, classes in listed.items()}
        unused = set(read_ids(self.leave_out)) if self.leave_out else set()
        return {stem: classes for stem, classes in found.items() if classes and stem not in unused}


def _check(name: str, classes: Sequence[str], min_area: int, excludes_without_split: bool) -> None:
    if isinstance(classes, str) or not 1 <= len(classes) < IGNORE:
        raise ValueError(f"{name}: classes must be a list of 1 to {IGNORE - 1} names, got {classes!r}")
    if (twice := first_duplicate(classes)) is not None:
        raise ValueError(f"{name}: class {twice!r} is listed twice in classes; list it once")
    if min_area < 0:
        raise ValueError(f"{name}: min_area {min_area} must not be negative")
    if excludes_without_split:
        fix = "give split 'train' or 'val'"
        raise ValueError(f"{name}: exclude_images_with_novel separates train from val; {fix}")


def _load(source: _Source) -> list[dict[str, Any]]:
    pictures = {path.stem: path for path in pictures_in(source.image_root)[0]}
    records = []
    for stem, candidates in source.candidates(pictures).items():
        if stem not in pictures:
            raise FileNotFoundError(f"{source.name}: no picture {source.image_root / stem} exists: add it")
        mask = source.mask_root / f"{stem}.png"
        areas = _areas(mask, len(source.classes))
        classes = [c for c in sorted(candidates) if areas.get(c, 0) >= max(source.min_area, 1)]
        if classes and source.banned.isdisjoint(areas):
            record = record_of(pictures[stem], stem, Frame.of_file(pictures[stem]).shape, classes, mask)
            records.append(record | {"query_classes": sorted(source.used.intersection(areas))})
    if not records:
        raise ValueError(f"{source.name}: no photograph of {source.image_root} shows a class of the split")
    return records


def _areas(path: Path, num_classes: int) -> Mapping[int, int]:
    """Return the number of pixels of each class that a class map shows, by class id."""
    pixels = np.bincount(read_class_map(path).ravel(), minlength=IGNORE + 1)
    pixels[[0, IGNORE]] = 0
    if (odd := np.flatnonzero(pixels[num_classes + 1 :])).size:
        value = num_classes + 1 + int(odd[0])
        raise ValueError(f"mask file {path} has the value {value}, but there are {num_classes} classes")
    return {int(value) - 1: int(pixels[value]) for value in np.flatnonzero(pixels)}
