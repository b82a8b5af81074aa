"""PASCAL-5i: VOC 2012 with SBD's masks (Hariharan et al., ICCV 2011), four contiguous folds of five classes.

Three variants, all tested on VOC 2012's segmentation ``val``:

- ``pascal5i``: trained on the 5953 images of PFENet's list (VOC ``train`` and SBD's ``train_noval``);
- ``pascal5i_trainaug``: trained on all VOC and SBD images outside ``val`` (10582);
- ``pascal5i_hsnet``: the (image, class) pairs of HSNet's lists, which the user supplies.

The first two also exist as ``..._train_no_novel``, without images that show a novel class (BAM's rule). In
the other variants such images stay, and their novel pixels are background in every episode.
"""

import zlib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.datasets.pascal_voc import CLASS_NAMES
from PIL import Image

from .preparation import (
    PAGE,
    Count,
    find_fold_lists,
    list_path,
    parallel_map,
    parse_pairs,
    png_is_whole,
    prepared_dir,
    read_ids,
    read_index,
    read_text,
    require,
    write_class_map,
    write_index,
    write_text_if_changed,
)
from .splits import (
    MIN_CLASS_PIXELS,
    NUM_FOLDS,
    FoldName,
    fold_metadata,
    fold_names,
    held_out_classes,
    record_of,
)

__all__ = ["CLASS_NAMES", "check", "load_records", "metadata", "names", "prepare"]

# Training pool of each variant: a list of image ids that the preparation writes.
TRAIN_POOLS = {"pascal5i": "train_pfenet", "pascal5i_trainaug": "trainaug"}
HSNET = "pascal5i_hsnet"
VARIANTS = (*TRAIN_POOLS, HSNET)
PREPARE = f"run `python datasets/prepare_pascal5i.py`; {PAGE}"
VOC_FIX = f"download VOC 2012's trainval archive (VOCtrainval_11-May-2012.tar) and extract it there; {PAGE}"
SBD_FIX = f"download SBD (benchmark.tgz) and extract it to <root>/SBD; {PAGE}"
_SBD_PLACES = ("SBD/benchmark_RELEASE/dataset", "benchmark_RELEASE/dataset", "sbd")

# Images of each pool: DeepLab's trainaug; PFENet's voc_sbd_merge_noduplicate.txt; VOC's val.
POOL_SIZES = {"trainaug": 10582, "train_pfenet": 5953, "val": 1449}
# (images, pairs) by the 2048-pixel rule in the lists that CyCTR publishes, folds 0 to 3.
PFENET_COUNTS = {
    "train": ((4760, 6546), (4588, 5896), (4097, 4628), (5108, 6639)),
    "val": ((364, 365), (445, 467), (592, 734), (336, 357)),
}
# Pairs in HSNet's lists, folds 0 to 3.
HSNET_PAIRS = {"trn": (2286, 3425, 5883, 2086), "val": (346, 451, 725, 346)}


def names() -> list[str]:
    """Return every dataset name that this module can load."""
    return fold_names(VARIANTS, no_novel=TRAIN_POOLS)


def metadata(name: str) -> dict[str, Any]:
    """Return the metadata of a split; KeyError for an unknown name."""
    spec = FoldName.parse(name, VARIANTS)
    return fold_metadata(CLASS_NAMES, _novel(spec.fold), fold=spec.fold, train=spec.split == "train")


def load_records(name: str, root: Path) -> list[dict[str, Any]]:
    """Load the dataset dicts of one split, with VOC's ``image_id`` ("2007_000033").

    Masks are class maps (0 background, class id + 1, 255 ignore). ``classes`` holds the split's
    classes that cover at least 2048 pixels (the ``hsnet`` variant: those that the list pairs with the image).
    The (image, class) pairs of the records have the order of HSNet's ``val`` lists. ``query_classes`` (not
    ``hsnet``) holds the classes that cover any pixel.
    """
    spec = FoldName.parse(name, VARIANTS)
    root = Path(root)
    if spec.variant == HSNET:
        return _hsnet_records(spec, root)
    novel = _novel(spec.fold)
    if spec.split == "val":
        return val_records(root, novel)
    base = set(range(len(CLASS_NAMES))) - set(novel)
    return _select(root, TRAIN_POOLS[spec.variant], base, exclude=novel if spec.no_novel else ())


def val_records(root: Path, class_ids: Collection[int]) -> list[dict[str, Any]]:
    """Return the records of VOC's ``val`` in which one of ``class_ids`` covers 2048 pixels or more."""
    return _select(root, "val", class_ids)


def _hsnet_pairs(root: Path, fold: int, split: str) -> list[tuple[str, int]]:
    """Return HSNet's (image id, class id) pairs of a split, in order.

    ``val``: the fold's own list; ``train``: the ``trn`` lists of the other folds, joined in fold order.
    """
    files = [f"val_fold{fold}"] if split == "val" else [f"trn_fold{i}" for i in range(NUM_FOLDS) if i != fold]
    fix = f"run `python datasets/prepare_pascal5i.py --lists FOLDER` with HSNet's lists in FOLDER; {PAGE}"
    paths = [list_path(root, "pascal5i", f"hsnet/{file}.txt") for file in files]
    return [
        pair
        for path in paths
        for pair in parse_pairs(read_text(require(path, fix)), str(path), len(CLASS_NAMES))
    ]


def _novel(fold: int) -> list[int]:
    return held_out_classes(len(CLASS_NAMES), fold, interleaved=False)


def _pool(root: Path, name: str) -> list[str]:
    return read_ids(require(list_path(root, "pascal5i", f"{name}.txt"), PREPARE))


def _select(
    root: Path, pool: str, class_ids: Collection[int], exclude: Iterable[int] = ()
) -> list[dict[str, Any]]:
    """Return records of a pool with a large enough class of ``class_ids`` and no pixel of ``exclude``."""
    image_ids, index, excluded = _pool(root, pool), _read_areas(root), set(exclude)
    records = []
    for image_id in image_ids:
        row = index[image_id]
        areas = {int(c): pixels for c, pixels in row["areas"].items()}
        classes = [c for c in sorted(areas) if c in class_ids and areas[c] >= MIN_CLASS_PIXELS]
        if classes and not excluded.intersection(areas):
            shown = [c for c in sorted(areas) if c in class_ids and areas[c] > 0]
            records.append(_record(root, row, classes) | {"query_classes": shown})
    return records


def _hsnet_records(spec: FoldName, root: Path) -> list[dict[str, Any]]:
    index = _read_areas(root)
    classes: dict[str, list[int]] = {}
    for image_id, class_id in _hsnet_pairs(root, spec.fold, spec.split):
        classes.setdefault(image_id, []).append(class_id)
    return [_record(root, index[image_id], listed) for image_id, listed in classes.items()]


def _read_areas(root: Path) -> dict[str, dict[str, Any]]:
    path = prepared_dir(root, "pascal5i") / "index.jsonl"
    return {row["image_id"]: row for row in read_index(path, PREPARE)}


def _record(root: Path, row: dict[str, Any], classes: list[int]) -> dict[str, Any]:
    image_id = row["image_id"]
    image = root / "VOCdevkit/VOC2012/JPEGImages" / f"{image_id}.jpg"
    mask = prepared_dir(root, "pascal5i") / "SegmentationClassAug" / f"{image_id}.png"
    return record_of(image, image_id, (row["height"], row["width"]), classes, mask)


def prepare(root: Path, *, workers: int, lists: Path | None) -> None:
    """Write class maps, the index of class areas and all lists under ``<root>/fss_d2/pascal5i``.

    ``<root>`` holds ``VOCdevkit/VOC2012`` and ``SBD``; ``lists`` is a folder with HSNet's
    ``{trn,val}_fold{0..3}.txt``, which do not follow from the data. Complete files stay, so a second run
    writes nothing and an interrupted run is continued.
    """
    voc = require(root / "VOCdevkit/VOC2012", VOC_FIX)
    pools, sources = _pools_and_sources(voc, _find_sbd(root))
    out = prepared_dir(root, "pascal5i")
    maps = {i: out / "SegmentationClassAug" / f"{i}.png" for i in sources}
    todo = [(sources[i], maps[i]) for i in sources if not png_is_whole(maps[i])]
    for _ in parallel_map(_write_mask, todo, workers=workers, progress="Class maps"):
        pass
    files = [(voc / "JPEGImages" / f"{i}.jpg", maps[i]) for i in sources]
    header = {"index": "pascal5i", "version": 1, "ids": zlib.crc32("\n".join(sources).encode())}
    write_index(out / "index.jsonl", header, _index_row, lambda: files, workers=workers)
    for pool, ids in pools.items():
        write_text_if_changed(list_path(root, "pascal5i", f"{pool}.txt"), "".join(f"{i}\n" for i in ids))
    _write_pair_lists(root)
    if lists is not None:
        _install_hsnet_lists(root, lists, set(sources))


def check(root: Path) -> tuple[list[Count], list[str]]:
    """Count images and pairs per fold next to the published numbers, and list missing or broken files."""
    counts = []
    for pool, published in POOL_SIZES.items():
        counts.append(Count(f"{pool} images", len(_pool(root, pool)), published))
    seen: dict[str, str] = {}
    for variant, split, fold in _derived_splits():
        records = load_records(f"{variant}_fold{fold}_{split}", root)
        seen.update({r["file_name"]: r["sem_seg_file_name"] for r in records})
        known = PFENET_COUNTS[split][fold] if variant == "pascal5i" else (None, None)
        pairs = sum(len(r["classes"]) for r in records)
        counts.append(Count(f"{variant} fold {fold} {split} images", len(records), known[0]))
        counts.append(Count(f"{variant} fold {fold} {split} pairs", pairs, known[1]))
    counts += _hsnet_counts(root)
    faults = [f"{path} not found: {VOC_FIX}" for path in seen if not Path(path).is_file()]
    faults += [f"{p} is missing or broken: {PREPARE}" for p in seen.values() if not png_is_whole(Path(p))]
    return counts, faults


def _derived_splits() -> list[tuple[str, str, int]]:
    """Return (variant, split, fold) of the splits that follow from the data; the variants share ``val``."""
    splits = [("pascal5i", "train"), ("pascal5i", "val"), ("pascal5i_trainaug", "train")]
    return [(variant, split, fold) for variant, split in splits for fold in range(NUM_FOLDS)]


def _find_sbd(root: Path) -> Path:
    places = [root / place for place in _SBD_PLACES]
    if found := [place for place in places if (place / "cls").is_dir()]:
        return found[0]
    raise FileNotFoundError(f"none of {', '.join(str(p / 'cls') for p in places)} found: {SBD_FIX}")


def _pools_and_sources(voc: Path, sbd: Path) -> tuple[dict[str, list[str]], dict[str, Path]]:
    """Return the image ids of each pool and the mask file of each image; VOC's masks win over SBD's."""
    voc_lists = voc / "ImageSets/Segmentation"
    train, val = (set(read_ids(require(voc_lists / f"{s}.txt", VOC_FIX))) for s in ("train", "val"))
    sbd_ids = {i for s in ("train", "val") for i in read_ids(require(sbd / f"{s}.txt", SBD_FIX))}
    if (sbd / "train_noval.txt").is_file():
        noval = set(read_ids(sbd / "train_noval.txt"))
    else:  # the same: SBD without the ``val`` of VOC's main task
        noval = sbd_ids - set(read_ids(require(voc / "ImageSets/Main/val.txt", VOC_FIX)))
    pools = {"trainaug": (train | sbd_ids) - val, "train_pfenet": (train | noval) - val, "val": val}
    sources = {i: sbd / "cls" / f"{i}.mat" for i in sbd_ids | noval}
    sources |= {i: voc / "SegmentationClass" / f"{i}.png" for i in train | val}
    return {pool: sorted(ids) for pool, ids in pools.items()}, dict(sorted(sources.items()))


def _write_mask(files: tuple[Path, Path]) -> None:
    source, target = files  # VOC's palette PNG or SBD's .mat; the class map
    require(source, VOC_FIX if source.suffix == ".png" else SBD_FIX)
    write_class_map(target, _read_mask(source))


def _read_mask(source: Path) -> np.ndarray:
    """Return the class map (H, W) uint8 of a palette PNG or of an SBD .mat (GTcls.Segmentation)."""
    from scipy.io import loadmat, matlab  # not at the top: nothing else here needs SciPy

    unreadable = (OSError, matlab.MatReadError, zlib.error, LookupError)
    try:
        if source.suffix == ".mat":
            class_map = np.asarray(loadmat(source)["GTcls"]["Segmentation"][0, 0])
        else:
            with Image.open(source) as image:
                class_map = np.asarray(image)  # palette mode: the indices
    except (*unreadable, ValueError, TypeError, NotImplementedError) as error:
        raise ValueError(f"{source} cannot be read as a class map ({error}): extract it again") from error
    values = set(np.unique(class_map).tolist())
    if class_map.ndim != 2 or not values <= {*range(len(CLASS_NAMES) + 1), 255}:
        raise ValueError(f"{source} is not a class map with values 0 to 20 and 255: extract it again")
    return class_map.astype(np.uint8)


def _index_row(files: tuple[Path, Path]) -> dict[str, Any]:
    photograph, mask = files
    with Image.open(require(photograph, VOC_FIX)) as image:
        width, height = image.size
    with Image.open(mask) as image:
        class_map = np.asarray(image)
    if class_map.shape != (height, width):
        found = f"{class_map.shape[1]}x{class_map.shape[0]}"
        raise ValueError(f"{mask} is {found} but {photograph} is {width}x{height}: extract both again")
    pixels = np.bincount(class_map.ravel(), minlength=256)[1 : len(CLASS_NAMES) + 1]
    areas = {str(c): int(n) for c, n in enumerate(pixels) if n}
    return {"image_id": mask.stem, "height": height, "width": width, "areas": areas}


def _write_pair_lists(root: Path) -> None:
    """Write ``lists/<variant>/fold<i>_<split>.txt`` in HSNet's format, for use outside this project."""
    for variant, split, fold in _derived_splits():
        records = load_records(f"{variant}_fold{fold}_{split}", root)
        lines = "".join(f"{r['image_id']}__{c + 1:02d}\n" for r in records for c in r["classes"])
        write_text_if_changed(list_path(root, "pascal5i", f"{variant}/fold{fold}_{split}.txt"), lines)


def _install_hsnet_lists(root: Path, folder: Path, known: set[str]) -> None:
    texts = {}
    for _, fold, name, text in find_fold_lists(folder, ".txt"):
        texts[name] = text
        for image_id, class_id in parse_pairs(text, f"{folder}/{name}", len(CLASS_NAMES)):
            if image_id not in known or class_id // 5 != fold:
                line = f"{image_id}__{class_id + 1:02d}"
                fault = f"{folder}/{name}: {line} is no image or class of fold {fold}: check the list"
                raise ValueError(fault)
    for name, text in texts.items():
        write_text_if_changed(list_path(root, "pascal5i", f"hsnet/{name}"), text)


def _hsnet_counts(root: Path) -> list[Count]:
    """Count the pairs of the installed HSNet lists, if there are any."""
    counts = []
    for split, published in HSNET_PAIRS.items():
        for fold, pairs in enumerate(published):
            path = list_path(root, "pascal5i", f"hsnet/{split}_fold{fold}.txt")
            if path.is_file():
                counts.append(Count(f"hsnet fold {fold} {split} list, pairs", len(read_ids(path)), pairs))
    return counts
