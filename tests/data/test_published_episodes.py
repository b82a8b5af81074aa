"""The published test episodes: HSNet's from its lists and by hand, MM-Former's replayed by hand."""

import gzip
import hashlib
import json
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fss_d2.data.episode import Episode
from fss_d2.data.published_episodes import hsnet_coco, hsnet_fss, hsnet_pascal, mmformer_episodes
from fss_d2.data.sampler import Pair

ROOT = Path(__file__).parents[2]
LISTS = Path(os.environ.get("FSS_D2_GOLDEN_LISTS", ROOT / "../shared/golden/lists"))
GOLDEN: dict[str, Any] = json.loads((ROOT / "tests/golden/dcama_episodes.json").read_text())
needs_lists = pytest.mark.skipif(
    not LISTS.is_dir(), reason="the published split lists (FSS_D2_GOLDEN_LISTS) are not here"
)


def _rows(episodes: list[Episode]) -> list[Any]:
    return [[e.query, list(e.supports), e.class_id] for e in episodes]


def _sha256(episodes: list[Episode]) -> str:
    return hashlib.sha256(json.dumps(_rows(episodes)).encode()).hexdigest()


@needs_lists
@pytest.mark.parametrize("shots", [1, 5])
@pytest.mark.parametrize("fold", range(4))
def test_published_pascal_episodes(fold: int, shots: int) -> None:
    lines = (LISTS / f"pascal/val_fold{fold}.txt").read_text().split()
    pairs: list[Pair] = [(line[:-4], int(line[-2:]) - 1) for line in lines]
    golden = GOLDEN[f"pascal_fold{fold}_{shots}shot"]
    episodes = hsnet_pascal(pairs, shots)
    assert _rows(episodes)[:8] == golden["first"]
    assert _sha256(episodes) == golden["sha256_of_json_dumps_all_1000"]
    repeats = sum(len(set(e.supports)) < shots for e in episodes)
    assert repeats == golden["support_repeats_within_episode"]


@needs_lists
@pytest.mark.parametrize("shots", [1, 5])
@pytest.mark.parametrize("fold", range(4))
def test_published_coco_episodes(fold: int, shots: int) -> None:
    with gzip.open(LISTS / f"coco/val_fold{fold}.json.gz") as file:
        lists: dict[str, list[str]] = json.load(file)
    pairs: list[Pair] = [(image, int(class_id)) for class_id, images in lists.items() for image in images]
    golden = GOLDEN[f"coco_fold{fold}_{shots}shot"]
    episodes = hsnet_coco(pairs, shots)
    assert _rows(episodes)[:8] == golden["first"]
    assert _sha256(episodes) == golden["sha256_of_json_dumps_all_1000"]


@needs_lists
@pytest.mark.parametrize("shots", [1, 5])
def test_published_fss_episodes(shots: int) -> None:
    names = sorted((LISTS / "fss/test.txt").read_text().split())
    pairs: list[Pair] = [(f"{name}/{n}.jpg", 760 + i) for i, name in enumerate(names) for n in range(1, 11)]
    golden = GOLDEN[f"fss_test_{shots}shot"]
    episodes = hsnet_fss(pairs[::-1], shots)  # any order of the pairs
    assert len(episodes) == golden["episodes"]
    assert _sha256(episodes) == golden["sha256_of_json_dumps_all"]


SMALL: list[Pair] = [("p", 0), ("q", 0), ("r", 0), ("s", 1), ("t", 1), ("u", 1)]


def test_numpys_legacy_stream_is_what_the_tests_below_trace() -> None:
    rng = np.random.RandomState(0)
    assert [int(rng.permutation(3)[0]) for _ in range(8)] == [2, 2, 0, 2, 2, 1, 1, 0]


def test_pascal_rule_on_a_small_list() -> None:
    # Draws 2 2 | 0 2 | 2 1 1: p gets r, r; q gets p, r; r draws itself (thrown away), then q, q.
    episodes = hsnet_pascal(SMALL, 2, episodes=3)
    assert _rows(episodes) == [["p", ["r", "r"], 0], ["q", ["p", "r"], 0], ["r", ["q", "q"], 0]]


def test_coco_rule_draws_class_then_query_then_supports() -> None:
    rng = np.random.RandomState(5)
    expected = []
    for _ in range(20):
        class_id = int(rng.choice([0, 1], 1, replace=False)[0])
        images = ["p", "q", "r"] if class_id == 0 else ["s", "t", "u"]
        query = str(rng.choice(images, 1, replace=False)[0])
        support = query
        while support == query:
            support = str(rng.choice(images, 1, replace=False)[0])
        expected.append([query, [support], class_id])
    assert _rows(hsnet_coco(SMALL, 1, episodes=20, seed=5)) == expected


def test_fss_rule_walks_names_as_text_and_draws_supports_by_number() -> None:
    pairs: list[Pair] = [(f"cat/{n}.jpg", 0) for n in (1, 2, 10)]
    episodes = hsnet_fss(pairs, 1)
    assert [e.query for e in episodes] == ["cat/1.jpg", "cat/10.jpg", "cat/2.jpg"]
    # Draws 2 | 2 (itself, thrown away) 0 | 2 over [1, 2, 10].
    assert [e.supports for e in episodes] == [("cat/10.jpg",), ("cat/1.jpg",), ("cat/10.jpg",)]


def test_zero_episodes_means_each_pair_once_and_more_cycles() -> None:
    assert [e.query for e in hsnet_pascal(SMALL, 1, episodes=0)] == list("pqrstu")
    assert [e.query for e in hsnet_pascal(SMALL, 1, episodes=8)] == list("pqrstupq")
    assert len(hsnet_coco(SMALL, 1, episodes=0)) == 6


@pytest.mark.parametrize("rule", [hsnet_pascal, hsnet_coco, hsnet_fss])
def test_lists_without_a_second_image_are_refused(rule: Any) -> None:
    with pytest.raises(ValueError, match="class 1 has one image only"):
        rule([*SMALL[:3], ("s", 1)], 1)
    with pytest.raises(ValueError, match="no \\(image, class\\) pairs"):
        rule([], 1)


# Images a..f; a shows classes 2 and 7.
SHARED_PAIRS: list[Pair] = [("a", 7), ("a", 2), ("b", 2), ("c", 2), ("d", 7), ("e", 7), ("f", 7)]
IMAGES = {2: ["a", "b", "c"], 7: ["a", "d", "e", "f"]}


def test_first_draws_replayed_by_hand() -> None:
    state = random.getstate()
    episodes = mmformer_episodes(SHARED_PAIRS, 1, episodes=10, seed=4604572)
    assert random.getstate() == state  # the global generator is left alone
    random.seed(4604572)
    queries = list("abcdef") * 2  # 12 are enough for 10
    random.shuffle(queries)
    assert [e.query for e in episodes] == queries[:10]
    for episode in episodes:
        classes = [c for c in (2, 7) if episode.query in IMAGES[c]]
        assert episode.class_id == classes[random.randint(1, len(classes)) - 1]
        support = episode.query
        while support == episode.query:
            support = IMAGES[episode.class_id][random.randint(1, len(IMAGES[episode.class_id])) - 1]
        assert episode.supports == (support,)
    random.setstate(state)


@pytest.mark.parametrize("shots", [1, 2, 3, 5])
def test_supports_repeat_only_in_classes_of_no_more_than_k_images(shots: int) -> None:
    for episode in mmformer_episodes(SHARED_PAIRS, shots, episodes=200, seed=1):
        members = IMAGES[episode.class_id]
        assert len(episode.supports) == shots and episode.query not in episode.supports
        assert set(episode.supports) <= set(members)
        if len(members) > shots:
            assert len(set(episode.supports)) == shots


def test_shots_share_the_queries_and_every_image_comes_as_often() -> None:
    one, five = (mmformer_episodes(SHARED_PAIRS, shots, episodes=600, seed=3) for shots in (1, 5))
    assert [e.query for e in one] == [e.query for e in five]
    assert set(Counter(e.query for e in one).values()) == {100}
    assert [e.index for e in one] == list(range(600))
    assert sorted(e.query for e in mmformer_episodes(SHARED_PAIRS, 1, episodes=0)) == list("abcdef")


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match="class 7 has one image only"):
        mmformer_episodes([("a", 7), ("b", 2), ("c", 2)], 1)
    with pytest.raises(ValueError, match=r"no .* pairs to draw episodes from"):
        mmformer_episodes([], 1)
