"""MM-Former's episodes: draws replayed with Python's global generator, and what every episode must be."""

import random
from collections import Counter

import pytest

from fss_d2.data.mmformer_episodes import mmformer_episodes
from fss_d2.data.sampler import Pair

# Images a..f; a shows classes 2 and 7.
PAIRS: list[Pair] = [("a", 7), ("a", 2), ("b", 2), ("c", 2), ("d", 7), ("e", 7), ("f", 7)]
IMAGES = {2: ["a", "b", "c"], 7: ["a", "d", "e", "f"]}


def test_first_draws_replayed_by_hand() -> None:
    state = random.getstate()
    episodes = mmformer_episodes(PAIRS, 1, episodes=10, seed=4604572)
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
    for episode in mmformer_episodes(PAIRS, shots, episodes=200, seed=1):
        members = IMAGES[episode.class_id]
        assert len(episode.supports) == shots and episode.query not in episode.supports
        assert set(episode.supports) <= set(members)
        if len(members) > shots:
            assert len(set(episode.supports)) == shots


def test_shots_share_the_queries_and_every_image_comes_as_often() -> None:
    one, five = (mmformer_episodes(PAIRS, shots, episodes=600, seed=3) for shots in (1, 5))
    assert [e.query for e in one] == [e.query for e in five]
    assert set(Counter(e.query for e in one).values()) == {100}
    assert [e.index for e in one] == list(range(600))
    assert sorted(e.query for e in mmformer_episodes(PAIRS, 1, episodes=0)) == list("abcdef")


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match="class 7 has one image only"):
        mmformer_episodes([("a", 7), ("b", 2), ("c", 2)], 1)
    with pytest.raises(ValueError, match=r"no .* pairs to draw episodes from"):
        mmformer_episodes([], 1)
