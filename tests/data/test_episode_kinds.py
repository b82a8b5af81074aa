"""Negative episodes, competition and pasted objects: which pictures make them up."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from detectron2.data.catalog import Metadata

from fss_d2.config import get_cfg
from fss_d2.data.episode import Episode
from fss_d2.data.episode_kinds import EpisodeKinds, MixedEpisodeSampler, pictures_without
from fss_d2.data.sampler import EpisodeSampler, Pair

# Class 0: a b c d; class 1: c d e; class 4: a e f g h.
PAIRS: list[Pair] = [(image, 0) for image in "abcd"]
PAIRS += [(image, 1) for image in "cde"] + [(image, 4) for image in "aefgh"]
WITHOUT = {0: list("efgh"), 1: list("fg"), 4: list("bc")}  # h and a are not annotated for 1


def drawn(count: int = 400, start: int = 0, **kinds: Any) -> list[Episode]:
    sampler = MixedEpisodeSampler(PAIRS, kinds=EpisodeKinds(**kinds), without=WITHOUT, seed=3, batch_size=4)
    return [sampler.sample(i) for i in range(start, start + count)]


PLAIN = [EpisodeSampler(PAIRS, seed=3).sample(i) for i in range(400)]


@pytest.mark.parametrize("rule", ["class", "pair", "image"])
def test_nothing_changes_without_shares(rule: str) -> None:
    mixed = MixedEpisodeSampler(PAIRS, kinds=EpisodeKinds(), without=WITHOUT, rule=rule)
    plain = EpisodeSampler(PAIRS, rule=rule)
    assert [mixed.sample(i) for i in range(50)] == [plain.sample(i) for i in range(50)]


def test_a_share_of_the_episodes_is_negative() -> None:
    episodes = drawn(negatives=0.3)
    changed = [(now, before) for now, before in zip(episodes, PLAIN, strict=True) if now != before]
    assert 0.22 < len(changed) / len(episodes) < 0.38
    for now, before in changed:
        assert now == replace(before, query=now.query, absent=True)
        assert now.query in WITHOUT[now.class_id]
    queries = Counter(now.query for now, _ in changed if now.class_id == 0)
    assert set(queries) == set("efgh")


def test_negative_episodes_may_start_late() -> None:
    """At iteration 50 of 4 episodes each; what comes then is what would have come anyway."""
    late, early = drawn(negatives=0.3, negatives_start=50), drawn(negatives=0.3)
    assert late[:200] == PLAIN[:200] and late[200:] == early[200:]
    assert sum(episode.absent for episode in late) > 30


def test_a_share_of_the_positive_episodes_is_of_regions() -> None:
    """The picture is the one that would have been the query; the episode is of no other kind."""
    episodes = drawn(negatives=0.3, regions=0.4, paste_others=0.5, paste_copies=0.5, competition=0.5)
    kinds = zip(episodes, PLAIN, drawn(negatives=0.3), strict=True)
    positive = [(now, before) for now, before, negative in kinds if not negative.absent]
    regions = [(now, before) for now, before in positive if now.region]
    assert len(regions) == sum(episode.region for episode in episodes)
    assert 0.32 < len(regions) / len(positive) < 0.48
    for now, before in regions:
        assert now == replace(before, supports=(before.query,), region=True)


def test_regions_leave_the_other_episodes_as_they_are() -> None:
    kinds = {"negatives": 0.3, "paste_copies": 0.3, "competition": 0.5, "paste_others": 0.4}
    for now, before in zip(drawn(regions=0.4, **kinds), drawn(**kinds), strict=True):
        assert now.region or now == before


def test_queries_with_competition() -> None:
    competing = {0: set("acd"), 1: set("cde"), 4: set("ae")}
    for episode in drawn(competition=1.0):
        rivals = competing[episode.class_id] - set(episode.supports)
        assert episode.query in rivals and episode.query not in episode.supports
        assert not episode.absent and not episode.pasted


def test_objects_of_other_classes_come_from_pictures_without_the_class() -> None:
    episodes = drawn(paste_others=0.5, negatives=0.2)
    pasted = [episode for episode in episodes if episode.pasted]
    assert 0.4 < len(pasted) / len(episodes) < 0.6
    assert {len(episode.pasted) for episode in pasted} == {1, 2}
    assert {episode.absent for episode in pasted} == {True, False}
    for episode in pasted:
        for image, class_id in episode.pasted:
            assert image in WITHOUT[episode.class_id]
            assert class_id != episode.class_id and (image, class_id) in PAIRS


def test_copies_come_from_the_class_and_not_from_the_supports() -> None:
    episodes = drawn(paste_copies=0.5)
    pasted = [episode for episode in episodes if episode.pasted]
    assert 0.4 < len(pasted) / len(episodes) < 0.6
    assert 0.35 < sum(episode.absent for episode in pasted) / len(pasted) < 0.65
    for episode in pasted:
        ((image, class_id),) = episode.pasted
        assert class_id == episode.class_id and (image, class_id) in PAIRS
        assert image not in episode.supports
        assert episode.absent == (episode.query in WITHOUT[class_id])


def test_copies_lie_on_other_pasted_objects() -> None:
    both = [e for e in drawn(paste_copies=1.0, paste_others=1.0) if len(e.pasted) > 1]
    assert both and all(episode.pasted[-1][1] == episode.class_id for episode in both)


def test_an_episode_depends_on_seed_and_index_alone() -> None:
    kinds = {"negatives": 0.3, "regions": 0.2, "competition": 0.5, "paste_others": 0.4, "paste_copies": 0.2}
    assert drawn(60, start=300, **kinds) == drawn(**kinds)[300:360]


def _record(image: str, classes: list[int], **more: Any) -> dict[str, Any]:
    return {"image_id": image, "classes": classes, **more}


def test_pictures_without_a_class() -> None:
    crowd = [{"category_id": 1, "iscrowd": 1}]
    records = [
        _record("map", [0], query_classes=[0, 2], mask_encoding="class_map"),
        _record("crowd", [0], annotations=[{"category_id": 0}, *crowd]),
        _record("one class", [0], mask_encoding="binary"),
    ]
    assert pictures_without(records, Metadata(class_ids=[0, 1, 2])) == {0: [], 1: ["map"], 2: ["crowd"]}


def test_pictures_without_a_class_in_joined_sets() -> None:
    records = [_record("A/1", [0], dataset="A"), _record("B/1", [1], dataset="B")]
    metadata = Metadata(class_ids=[0, 1, 2], annotated_class_ids={"A": [0, 1], "B": [1, 2]})
    assert pictures_without(records, metadata) == {0: [], 1: ["A/1"], 2: ["B/1"]}


@pytest.mark.parametrize("key", ["NEGATIVES", "PASTE_OTHERS", "COMPETITION"])
def test_a_set_that_has_no_such_pictures(key: str) -> None:
    pairs = [(f"{c}/{i}", c) for c in (0, 1) for i in range(3)]
    message = "shows two classes" if key == "COMPETITION" else "is known not to show a class"
    with pytest.raises(ValueError, match=rf"^FEW_SHOT\.TRAIN\.{key} 0.5: no picture .* {message}; "):
        MixedEpisodeSampler(pairs, kinds=EpisodeKinds(**{key.lower(): 0.5}), without={})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("FEW_SHOT.TRAIN.NEGATIVES", 1.5, r"FEW_SHOT\.TRAIN\.NEGATIVES 1\.5 is no share: give 0 to 1"),
        ("FEW_SHOT.TRAIN.REGIONS", 2.0, r"REGIONS 2\.0 is no share"),
        ("FEW_SHOT.TRAIN.PASTE_COPIES", -0.1, r"PASTE_COPIES -0\.1 is no share"),
        ("FEW_SHOT.TRAIN.NEGATIVES_START", -1, r"NEGATIVES_START -1 must not be negative"),
    ],
)
def test_keys_are_checked(key: str, value: Any, message: str) -> None:
    cfg = get_cfg()
    cfg.merge_from_list(["FEW_SHOT.TRAIN.NEGATIVES", 0.2, key, value])
    with pytest.raises(ValueError, match=message):
        EpisodeKinds.from_config(cfg)
