"""Pair the pictures of a folder with their mask files; what could belong to two is refused by name."""

import logging
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from fss_d2.io.files import printable

from .images import is_image_name
from .picture_files import listed, pictures_in

__all__ = ["check_layout", "class_folders", "find_marked_masks", "find_pairs", "listed_files"]
__all__ += ["find_pairs_in_parts", "say_left_out"]

logger = logging.getLogger(__name__)

_MARK = "_mask"  # at the end of a mask's file name, before the ending
Pair = tuple[Path, Path]  # picture, mask


def find_pairs(folder: Path) -> list[Pair]:
    """The pictures of a folder by name, each with the mask next to it.

    The mask of ``a.jpg`` is ``a_mask.png`` (or another ending) or ``a.png``; that of ``a.png`` is
    ``a_mask.png``. Pictures that cannot be decoded are named in the log.

    Raises:
        ValueError: a picture without mask, a mask without picture, or two files that one could belong to.
    """
    files, left_out = pictures_in(folder)
    stems = set(map(_stem, files))
    marked = _by_name((path for path in files if _owner(path) in stems), _owner)
    plain = _by_name(path for path in files if _owner(path) not in stems)
    for stem in marked.keys() - plain.keys():  # of a mask
        raise _orphan(marked[stem][0], stem, left_out, folder)
    pairs = []
    for stem, pictures in plain.items():
        own = marked.get(stem, [])
        pngs = [p for p in pictures if p.suffix.lower() == ".png"]
        if not own and len(pictures) == 2 and len(pngs) == 1:
            own, pictures = pngs, [p for p in pictures if p not in pngs]
        if not own and len(pictures) == 1:
            if owner := _owner(pictures[0]):
                raise _orphan(pictures[0], owner, left_out, folder)
            fix = f"add {stem}{_MARK}.png next to it, or remove the image"
            raise ValueError(f"image {pictures[0]} has no mask: {fix}")
        if len(pictures) > 1:
            of = f", and {own[0].name} can be of one only" if own else ""
            names = _names(pictures)
            raise ValueError(f"{folder}: the images {names} have the same name{of}; rename or remove one")
        if len(own) > 1:
            raise ValueError(f"{folder}: image {pictures[0].name} has the masks {_names(own)}; remove one")
        pairs.append((pictures[0], own[0]))
    say_left_out(folder, left_out)
    return sorted(pairs)


def find_pairs_in_parts(folder: Path) -> list[Pair]:
    """The pictures of ``folder/images`` by name, each with the mask of the same name in ``folder/masks``.

    Errors and log as `find_pairs`; ValueError also without any picture.
    """
    images, left_out = pictures_in(folder / "images")
    masks, odd = pictures_in(folder / "masks")
    if not images:
        lost = f" that can be read, {listed_files(left_out)}" if left_out else ""
        raise ValueError(f"{folder / 'images'} holds no image{lost}: add images or remove the class folder")
    by_name, masks_by_name = _by_name(images), _by_name(masks)
    for stem, paths in by_name.items():
        if len(paths) > 1:
            fault = f"two images have the name {stem!r} with different suffixes"
            raise ValueError(f"{folder / 'images'}: {fault}; rename one")
        if stem not in masks_by_name:
            fix = f"add {folder / 'masks' / stem}.png or remove the image"
            raise ValueError(f"image {paths[0]} has no mask: {fix}")
        if len(masks_by_name[stem]) > 1:
            names = _names(masks_by_name[stem])
            raise ValueError(f"{folder / 'masks'}: image {paths[0].name} has the masks {names}; remove one")
    for stem in sorted(masks_by_name.keys() - by_name.keys()):
        raise _orphan(masks_by_name[stem][0], stem, left_out, folder / "images")
    say_left_out(folder / "images", left_out)
    say_left_out(folder / "masks", odd)
    return [(paths[0], masks_by_name[stem][0]) for stem, paths in sorted(by_name.items())]


def find_marked_masks(folder: Path) -> list[Path]:
    """The files ``<name>_mask.*`` next to a picture ``<name>.*``, in a folder and its subfolders."""
    files = [path for path in sorted(folder.rglob("[!.]*")) if is_image_name(path)]
    named = {(path.parent, _stem(path)) for path in files}
    return [path for path in files if (path.parent, _owner(path)) in named]


def class_folders(folder: Path) -> list[Path]:
    """The folders in a folder, by name, without those that start with a dot and what macOS adds to a zip."""
    return [path for path in sorted(folder.glob("[!.]*")) if path.is_dir() and path.name != "__MACOSX"]


def check_layout(folder: Path, classes: Sequence[str] | None = None) -> None:
    """Raise ValueError for pictures outside the images folders of class folders, and masks without them.

    Args:
        folder: has at least one ``<class>/images``.
        classes: the class folders to look at; None takes all.
    """
    chosen = [p for p in class_folders(folder) if classes is None or p.name in classes]
    for path in [folder, *chosen] if classes is None else chosen:
        loose = next((p for p in sorted(path.glob("[!.]*")) if p.is_file() and is_image_name(p)), None)
        if loose is None:
            continue
        if path != folder and (path / "images").is_dir():
            fix = "move them into images, and their masks into masks"
            raise ValueError(f"{path} has pictures ({loose.name}) next to its folder images: {fix}")
        where = "next to class folders" if path == folder else "but no folder images"
        fix = "arrange all classes as <class>/images and <class>/masks, or move them away"
        raise ValueError(f"{path} has pictures ({loose.name}) {where}: {fix}")
    for path in chosen:
        if (path / "masks").is_dir() and not (path / "images").is_dir():
            raise ValueError(
                f"{path} has a folder masks but no folder images: add the images, or move it away"
            )


def _stem(path: Path) -> str:
    """The name without its ending; letters with accents are one letter, not two as macOS writes them."""
    return unicodedata.normalize("NFC", path.stem)


def _owner(path: Path) -> str:
    """The stem of the picture whose mask a file is by its own name; "" if its name does not say it."""
    stem = _stem(path)
    return stem[: -len(_MARK)] if stem.lower().endswith(_MARK) else ""


def _by_name(files: Iterable[Path], key: Callable[[Path], str] = _stem) -> dict[str, list[Path]]:
    grouped: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        grouped[key(path)].append(path)
    return dict(grouped)


def _orphan(mask: Path, stem: str, left_out: Mapping[Path, str], folder: Path) -> ValueError:
    """The error of a mask without the picture ``stem`` in ``folder``."""
    lost = {path: reason for path, reason in left_out.items() if _stem(path) == stem}
    why = f" that can be read, {listed_files(lost)}" if lost else ""
    return ValueError(f"mask {mask} has no image in {folder}{why}: add it or remove the mask")


def say_left_out(folder: Path, left_out: Mapping[Path, str], *, has_classes: bool = False) -> None:
    """Name in the log the files of a folder that are lost, and subfolders with pictures that are no class."""
    lost = dict(left_out)
    for path in () if has_classes else class_folders(folder):
        if any(is_image_name(p) for p in path.glob("[!.]*")):
            lost[path] = "subfolders are not searched"
    if lost:
        logger.warning("Left out in %s: %s", printable(folder), printable(listed_files(lost)))


def listed_files(left_out: Mapping[Path, str]) -> str:
    """The names of some files, each with the reason why it was left out."""
    return listed([(path.name, reason) for path, reason in left_out.items()])


def _names(paths: Sequence[Path]) -> str:
    return " and ".join(path.name for path in paths)
