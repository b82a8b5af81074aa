"""The maps of a frozen backbone from disc instead of the backbone, in training and evaluation."""

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import Tensor, nn

from fss_d2.data.augmentations import RESIZES
from fss_d2.data.feature_store import FeatureStore
from fss_d2.io.files import check_writable, write_json
from fss_d2.io.state_dict import tensors_digest
from fss_d2.modeling.meta_arch.few_shot import FewShotSegmentor

__all__ = ["open_features", "with_features"]

logger = logging.getLogger(__name__)

_KEY = "DATALOADER.FEATURE_CACHE"
_BATCH = 16  # images of one pass through the backbone on a GPU
_GROUPS = ("BACKBONE", "RESNETS", "FPN", "VGG", "TIMM", "FSS_SWIN")  # of the keys of backbones
_NOT_MAPS = ("WEIGHTS", "PIXEL_DECODER_WEIGHTS")  # keys of MODEL.BACKBONE: the tensors count, not their file


def open_features(
    cfg: CfgNode, model: nn.Module, *, training: bool = False, shown: int = 0
) -> FeatureStore | None:
    """Open the store of DATALOADER.FEATURE_CACHE for a model that has its weights; None if the key is "".

    Its folder is named after all that the maps depend on besides the image: backbone, weights, names of the
    maps, normalisation.

    Args:
        training: whether the augmentations of training are drawn.
        shown: episodes with an index below it are drawn, and need their pixels.

    Raises:
        ValueError: the maps of an image are not always the same; names the keys to change.
    """
    if not cfg.DATALOADER.FEATURE_CACHE:
        return None
    _check(cfg, model, training)
    depends = _depends(cfg, model)
    digest = hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:16]
    folder = Path(cfg.DATALOADER.FEATURE_CACHE) / f"{type(model.backbone).__name__}_{digest}"
    check_writable(folder)
    if comm.is_main_process():
        write_json(folder / "about.json", depends)
    refined = cfg.TEST.REFINEMENT and not training
    return FeatureStore(folder, math.inf if refined else shown)


def _check(cfg: CfgNode, model: nn.Module, training: bool) -> None:
    """Refuse what does not give the same maps for the same image each time."""
    off = f"or {_KEY} ''"
    if not isinstance(model, FewShotSegmentor):
        raise ValueError(f"{_KEY} is for few-shot methods, not {type(model).__name__}: set it to ''")
    if not model.freeze_backbone or model.bn_train_stats:
        fix = "MODEL.BACKBONE.FREEZE True and MODEL.BACKBONE.BN_TRAIN_STATS False"
        raise ValueError(f"{_KEY} keeps the maps of a backbone that does not change: set {fix}, {off}")
    order = list(model.backbone.available)
    last = max(map(order.index, model.backbone.selected))
    behind = [name for name in model.presence_blocks if order.index(name) > last]
    if behind and any(p.requires_grad for p in model.backbone.parameters()):
        raise ValueError(
            f"{_KEY}: {behind[0]} of MODEL.PRESENCE.BLOCKS is in a stage that is trained: choose an earlier "
            f"block, {off}"
        )
    names = cfg.INPUT.TRAIN_AUGMENTATIONS if training else ()
    if "shortest_edge" in (cfg.INPUT.TEST_RESIZE, *names):
        raise ValueError(
            f"{_KEY} needs images of one size, which INPUT.TEST_RESIZE and TRAIN_AUGMENTATIONS "
            f"'shortest_edge' does not give: set them to 'squash' or 'letterbox', {off}"
        )
    if "ssd_color" in names:
        raise ValueError(
            f"{_KEY} cannot keep what INPUT.TRAIN_AUGMENTATIONS 'ssd_color' draws: set 'color', {off}"
        )
    random = [name for name in names if name not in ("flip", *RESIZES)]
    if random and not cfg.DATALOADER.FEATURE_CACHE_VARIANTS:
        raise ValueError(
            f"{_KEY} cannot keep what INPUT.TRAIN_AUGMENTATIONS {random[0]!r} draws anew for every episode: "
            f"set {_KEY}_VARIANTS to the number of variants of each picture (8), or remove that name, {off}"
        )


def _depends(cfg: CfgNode, model: FewShotSegmentor) -> dict[str, Any]:
    """All that the maps depend on, apart from the image."""
    groups = {name: cfg.MODEL[name] for name in _GROUPS}
    if cfg.MODEL.BACKBONE.FEATURES != "backbone" or len(model.frozen_parts) > 1:
        groups["PROPOSALS"] = cfg.MODEL.PROPOSALS
    keys = {
        f"MODEL.{group}.{name}": str(value)
        for group, node in groups.items()
        for name, value in node.items()
        if name not in _NOT_MAPS
    }
    return {
        **{name: [repr(part), _frozen_digest(part)] for name, part in model.frozen_parts.items()},
        "MODEL.PIXEL_MEAN": list(cfg.MODEL.PIXEL_MEAN),
        "MODEL.PIXEL_STD": list(cfg.MODEL.PIXEL_STD),
        **keys,
    }


def _frozen_digest(part: nn.Module) -> str:
    """Of what is not trained: a stage that is (DPCN) gives none of the maps."""
    frozen = [(name, p) for name, p in part.named_parameters() if not p.requires_grad]
    return tensors_digest([*frozen, *part.named_buffers()])


@contextmanager
def with_features(model: nn.Module, store: FeatureStore | None) -> Iterator[None]:
    """Let a model read the maps of its images from a store within the block, and keep there what it lacks.

    Maps that the store cannot have, of images without entry, are rounded alike.
    """
    if store is None:
        yield
        return
    handle = model.register_forward_pre_hook(lambda model, args: (_attach(model, store, *args),))
    try:
        yield
    finally:
        handle.remove()
        _log_usage(store)


_usage: dict[Path, tuple[int, int]] = {}  # as last logged


def _log_usage(store: FeatureStore) -> None:
    """Say how much a store holds, if that is new."""
    usage = store.usage()
    if _usage.get(store.folder) != usage:
        _usage[store.folder] = usage
        logger.info("Feature cache %s: %d entries, %.1f MiB", store.folder, usage[0], usage[1] / 2**20)


def _attach(
    model: FewShotSegmentor, store: FeatureStore, episodes: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The episodes with "features" of every image."""
    images = [image for e in episodes for image in (e, *e["support"])]
    maps = iter(_maps(model, store, images))
    found = [{**image, "features": next(maps)} for image in images]
    rows = iter(found)
    return [{**next(rows), "support": [next(rows) for _ in e["support"]]} for e in episodes]


@torch.no_grad()
def _maps(
    model: FewShotSegmentor, store: FeatureStore, images: Sequence[Mapping[str, Any]]
) -> list[dict[str, Tensor]]:
    """The maps (C, h, w) of images, in order, on the CPU."""
    found: dict[int, dict[str, Tensor]] = {}
    for i, image in enumerate(images):
        if "features" in image:
            found[i] = image["features"]
        elif "entry" in image and image["entry"] in store:
            found[i] = store.load(image["entry"])
    by_size: dict[torch.Size, list[int]] = {}
    for i in [i for i in range(len(images)) if i not in found]:
        by_size.setdefault(images[i]["image"].shape, []).append(i)
    # On a CPU, where a batch saves no time, one by one: the maps of an image then depend on no other.
    batch = 1 if model.device.type == "cpu" else _BATCH
    for places in by_size.values():
        for some in (places[k : k + batch] for k in range(0, len(places), batch)):
            for i, maps in zip(some, _computed(model, [images[i]["image"] for i in some]), strict=True):
                found[i] = maps
                if "entry" in images[i]:
                    store.save(images[i]["entry"], maps)
    return [found[i] for i in range(len(images))]


def _computed(model: FewShotSegmentor, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    """Run the backbone in full precision; float16 but for maps with larger numbers than that holds."""
    with torch.autocast(model.device.type, enabled=False):
        maps = model.stored_maps(model.normalise(torch.stack(list(images))))
    return [{name: _rounded(value[k]) for name, value in maps.items()} for k in range(len(images))]


def _rounded(value: Tensor) -> Tensor:
    value = value.float().cpu()
    half = value.half()
    return half if half.isfinite().all() else value
