"""`glyphs`: a procedural few-shot set that needs no download (80 symbols, four folds of 20).

Layout under the data root::

    glyphs/settings.json          what the pixels depend on: version, seed, size
    glyphs/images/000000.jpg      image `index` of `GlyphGenerator`; class `index % 80` is its subject
    glyphs/masks/000000.png       class map: 0 background, class id + 1
    glyphs/index.json             the images and the classes that each shows; written last

Class c belongs to fold `c % 4`. All folds share the images: those that show a class of fold f are its
`val` split, all others its `train` split, so that training never shows held-out classes, not even as
distractors. The symbols of an image come from at most two folds, which leaves each fold 9/16 of the images
for training.
"""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from fss_d2.io.files import atomic_path, json_text, read_json

from .glyph_drawing import CLASS_NAMES, GlyphGenerator
from .preparation import PAGE, parallel_map, png_is_whole, require, write_class_map, write_text_if_changed
from .splits import NUM_FOLDS, fold_metadata, held_out_classes, record_of

__all__ = ["GlyphGenerator", "check_glyphs", "load_records", "metadata", "names", "write_glyphs"]

logger = logging.getLogger(__name__)

_VERSION = 1  # of the drawings; a change of pixels needs a new number
_JPEG_QUALITY = 92
_PREPARE = "python datasets/prepare_glyphs.py"
_SPLITS = {f"glyphs_fold{f}_{split}": (f, split) for f in range(NUM_FOLDS) for split in ("train", "val")}


def names() -> list[str]:
    """Return the registered names, `glyphs_fold{0..3}_{train,val}`."""
    return list(_SPLITS)


def metadata(name: str) -> dict[str, Any]:
    """Return the metadata of a split, see `fold_metadata`."""
    fold, split = _SPLITS[name]
    novel = held_out_classes(len(CLASS_NAMES), fold, interleaved=True)
    return fold_metadata(CLASS_NAMES, novel, fold=fold, train=split == "train")


def load_records(name: str, root: Path) -> list[dict[str, Any]]:
    """Return the records of a split from `root`/glyphs, with the `root` of `write_glyphs`."""
    folder, (_, split) = root / "glyphs", _SPLITS[name]
    index = _read_json(folder / "index.json", "seed", "size", "images")
    drawn = set(metadata(name)["class_ids"])
    novel = set(metadata(name)["novel_class_ids"])
    records = []
    for entry in index["images"]:
        if novel.isdisjoint(entry["classes"]) == (split == "train"):
            (image, mask), classes = _paths(folder, entry["id"]), [c for c in entry["classes"] if c in drawn]
            records.append(record_of(image, entry["id"], [index["size"]] * 2, classes, mask))
    return records


def write_glyphs(
    root: Path, *, seed: int = 0, size: int = 160, images_per_class: int = 30, workers: int = 0
) -> None:
    """Write the set under `root`/glyphs; existing files are kept, and an interrupted run is continued.

    Args:
        seed: image i is a pure function of (seed, size, i). A set with another seed or size is refused.
        size: side of the square images, in pixels.
        images_per_class: images of each class as the subject, 80 times as many in all. Can be raised later.
        workers: further processes; the files do not depend on it.
    """
    if seed < 0 or size < 32 or images_per_class < 1 or workers < 0:
        raise ValueError(
            f"glyphs need seed >= 0, size >= 32, images_per_class >= 1, workers >= 0; "
            f"got {seed}, {size}, {images_per_class}, {workers}"
        )
    folder = Path(root) / "glyphs"
    _claim(folder, {"version": _VERSION, "seed": seed, "size": size})
    write = partial(_write_image, folder, GlyphGenerator(seed, size))
    indices = range(images_per_class * len(CLASS_NAMES))
    shown = parallel_map(write, indices, workers=workers, progress="Glyphs")
    images = [{"id": i, "classes": classes} for i, classes in zip(indices, shown, strict=True)]
    index = {"seed": seed, "size": size, "classes": list(CLASS_NAMES), "images": images}
    write_text_if_changed(folder / "index.json", json_text(index))


def check_glyphs(root: Path) -> dict[str, tuple[int, int]]:
    """Verify the set under `root`/glyphs; return (images, classes drawn) of each split by its name.

    Every listed file must exist and have the listed size, and each class's first image must equal the
    generator's; the error names the first file that is wrong.
    """
    folder = Path(root) / "glyphs"
    index = _read_json(folder / "index.json", "seed", "size", "images")
    generator = GlyphGenerator(index["seed"], index["size"])
    for entry in index["images"]:
        image_path, mask_path = _paths(folder, entry["id"])
        image, class_map = (cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in (image_path, mask_path))
        for path, pixels in ((image_path, image), (mask_path, class_map)):
            if pixels is None or pixels.shape[:2] != (index["size"], index["size"]):
                raise ValueError(f"{path} is missing or broken: delete it and run `{_PREPARE}` again")
        stale = entry["id"] < len(CLASS_NAMES) and (generator.generate(entry["id"])[1] != class_map).any()
        if stale or _shown(class_map) != entry["classes"]:
            raise ValueError(
                f"{mask_path} is not what seed {index['seed']} draws: remove {folder} and run `{_PREPARE}`"
            )
    records = {name: load_records(name, Path(root)) for name in names()}
    return {
        name: (len(rows), len({c for row in rows for c in row["classes"]})) for name, rows in records.items()
    }


def _paths(folder: Path, index: int) -> tuple[Path, Path]:
    return folder / "images" / f"{index:06d}.jpg", folder / "masks" / f"{index:06d}.png"


def _shown(class_map: np.ndarray) -> list[int]:
    return [int(c) - 1 for c in np.unique(class_map) if c > 0]


def _claim(folder: Path, settings: dict[str, int]) -> None:
    """Create the folder and its settings file, or raise ValueError if it holds images of other settings."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    path = folder / "settings.json"
    if not path.exists():
        write_text_if_changed(path, json_text(settings))
    elif (found := _read_json(path)) != settings:
        fault = f"{folder} holds glyphs made with {found}, not {settings}: remove it or choose another root"
        raise ValueError(fault)


def _write_image(folder: Path, generator: GlyphGenerator, index: int) -> list[int]:
    """Draw and write one image unless it exists; return the class ids that it shows."""
    image_path, mask_path = _paths(folder, index)
    if image_path.exists() and png_is_whole(mask_path):
        class_map = cv2.imread(str(mask_path), cv2.IMREAD_UNCHANGED)
    else:
        image, class_map = generator.generate(index)
        write_class_map(mask_path, class_map)
        with atomic_path(image_path) as part:
            Image.fromarray(image).save(part, format="JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return _shown(class_map)


def _read_json(path: Path, *keys: str) -> dict[str, Any]:
    require(path, f"run `{_PREPARE}`; {PAGE}")
    try:
        content = read_json(path)
    except ValueError:
        content = None
    if not isinstance(content, dict) or not content.keys() >= set(keys):
        raise ValueError(f"{path} is broken: delete it and run `{_PREPARE}` again")
    return content
