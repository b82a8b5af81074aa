"""COCO -> PASCAL: train on COCO-20i, test on PASCAL classes that the COCO fold never showed.

Training on fold i is ``coco20i_fold<i>_train``; its test classes are the PASCAL classes among COCO's
held-out classes of that fold (6, 4, 6 and 4 of them), on VOC 2012's segmentation ``val``. Ids and
names of the ``train`` split are COCO's, those of the ``val`` split PASCAL's.
"""

from pathlib import Path
from typing import Any

from . import coco20i, pascal5i
from .folds import FoldName, fold_metadata, fold_names

__all__ = ["load_records", "metadata", "names", "pascal_novel_classes"]

VARIANT = "coco2pascal"
# COCO's name where it is not PASCAL's.
_COCO_NAMES = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}


def names() -> list[str]:
    """Return every dataset name that this module can load."""
    return fold_names([VARIANT], no_novel=[VARIANT])


def pascal_novel_classes(fold: int) -> list[int]:
    """Return the PASCAL class ids whose COCO class is held out in a fold of COCO-20i."""
    held_out = {coco20i.CLASS_NAMES[c] for c in coco20i.novel_classes("coco20i", fold)}
    return [c for c, name in enumerate(pascal5i.CLASS_NAMES) if _COCO_NAMES.get(name, name) in held_out]


def metadata(name: str) -> dict[str, Any]:
    """Return the metadata of a split; KeyError for an unknown name."""
    spec = FoldName.parse(name, [VARIANT])
    if spec.split == "train":
        return coco20i.metadata(_coco_name(name))
    return fold_metadata(pascal5i.CLASS_NAMES, pascal_novel_classes(spec.fold), fold=spec.fold, train=False)


def load_records(name: str, root: Path) -> list[dict[str, Any]]:
    """Load the dataset dicts of one split; errors as those of `coco20i` and `pascal5i`."""
    spec = FoldName.parse(name, [VARIANT])
    if spec.split == "train":
        return coco20i.load_records(_coco_name(name), root)
    return pascal5i.val_records(Path(root), pascal_novel_classes(spec.fold))


def _coco_name(name: str) -> str:
    return name.replace(VARIANT, "coco20i")
