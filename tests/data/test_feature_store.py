"""Features by picture and by what was done to it: pixels are read only where they are needed."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode

from fss_d2.config import get_cfg
from fss_d2.data.episode import Episode
from fss_d2.data.feature_store import FeatureStore
from fss_d2.data.mapper import EpisodeMapper, ForeignSupportMapper
from tests.data.conftest import MakeRecords

EPISODES = [Episode(i, 0, f"image{3 * (i % 2)}", ("image6", "image9"), seed=i) for i in range(12)]
FULL = ("object_crop", "flip", "color")


def _cfg(*overrides: Any) -> CfgNode:
    cfg = get_cfg()
    cfg.INPUT.FEW_SHOT_SIZE = (24, 32)
    cfg.merge_from_list(list(overrides))
    return cfg


def _pictures(mapped: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Query and supports, at all sizes."""
    for one in (mapped, *mapped.get("views", ())):
        yield from (one, *one["support"])


def _equal_masks(a: dict[str, Any], b: dict[str, Any]) -> None:
    for key in ("sem_seg", "target", "segments"):
        assert (key in a) == (key in b)
        assert key not in a or torch.equal(a[key], b[key])
    for one, other in zip(_pictures(a), _pictures(b), strict=True):
        assert "mask" not in one or torch.equal(one["mask"], other["mask"])


CASES = pytest.mark.parametrize(
    ("is_train", "keys"),
    [
        (True, ("INPUT.TRAIN_AUGMENTATIONS", ("flip",))),
        (True, ("INPUT.TRAIN_AUGMENTATIONS", ("flip",), "INPUT.AUGMENT_SUPPORTS", False)),
        (True, ("INPUT.TRAIN_AUGMENTATIONS", ("flip",), "INPUT.SEGMENTS", "semantic")),
        (True, ("INPUT.TRAIN_AUGMENTATIONS", FULL, "DATALOADER.FEATURE_CACHE_VARIANTS", 3)),
        (True, ("INPUT.TRAIN_AUGMENTATIONS", ("scale", "rotate", "blur", "crop"))),
        (False, ()),
        (False, ("INPUT.TEST_RESIZE", "letterbox", "TEST.SCALES", (16, 24))),
        (False, ("FEW_SHOT.TEST.SUPPORT_VIEWS", ("whole", "flip", "cut", "cut_flip"))),
    ],
)


@CASES
def test_pixels_are_those_of_loading_without_a_store(
    make_records: MakeRecords, tmp_path: Path, is_train: bool, keys: tuple[Any, ...]
) -> None:
    records, store = make_records(), FeatureStore(tmp_path / "store")
    plain, stored = (EpisodeMapper(_cfg(*keys), is_train, records, features=f) for f in (None, store))
    for episode in EPISODES:
        a, b = plain(episode), stored(episode)
        _equal_masks(a, b)
        for one, other in zip(_pictures(a), _pictures(b), strict=True):
            assert torch.equal(one["image"], other["image"])
            assert "entry" in other and "entry" not in one


@CASES
def test_what_is_stored_is_not_read(
    make_records: MakeRecords,
    tmp_path: Path,
    is_train: bool,
    keys: tuple[Any, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    records, store = make_records(), FeatureStore(tmp_path / "store")
    mapper = EpisodeMapper(_cfg(*keys), is_train, records, features=store)
    before = [mapper(episode) for episode in EPISODES]
    for picture in (p for mapped in before for p in _pictures(mapped)):
        store.save(picture["entry"], {"res4": torch.zeros(2, 3, 3)})
    monkeypatch.delattr("fss_d2.data.feature_store.read_image")
    for mapped, episode in zip(before, EPISODES, strict=True):
        again = mapper(episode)
        _equal_masks(mapped, again)
        for one, other in zip(_pictures(mapped), _pictures(again), strict=True):
            assert other["entry"] == one["entry"]
            assert other["image"].shape == one["image"].shape
            assert other["image"].untyped_storage().nbytes() == 1


def test_one_entry_for_each_thing_done_to_a_picture(make_records: MakeRecords, tmp_path: Path) -> None:
    records, store = make_records(), FeatureStore(tmp_path / "store")

    def entries(is_train: bool, *keys: Any) -> set[str]:
        mapper = EpisodeMapper(_cfg(*keys), is_train, records, features=store)
        return {p["entry"] for episode in EPISODES for p in _pictures(mapper(episode))}

    shown = {name for e in EPISODES for name in (e.query, *e.supports)}
    plain = entries(False)
    assert len(plain) == len(shown)
    flipped = entries(True, "INPUT.TRAIN_AUGMENTATIONS", ("flip",))
    assert plain < flipped and len(flipped) <= 2 * len(shown)
    assert not plain & entries(False, "INPUT.FEW_SHOT_SIZE", (24, 24))
    assert not plain & entries(False, "INPUT.TEST_RESIZE", "letterbox")
    views = entries(False, "FEW_SHOT.TEST.SUPPORT_VIEWS", ("whole", "flip", "cut", "cut_flip"))
    assert plain < views and len(views) == len(plain) + 3 * 2
    drawn = ("INPUT.TRAIN_AUGMENTATIONS", ("color",), "DATALOADER.FEATURE_CACHE_VARIANTS", 2)
    assert len(entries(True, *drawn)) <= 2 * len(shown)
    assert entries(True, *drawn) == entries(True, *drawn, "FEW_SHOT.SEED", 5)
    assert len(entries(True, *drawn[:2])) == sum(1 + len(e.supports) for e in EPISODES)
    os.utime(records[6]["file_name"], ns=(1, 1))  # another picture under the old name
    assert len(plain & entries(False)) == len(plain) - 1


def test_episodes_that_are_drawn_keep_their_pixels(make_records: MakeRecords, tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "store", pixels_below=1)
    mapper = EpisodeMapper(_cfg(), False, make_records(), features=store)
    for episode in EPISODES[:2]:
        for picture in _pictures(mapper(episode)):
            store.save(picture["entry"], {"res4": torch.zeros(1, 1, 1)})
    drawn, other = (mapper(episode) for episode in EPISODES[:2])
    assert all(picture["image"].float().std() > 1 for picture in _pictures(drawn))
    assert all(not picture["image"].any() for picture in _pictures(other))


def test_supports_of_another_episode_are_drawn_too(make_records: MakeRecords, tmp_path: Path) -> None:
    records, store = make_records(), FeatureStore(tmp_path / "store", pixels_below=1)
    episodes = [EPISODES[0], Episode(5, 1, "image1", ("image4", "image7"))]
    mapper = ForeignSupportMapper(EpisodeMapper(_cfg(), False, records, features=store), episodes)
    for picture in (p for episode in episodes for p in _pictures(mapper(episode))):
        store.save(picture["entry"], {"res4": torch.zeros(1, 1, 1)})
    drawn, other = map(mapper, episodes)
    assert drawn["support_ids"] == episodes[1].supports
    assert all(picture["image"].any() for picture in _pictures(drawn))
    assert not any(picture["image"].any() for picture in _pictures(other))


def test_pasted_queries_have_no_entry_and_absent_ones_do(make_records: MakeRecords, tmp_path: Path) -> None:
    records, store = make_records(), FeatureStore(tmp_path / "store")
    cfg = _cfg("INPUT.TRAIN_AUGMENTATIONS", FULL, "DATALOADER.FEATURE_CACHE_VARIANTS", 3)
    plain, stored = (EpisodeMapper(cfg, True, records, features=f) for f in (None, store))
    pasted = replace(EPISODES[0], pasted=(("image4", 1),))
    absent = replace(EPISODES[1], query="image2", absent=True)
    for episode, has_entry in ((pasted, False), (absent, True)):
        a, b = plain(episode), stored(episode)
        _equal_masks(a, b)
        assert torch.equal(a["image"], b["image"])
        assert ("entry" in b) == has_entry
        assert all("entry" in support for support in b["support"])


def test_entries_are_whole_and_stay(tmp_path: Path) -> None:
    store, maps = FeatureStore(tmp_path), {"res4.1": torch.rand(2, 3, 4).half()}
    assert "a" not in store
    store.save("a", maps)
    store.save("a", {"res4.1": torch.zeros(1, 1, 1)})  # of a slower process
    assert torch.equal(store.load("a")["res4.1"], maps["res4.1"])
    (tmp_path / ".b.safetensors.1.tmp").write_bytes(b"of a process that was killed")
    assert "b" not in store
    assert store.usage() == (1, (tmp_path / "a.safetensors").stat().st_size)
    (tmp_path / "a.safetensors").write_bytes(b"short")
    with pytest.raises(
        ValueError, match=r"a\.safetensors of DATALOADER.FEATURE_CACHE is damaged .*: remove it"
    ):
        store.load("a")
