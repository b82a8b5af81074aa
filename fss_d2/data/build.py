"""Loaders of episodes for training and evaluation."""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from .catalog import get_records
from .episode import Episode, read_manifest
from .episode_kinds import EpisodeKinds, MixedEpisodeSampler, pictures_without
from .feature_store import FeatureStore
from .joined import training_set
from .mapper import EpisodeMapper
from .published_episodes import PUBLISHED_RULES
from .sampler import (
    QUERY_RULES,
    EpisodeSampler,
    InferenceEpisodeSampler,
    Pair,
    TrainingEpisodeSampler,
    pairs_of,
)
from .workers import init_worker

__all__ = [
    "PUBLISHED_RULES",
    "EpisodeDataset",
    "build_few_shot_test_loader",
    "build_few_shot_train_loader",
    "build_test_episodes",
    "dataset_pairs",
    "training_episodes",
]


class EpisodeDataset(Dataset[dict[str, Any]]):
    """A map-style dataset that is indexed by episodes."""

    def __init__(self, mapper: EpisodeMapper) -> None:
        self.mapper = mapper

    def __getitem__(self, episode: Episode) -> dict[str, Any]:
        return self.mapper(episode)


def dataset_pairs(
    dataset_name: str, records: Sequence[dict[str, Any]], *, of_queries: bool = False
) -> list[Pair]:
    """Return the (image id, class id) pairs of the classes of a split, see `pairs_of`."""
    return pairs_of(records, MetadataCatalog.get(dataset_name).class_ids, of_queries=of_queries)


def build_few_shot_train_loader(
    cfg: CfgNode, *, start_iter: int = 0, features: FeatureStore | None = None
) -> DataLoader[list[dict[str, Any]]]:
    """Build the endless loader of training batches, which continues exactly after `start_iter` iterations.

    A batch is a list of SOLVER.IMS_PER_BATCH / processes dicts (`EpisodeMapper`), all with the same number of
    shots. With a GPU, memory is pinned and workers are persistent. Images whose ``features`` are stored come
    without their pixels.
    """
    total_batch, world_size = cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size()
    if total_batch < 1 or total_batch % world_size:
        fault = f"SOLVER.IMS_PER_BATCH {total_batch} must be a multiple of the {world_size} processes"
        raise ValueError(fault)
    episodes = training_episodes(cfg)
    sampler = TrainingEpisodeSampler(episodes, start=start_iter * total_batch)
    name = training_set(cfg.DATASETS.TRAIN)
    metadata = MetadataCatalog.get(name)
    mapper = EpisodeMapper(
        cfg,
        is_train=True,
        records=get_records(name),
        class_ids=metadata.get("base_class_ids", metadata.class_ids),
        features=features,
        redraw=episodes if cfg.FEW_SHOT.TRAIN.QUERY_RULE == "crop" else None,
    )
    return _loader(cfg, mapper, sampler, total_batch // world_size)


def training_episodes(cfg: CfgNode) -> EpisodeSampler:
    """Return the episodes of a training without end; their `epoch_length` is that of the data."""
    name, train = training_set(cfg.DATASETS.TRAIN), cfg.FEW_SHOT.TRAIN
    options = {"rule": train.QUERY_RULE, "seed": cfg.FEW_SHOT.SEED, "batch_size": cfg.SOLVER.IMS_PER_BATCH}
    kinds = EpisodeKinds.from_config(cfg)
    return _episode_sampler(cfg, name, get_records(name), train.SHOTS, kinds, **options)


def _episode_sampler(
    cfg: CfgNode,
    name: str,
    records: Sequence[dict[str, Any]],
    shots: int | Sequence[int],
    kinds: EpisodeKinds | None = None,
    **options: Any,
) -> EpisodeSampler:
    metadata = MetadataCatalog.get(name)
    options |= {
        "shots": shots,
        "repeat_supports": cfg.FEW_SHOT.REPEAT_SUPPORTS,
        "class_names": metadata.get("stuff_classes"),
        "query_pairs": dataset_pairs(name, records, of_queries=True),
    }
    pairs = dataset_pairs(name, records)
    if kinds is None or not kinds.any:
        return EpisodeSampler(pairs, **options)
    return MixedEpisodeSampler(pairs, kinds=kinds, without=pictures_without(records, metadata), **options)


def build_test_episodes(
    cfg: CfgNode, dataset_name: str, shots: int, episodes: int | None = None
) -> list[Episode]:
    """Return the K-shot episodes of an evaluation, the same list in every process.

    Published rules ignore FEW_SHOT.REPEAT_SUPPORTS. `episodes` is their number; None =
    FEW_SHOT.TEST.EPISODES; 0 = one per (image, class) pair.
    """
    test = cfg.FEW_SHOT.TEST
    count = test.EPISODES if episodes is None else episodes
    if count < 0:
        raise ValueError(f"the number of episodes must not be negative, got {count}")
    if shots < 1:
        raise ValueError(f"FEW_SHOT.TEST.SHOTS must be positive numbers, got {shots}")
    records = get_records(dataset_name)
    pairs = dataset_pairs(dataset_name, records)
    if test.QUERY_RULE in PUBLISHED_RULES:
        shown = {"query_pairs": dataset_pairs(dataset_name, records, of_queries=True)}
        options = shown if test.QUERY_RULE == "mmformer" else {}
        return PUBLISHED_RULES[test.QUERY_RULE](pairs, shots, count, test.SEED, **options)
    if test.QUERY_RULE not in QUERY_RULES:
        rules = ", ".join((*QUERY_RULES, *PUBLISHED_RULES))
        raise ValueError(f"unknown FEW_SHOT.TEST.QUERY_RULE {test.QUERY_RULE!r}; choose one of {rules}")
    sampler = _episode_sampler(cfg, dataset_name, records, shots, rule=test.QUERY_RULE, seed=test.SEED)
    return [sampler.sample(i) for i in range(count)] if count else sampler.sample_every_pair()


def build_few_shot_test_loader(
    cfg: CfgNode,
    dataset_name: str,
    *,
    shots: int,
    episodes: int | None = None,
    manifest: str | None = None,
    features: FeatureStore | None = None,
) -> DataLoader[list[dict[str, Any]]]:
    """Build the loader of one K-shot evaluation: the share of this process, in batches of one episode.

    `manifest` (None = FEW_SHOT.TEST.MANIFEST) is a file of episodes to use instead of drawing them: the first
    `episodes` (None or 0 = all), and of more supports the first K; fewer are refused. `features` as for the
    training loader.
    """
    path = cfg.FEW_SHOT.TEST.MANIFEST if manifest is None else manifest
    records = get_records(dataset_name)
    if path:
        drawn = _manifest_episodes(path, dataset_name, records, shots)[: episodes or None]
    else:
        drawn = build_test_episodes(cfg, dataset_name, shots, episodes)
    class_ids = MetadataCatalog.get(dataset_name).class_ids
    mapper = EpisodeMapper(cfg, is_train=False, records=records, class_ids=class_ids, features=features)
    return _loader(cfg, mapper, InferenceEpisodeSampler(drawn), 1)


def _manifest_episodes(
    path: str, dataset_name: str, records: Sequence[dict[str, Any]], shots: int
) -> list[Episode]:
    names = MetadataCatalog.get(dataset_name).get("stuff_classes")
    episodes = read_manifest(path, dataset=dataset_name, records=records, class_names=names)
    if len(episodes[0].supports) < shots:
        raise ValueError(
            f"{path}: has {len(episodes[0].supports)} supports per episode, FEW_SHOT.TEST.SHOTS wants {shots}"
        )
    return [Episode(e.index, e.class_id, e.query, e.supports[:shots], e.seed) for e in episodes]


def _loader(
    cfg: CfgNode,
    mapper: EpisodeMapper,
    sampler: TrainingEpisodeSampler | InferenceEpisodeSampler,
    batch_size: int,
) -> DataLoader[list[dict[str, Any]]]:
    workers = cfg.DATALOADER.NUM_WORKERS
    has_gpu = cfg.MODEL.DEVICE.startswith("cuda") and torch.cuda.is_available()
    return DataLoader(
        EpisodeDataset(mapper),
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        pin_memory=has_gpu,
        persistent_workers=has_gpu and workers > 0,
        collate_fn=list,
        worker_init_fn=init_worker,
        generator=torch.Generator(),  # its seeds are unused; this leaves torch's global generator alone
    )
