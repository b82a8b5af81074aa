"""The prototypes of a fold's base classes: built once from its training images, kept in a file (CKMM)."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from torch import Tensor
from torch.utils.data import DataLoader

from fss_d2.data.augmentations import build_resize
from fss_d2.data.catalog import get_records
from fss_d2.data.joined import training_set
from fss_d2.data.samples import BaseInstances, Instances
from fss_d2.data.workers import init_worker
from fss_d2.io.files import atomic_path
from fss_d2.io.progress import track
from fss_d2.io.state_dict import UNREADABLE, load_plain, not_finite, tensors_digest
from fss_d2.modeling.layers import BaseKnowledge, soft_mask
from fss_d2.modeling.meta_arch.image_model import ImageModel

__all__ = ["build_base_prototypes", "fill_base_knowledge"]

logger = logging.getLogger(__name__)


def fill_base_knowledge(cfg: CfgNode, model: ImageModel) -> None:
    """Give a model the prototypes of the base classes of DATASETS.TRAIN; one without CKMM stays as it is.

    All processes must call it, after the backbone has its weights. The prototypes come from a file in
    MODEL.BASE_KNOWLEDGE.CACHE_DIR if they have been built before. Otherwise each process reads its share of
    the images, and the main process writes that file.
    """
    knowledge = getattr(model, "knowledge", None)
    if knowledge is None:
        return
    name = training_set(cfg.DATASETS.TRAIN)
    records, metadata = get_records(name), MetadataCatalog.get(name)
    class_ids = sorted(metadata.get("base_class_ids", metadata.class_ids))  # those of the split without folds
    if len(class_ids) != knowledge.num_classes:
        what = f"{name} has {len(class_ids)} base classes: set it to {len(class_ids)}"
        raise ValueError(f"MODEL.BASE_KNOWLEDGE.NUM_CLASSES is {knowledge.num_classes} but {what}")
    path = _cache_path(cfg, model, records, class_ids)
    cached = comm.all_gather(_read(path, knowledge) if comm.is_main_process() else None)[0]
    if cached is None:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)  # fails now, not after the work
        instances = BaseInstances(records, class_ids, build_resize(cfg), cfg.MODEL.BASE_KNOWLEDGE.MIN_PIXELS)
        cached = build_base_prototypes(model, instances, workers=cfg.DATALOADER.NUM_WORKERS)
        if path is not None and comm.is_main_process():
            with atomic_path(path) as temporary:
                torch.save({"prototypes": cached}, temporary)
            logger.info("Prototypes of the base classes written to %s", path)
    elif path is not None:
        logger.info("Prototypes of the base classes read from %s", path)
    knowledge.fill(cached)


@torch.no_grad()
def build_base_prototypes(model: ImageModel, instances: BaseInstances, *, workers: int = 0) -> Tensor:
    """Mean feature of each base class: the mean over its instances of the mean over an instance (Eq. 11, 12).

    A mask is resized bilinearly to the features; an instance without any weight there is left out. Sums are
    in float64. The processes share the images and add up their sums.

    Args:
        model: with a `knowledge`; its backbone runs in eval mode.
        workers: that load images, in each process.

    Returns:
        (classes, C) float32 on the CPU; zeros for a class without instances, with a warning.
    """
    knowledge: BaseKnowledge = model.knowledge
    size = tuple(knowledge.prototypes.shape)
    sums, counts = torch.zeros(size, dtype=torch.float64), torch.zeros(size[0], dtype=torch.int64)
    with _reading(model, knowledge.in_features):
        for item in _share(instances, workers):
            means, classes = _instance_means(model, item)
            sums.index_add_(0, classes, means)
            counts.index_add_(0, classes, torch.ones_like(classes))
    shares = comm.all_gather((sums, counts))
    sums, counts = (torch.stack(parts).sum(dim=0) for parts in zip(*shares, strict=True))
    _report(counts, instances)
    return (sums / counts.clamp(min=1)[:, None]).float()


@contextmanager
def _reading(model: ImageModel, names: Sequence[str]) -> Iterator[None]:
    """Put a model into eval mode, and its backbone to compute these maps and nothing after them."""
    training, selected = model.training, model.backbone.selected
    model.eval()
    model.backbone.select(names)
    try:
        yield
    finally:
        model.backbone.select(selected)
        model.train(training)


def _instance_means(model: ImageModel, item: Instances) -> tuple[Tensor, Tensor]:
    """Mean features (n, C) float64 and classes (n,) of the instances that the feature maps still contain."""
    knowledge: BaseKnowledge = model.knowledge
    joined = knowledge.join(model.extract(model.normalise(item.image[None])))[0]  # (C, h, w)
    weights = soft_mask(item.masks.to(joined.device), joined.shape[-2:])  # (n, h, w)
    totals = weights.sum(dim=(1, 2))
    means = torch.einsum("chw,nhw->nc", joined, weights) / totals.clamp(min=1e-12)[:, None]
    shown = (totals > 0).cpu()
    return means.double().cpu()[shown], item.classes[shown]


def _share(instances: BaseInstances, workers: int) -> Iterator[Instances]:
    """This process's images, in order."""
    mine = range(comm.get_rank(), len(instances), comm.get_world_size())
    options = {"batch_size": None, "num_workers": workers, "worker_init_fn": init_worker}
    # A generator of its own leaves torch's global one alone.
    loader = DataLoader(instances, sampler=mine, generator=torch.Generator(), **options)
    logger.info("Building the prototypes of the base classes from %d images", len(instances))
    yield from track(loader, "Prototypes of the base classes", len(mine))


def _report(counts: Tensor, instances: BaseInstances) -> None:
    few = f"of at least {instances.min_pixels} pixels (MODEL.BASE_KNOWLEDGE.MIN_PIXELS)"
    if not counts.any():
        raise ValueError(f"no base class has an instance {few}: lower it")
    missing = [class_id for class_id, place in instances.place.items() if not counts[place]]
    if missing:
        logger.warning("No instance %s of %d base classes, left out: ids %s", few, len(missing), missing)


def _cache_path(
    cfg: CfgNode, model: ImageModel, records: Sequence[Mapping[str, Any]], class_ids: Sequence[int]
) -> Path | None:
    """The file of the prototypes, named after a hash of all that they depend on; None to keep no file."""
    c = cfg.MODEL.BASE_KNOWLEDGE
    if not c.CACHE_DIR:
        return None
    name = training_set(cfg.DATASETS.TRAIN)
    metadata = MetadataCatalog.get(name)
    depends = [
        [name, metadata.get("fold"), metadata.get("stuff_classes"), class_ids],
        [cfg.MODEL.BACKBONE.NAME, repr(model.backbone), tensors_digest(model.backbone.state_dict().items())],
        [cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, cfg.INPUT.FEW_SHOT_SIZE, cfg.INPUT.TEST_RESIZE],
        [c.IN_FEATURES, c.MIN_PIXELS],
    ]
    digest = hashlib.sha256(json.dumps(depends).encode())
    for record in records:
        digest.update(json.dumps([record, _file_states(record)], sort_keys=True, default=str).encode())
    return Path(c.CACHE_DIR) / f"{name}_{digest.hexdigest()[:16]}.pth"


def _file_states(record: Mapping[str, Any]) -> list[tuple[int, int] | None]:
    """Size and time of a record's files: pixels may change under the same names."""
    states: list[tuple[int, int] | None] = []
    for key in ("file_name", "sem_seg_file_name"):
        try:
            state = os.stat(record[key])
            states.append((state.st_size, state.st_mtime_ns))
        except (OSError, KeyError, TypeError):
            states.append(None)  # reading a missing file raises a clear error
    return states


def _read(path: Path | None, knowledge: BaseKnowledge) -> Tensor | None:
    """Prototypes kept in a file; None if there is no such file or it is broken."""
    if path is None or not path.is_file():
        return None
    try:
        prototypes = load_plain(path)["prototypes"]
        if next(not_finite(prototypes, "prototypes"), ""):
            raise ValueError("tensor prototypes holds NaN or infinite values")
    except (*UNREADABLE, ValueError, KeyError, TypeError) as error:
        logger.warning("%s is broken (%s); building the prototypes again", path, error)
        return None
    fits = isinstance(prototypes, Tensor) and prototypes.shape == knowledge.prototypes.shape
    return prototypes if fits else None
