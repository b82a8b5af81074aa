"""Datasets, episodes and loaders. Importing this registers the built-in datasets, lazily, by name."""

from .build import build_few_shot_test_loader, build_few_shot_train_loader, build_test_episodes
from .catalog import get_records, register_all, register_datasets_from_cfg
from .datasets.class_maps import register_class_maps
from .datasets.custom import register_coco_json, register_folder
from .episode import Episode, ImageId, read_manifest, write_manifest
from .mapper import EpisodeMapper

__all__ = [
    "Episode",
    "EpisodeMapper",
    "ImageId",
    "build_few_shot_test_loader",
    "build_few_shot_train_loader",
    "build_test_episodes",
    "get_records",
    "read_manifest",
    "register_all",
    "register_class_maps",
    "register_coco_json",
    "register_datasets_from_cfg",
    "register_folder",
    "write_manifest",
]

register_all()
