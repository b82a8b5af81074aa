"""COCO -> PASCAL, MM-Former's transfers: train on its COCO, test on PASCAL classes that were not in it.

Ids and names of a ``train`` split are COCO's, those of a ``val`` split PASCAL's. Training sets are train2017
with flattened class maps (`coco20i`, ``coco20i_mmformer``). Variants:

- ``coco2pascal`` (Table 2): fold i trains as ``coco20i_mmformer_fold<i>_train`` and tests the PASCAL classes
  among COCO's held-out classes of that fold (6, 4, 6 and 4 of them), on VOC 2012's segmentation ``val``;
- ``coco15`` (Table 6): fold i trains on the 15 base classes of PASCAL-5i's fold i, on COCO's images, and
  tests as ``pascal5i_fold<i>_val``;
- ``coco75sub`` (the same table): fold i trains on the COCO classes other than the five test classes, on 6000
  random images (seeded by the fold's number: the paper's own selection was not released), and tests in the
  same way.
"""

import random
from functools import partial
from pathlib import Path
from typing import Any

from . import coco20i, pascal5i
from .splits import FoldName, fold_metadata, fold_names

__all__ = ["COCO_NAMES", "load_records", "metadata", "names", "pascal_novel_classes"]

VARIANT = "coco2pascal"
TRANSFER = ("coco15", "coco75sub")
VARIANTS = (VARIANT, *TRANSFER)
SUBSET_IMAGES = 6000
# COCO's names that differ from PASCAL's.
COCO_NAMES = {
    **{"aeroplane": "airplane", "diningtable": "dining table", "motorbike": "motorcycle"},
    **{"pottedplant": "potted plant", "sofa": "couch", "tvmonitor": "tv"},
}
# COCO class id of each PASCAL class.
_COCO_CLASSES = tuple(coco20i.CLASS_NAMES.index(COCO_NAMES.get(name, name)) for name in pascal5i.CLASS_NAMES)


def names() -> list[str]:
    """Return every dataset name that this module can load."""
    return fold_names(VARIANTS, no_novel=[VARIANT])


def pascal_novel_classes(fold: int) -> list[int]:
    """Return the PASCAL class ids whose COCO class is held out in a fold of COCO-20i."""
    held_out = set(coco20i.novel_classes("coco20i", fold))
    return [c for c, coco in enumerate(_COCO_CLASSES) if coco in held_out]


def metadata(name: str) -> dict[str, Any]:
    """Return the metadata of a split; KeyError for an unknown name."""
    spec = FoldName.parse(name, VARIANTS)
    if spec.variant in TRANSFER:
        if spec.split == "val":
            return pascal5i.metadata(_pascal_name(spec))
        return fold_metadata(coco20i.CLASS_NAMES, _withheld(spec), fold=spec.fold, train=True)
    if spec.split == "train":
        return coco20i.metadata(name.replace(VARIANT, coco20i.MMFORMER))
    return fold_metadata(pascal5i.CLASS_NAMES, pascal_novel_classes(spec.fold), fold=spec.fold, train=False)


def load_records(name: str, root: Path) -> list[dict[str, Any]]:
    """Load the dataset dicts of one split; errors as in `coco20i` and `pascal5i`."""
    spec = FoldName.parse(name, VARIANTS)
    if spec.variant in TRANSFER:
        if spec.split == "val":
            return pascal5i.load_records(_pascal_name(spec), root)
        return _transfer_records(spec, Path(root))
    if spec.split == "train":
        return coco20i.load_records(name.replace(VARIANT, coco20i.MMFORMER), root)
    return pascal5i.val_records(Path(root), pascal_novel_classes(spec.fold))


def _transfer_records(spec: FoldName, root: Path) -> list[dict[str, Any]]:
    base = set(range(len(coco20i.CLASS_NAMES))) - set(_withheld(spec))
    choose = partial(coco20i.large_classes, class_ids=base)
    records = coco20i.records_of(root, "train2017", choose, flat=True, shown=base)
    if spec.variant == "coco75sub" and len(records) > SUBSET_IMAGES:
        chosen = random.Random(spec.fold).sample(range(len(records)), SUBSET_IMAGES)
        records = [records[i] for i in sorted(chosen)]
    return records


def _withheld(spec: FoldName) -> list[int]:
    """Return the COCO class ids that a fold of a transfer variant does not train on."""
    fold = pascal5i.metadata(_pascal_name(spec))
    if spec.variant == "coco75sub":
        return sorted(_COCO_CLASSES[c] for c in fold["novel_class_ids"])
    base = {_COCO_CLASSES[c] for c in fold["base_class_ids"]}
    return [c for c in range(len(coco20i.CLASS_NAMES)) if c not in base]


def _pascal_name(spec: FoldName) -> str:
    return f"pascal5i_fold{spec.fold}_val"
