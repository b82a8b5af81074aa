"""Preparation of PASCAL-5i from VOC 2012 and SBD (Hariharan et al., ICCV 2011)."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from . import pascal5i
from .preparation import (
    Count,
    find_list,
    parallel_map,
    png_is_whole,
    prepared_dir,
    read_ids,
    require,
    write_class_map,
    write_index,
    write_text_if_changed,
)
from .splits import NUM_FOLDS

__all__ = ["check", "prepare"]

VOC_FIX = "download VOC 2012's trainval archive (VOCtrainval_11-May-2012.tar) and extract it there"
SBD_FIX = "download SBD (benchmark.tgz) and extract it to <root>/SBD"
_SBD_PLACES = ("SBD/benchmark_RELEASE/dataset", "benchmark_RELEASE/dataset", "sbd")

_UNREADABLE = (
    OSError,
    MatReadError,
    zlib.error,
    KeyError,
    IndexError,
    ValueError,
    TypeError,
    NotImplementedError,
)

# Images of each pool: DeepLab's trainaug; PFENet's voc_sbd_merge_noduplicate.txt; VOC's val.
POOL_SIZES = {"trainaug": 10582, "train_pfenet": 5953, "val": 1449}
# (images, pairs) by the 2048-pixel rule in the lists that CyCTR publishes, folds 0 to 3.
PFENET_COUNTS = {
    "train": ((4760, 6546), (4588, 5896), (4097, 4628), (5108, 6639)),
    "val": ((364, 365), (445, 467), (592, 734), (336, 357)),
}
# Pairs in HSNet's lists, folds 0 to 3.
HSNET_PAIRS = {"trn": (2286, 3425, 5883, 2086), "val": (346, 451, 725, 346)}


class _MaskTask(NamedTuple):
    source: Path  # VOC palette PNG or SBD .mat
    target: Path


class _ImageTask(NamedTuple):
    image_id: str
    image: Path
    class_map: Path


def prepare(root: Path, *, workers: int, lists: Path | None) -> None:
    """Write class maps, the index of class areas and all lists under ``<root>/fss_d2/pascal5i``.

    Complete files stay, so a second run writes nothing and an interrupted run is continued.

    Args:
        root: the datasets folder, with ``VOCdevkit/VOC2012`` and ``SBD`` in it.
        workers: number of processes; 0 works in this one.
        lists: a folder with HSNet's ``{trn,val}_fold{0..3}.txt``, which do not follow from the data.

    Raises:
        FileNotFoundError: an archive or a file of it is missing.
        ValueError: a file cannot be read, or a mask and its image differ in size.
    """
    voc = require(root / "VOCdevkit/VOC2012", VOC_FIX)
    pools, sources = _pools_and_sources(voc, _find_sbd(root))
    out = prepared_dir(root, "pascal5i")
    maps = {i: out / "SegmentationClassAug" / f"{i}.png" for i in sources}
    todo = [_MaskTask(sources[i], maps[i]) for i in sources if not png_is_whole(maps[i])]
    for _ in parallel_map(_write_mask, todo, workers=workers, progress="class maps"):
        pass
    tasks = [_ImageTask(i, voc / "JPEGImages" / f"{i}.jpg", maps[i]) for i in sources]

    def rows_from(start: int) -> Iterator[dict[str, Any]]:
        """Return the rows of the index from the given one on, in order."""
        return parallel_map(_index_row, tasks[start:], workers=workers, progress="index")

    header = {"index": "pascal5i", "version": 1, "ids": zlib.crc32("\n".join(sources).encode())}
    write_index(out / "index.jsonl", header, rows_from)
    for pool, ids in pools.items():
        write_text_if_changed(pascal5i.list_path(root, f"{pool}.txt"), _lines(ids))
    _write_pair_lists(root)
    if lists is not None:
        _install_hsnet_lists(root, lists, set(sources))


def check(root: Path) -> tuple[list[Count], list[str]]:
    """Count images and pairs per fold next to the published numbers, and list missing or broken files."""
    counts = []
    for pool, published in POOL_SIZES.items():
        ids = read_ids(require(pascal5i.list_path(root, f"{pool}.txt"), pascal5i.PREPARE))
        counts.append(Count(f"{pool} images", len(ids), published))
    seen: dict[str, str] = {}
    for variant, split, fold in _derived_splits():
        records = pascal5i.load_records(f"{variant}_fold{fold}_{split}", root)
        seen.update({r["file_name"]: r["sem_seg_file_name"] for r in records})
        known = PFENET_COUNTS[split][fold] if variant == "pascal5i" else (None, None)
        pairs = sum(len(r["classes"]) for r in records)
        counts.append(Count(f"{variant} fold {fold} {split} images", len(records), known[0]))
        counts.append(Count(f"{variant} fold {fold} {split} pairs", pairs, known[1]))
    counts += _hsnet_counts(root)
    faults = [f"{path} not found: {VOC_FIX}" for path in seen if not Path(path).is_file()]
    faults += [
        f"{p} is missing or broken: {pascal5i.PREPARE}" for p in seen.values() if not png_is_whole(Path(p))
    ]
    return counts, faults


def _derived_splits() -> list[tuple[str, str, int]]:
    """Return (variant, split, fold) of the splits that follow from the data; the variants share ``val``."""
    splits = [("pascal5i", "train"), ("pascal5i", "val"), ("pascal5i_trainaug", "train")]
    return [(variant, split, fold) for variant, split in splits for fold in range(NUM_FOLDS)]


def _find_sbd(root: Path) -> Path:
    for place in _SBD_PLACES:
        if (root / place / "cls").is_dir():
            return root / place
    looked = ", ".join(str(root / place / "cls") for place in _SBD_PLACES)
    raise FileNotFoundError(f"none of {looked} found: {SBD_FIX}")


def _pools_and_sources(voc: Path, sbd: Path) -> tuple[dict[str, list[str]], dict[str, Path]]:
    """Return the image ids of each pool and the mask file of each image; VOC's masks win over SBD's."""
    voc_lists = voc / "ImageSets/Segmentation"
    train, val = (set(read_ids(require(voc_lists / f"{s}.txt", VOC_FIX))) for s in ("train", "val"))
    sbd_ids = {i for s in ("train", "val") for i in read_ids(require(sbd / f"{s}.txt", SBD_FIX))}
    noval = _sbd_train_noval(voc, sbd, sbd_ids)
    pools = {
        "trainaug": sorted((train | sbd_ids) - val),
        "train_pfenet": sorted((train | noval) - val),
        "val": sorted(val),
    }
    sources = {i: sbd / "cls" / f"{i}.mat" for i in sbd_ids | noval}
    sources |= {i: voc / "SegmentationClass" / f"{i}.png" for i in train | val}
    return pools, dict(sorted(sources.items()))


def _sbd_train_noval(voc: Path, sbd: Path, sbd_ids: set[str]) -> set[str]:
    """Return SBD's ``train_noval.txt`` if it exists, else SBD without the ``val`` of VOC's main task."""
    if (sbd / "train_noval.txt").is_file():
        return set(read_ids(sbd / "train_noval.txt"))
    return sbd_ids - set(read_ids(require(voc / "ImageSets/Main/val.txt", VOC_FIX)))


def _write_mask(task: _MaskTask) -> None:
    require(task.source, VOC_FIX if task.source.suffix == ".png" else SBD_FIX)
    write_class_map(task.target, _read_mask(task.source))


def _read_mask(source: Path) -> np.ndarray:
    """Return the class map (H, W) uint8 of a palette PNG or of an SBD .mat (GTcls.Segmentation)."""
    try:
        if source.suffix == ".mat":
            class_map = np.asarray(loadmat(source)["GTcls"]["Segmentation"][0, 0])
        else:
            with Image.open(source) as image:
                class_map = np.asarray(image)  # palette mode: the indices
    except _UNREADABLE as error:
        raise ValueError(f"{source} cannot be read as a class map ({error}): extract it again") from error
    values = set(np.unique(class_map).tolist())
    if class_map.ndim != 2 or not values <= {*range(len(pascal5i.CLASS_NAMES) + 1), 255}:
        raise ValueError(f"{source} is not a class map with values 0 to 20 and 255: extract it again")
    return class_map.astype(np.uint8)


def _index_row(task: _ImageTask) -> dict[str, Any]:
    with Image.open(require(task.image, VOC_FIX)) as image:
        width, height = image.size
    with Image.open(task.class_map) as image:
        class_map = np.asarray(image)
    if class_map.shape != (height, width):
        found = f"{class_map.shape[1]}x{class_map.shape[0]}"
        raise ValueError(
            f"{task.class_map} is {found} but {task.image} is {width}x{height}: extract both again"
        )
    pixels = np.bincount(class_map.ravel(), minlength=256)[1 : len(pascal5i.CLASS_NAMES) + 1]
    areas = {str(c): int(n) for c, n in enumerate(pixels) if n}
    return {"image_id": task.image_id, "height": height, "width": width, "areas": areas}


def _write_pair_lists(root: Path) -> None:
    """Write ``lists/<variant>/fold<i>_<split>.txt`` in HSNet's format, for use outside this project."""
    for variant, split, fold in _derived_splits():
        records = pascal5i.load_records(f"{variant}_fold{fold}_{split}", root)
        pairs = [f"{r['image_id']}__{c + 1:02d}" for r in records for c in r["classes"]]
        write_text_if_changed(pascal5i.list_path(root, f"{variant}/fold{fold}_{split}.txt"), _lines(pairs))


def _install_hsnet_lists(root: Path, folder: Path, known: set[str]) -> None:
    texts = {}
    for split in HSNET_PAIRS:
        for fold in range(NUM_FOLDS):
            name = f"{split}_fold{fold}.txt"
            texts[name] = find_list(folder, (f"{split}_fold{fold}", f"{split}/fold{fold}"), ".txt")
            for image_id, class_id in pascal5i.parse_pairs(texts[name], f"{folder}/{name}"):
                if image_id not in known or class_id // 5 != fold:
                    line = f"{image_id}__{class_id + 1:02d}"
                    raise ValueError(
                        f"{folder}/{name}: {line} is no image or class of fold {fold}: check the list"
                    )
    for name, text in texts.items():
        write_text_if_changed(pascal5i.list_path(root, f"hsnet/{name}"), text)


def _hsnet_counts(root: Path) -> list[Count]:
    """Count the pairs of the installed HSNet lists, if there are any."""
    counts = []
    for split, published in HSNET_PAIRS.items():
        for fold, pairs in enumerate(published):
            path = pascal5i.list_path(root, f"hsnet/{split}_fold{fold}.txt")
            if path.is_file():
                counts.append(Count(f"hsnet fold {fold} {split} list, pairs", len(read_ids(path)), pairs))
    return counts


def _lines(rows: list[str]) -> str:
    return "".join(f"{row}\n" for row in rows)
