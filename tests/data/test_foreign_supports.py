"""Supports of another class: whose they are, and that nothing else of an episode changes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from detectron2.data import transforms as T

from fss_d2.data.episode import Episode
from fss_d2.data.foreign_supports import ForeignSupports, donors_of
from fss_d2.data.mapper import EpisodeMapper


def episodes_of(*entries: tuple[int, str, str]) -> list[Episode]:
    """Episodes of (class id, query, support)."""
    return [Episode(i, class_id, query, (support,)) for i, (class_id, query, support) in enumerate(entries)]


def test_the_next_of_another_class_round_the_list() -> None:
    episodes = episodes_of((0, "a", "b"), (0, "b", "c"), (1, "x", "y"), (0, "c", "a"), (2, "p", "q"))
    assert [donor.index for donor in donors_of(episodes)] == [2, 2, 3, 4, 0]


def test_the_query_is_never_its_own_support() -> None:
    episodes = episodes_of((0, "a", "b"), (1, "x", "a"), (1, "y", "x"))
    assert [donor.index for donor in donors_of(episodes)] == [2, 0, 0]
    with pytest.raises(ValueError, match="episode 0: every episode of another class has its query 'a'"):
        donors_of(episodes[:2])


def test_one_class_has_none() -> None:
    with pytest.raises(ValueError, match=r"all 2 episodes are of one class, .* choose a data set of two"):
        donors_of(episodes_of((3, "a", "b"), (3, "b", "a")))


def test_query_and_truth_stay_and_the_supports_change(
    make_records: Callable[..., list[dict[str, Any]]],
) -> None:
    mapper = EpisodeMapper(records=make_records(), resize=T.Resize((40, 56)))
    episodes = [
        Episode(4, 1, "image1", ("image4", "image0")),
        Episode(7, 2, "image2", ("image5", "image8")),
    ]
    foreign = ForeignSupports(mapper, episodes)
    own, other, mixed = mapper(episodes[0]), mapper(episodes[1]), foreign(episodes[0])
    assert mixed.keys() == own.keys()
    for key in own.keys() - {"support"}:
        same = torch.equal(mixed[key], own[key]) if torch.is_tensor(own[key]) else mixed[key] == own[key]
        assert same, key
    assert [support["image_id"] for support in mixed["support"]] == ["image5", "image8"]
    for ours, theirs in zip(mixed["support"], other["support"], strict=True):
        assert torch.equal(ours["mask"], theirs["mask"]) and (ours["mask"] == 1).any()
        assert torch.equal(ours["image"], theirs["image"])
    assert [support["image_id"] for support in foreign(episodes[1])["support"]] == ["image4", "image0"]


def test_supports_of_other_sizes_change_as_well(
    make_records: Callable[..., list[dict[str, Any]]],
) -> None:
    mapper = EpisodeMapper(records=make_records(), resize=T.Resize((40, 56)), views=[T.Resize((20, 28))])
    episodes = [Episode(0, 1, "image1", ("image4",)), Episode(1, 2, "image2", ("image5",))]
    (own,), (other,) = (mapper(episode)["views"] for episode in episodes)
    (mixed,) = ForeignSupports(mapper, episodes)(episodes[0])["views"]
    assert torch.equal(mixed["image"], own["image"]) and mixed["image"].shape == (3, 20, 28)
    (ours,), (theirs,) = mixed["support"], other["support"]
    assert torch.equal(ours["image"], theirs["image"]) and torch.equal(ours["mask"], theirs["mask"])
