"""Episode drawing: validity, uniformity, purity in (seed, i), and sharding over processes."""

import itertools
import logging
from collections import Counter

import pytest

from fss_d2.data.sampler import (
    EpisodeSampler,
    InferenceEpisodeSampler,
    Pair,
    TrainingEpisodeSampler,
    pairs_of,
)

# Class 0: a b c d; class 1: c d e; class 4: a e f g h.
PAIRS: list[Pair] = [(image, 0) for image in "abcd"]
PAIRS += [(image, 1) for image in "cde"] + [(image, 4) for image in "aefgh"]


@pytest.mark.parametrize("rule", ["class", "pair", "image"])
@pytest.mark.parametrize("shots", [1, 2])
def test_episodes_are_valid(rule: str, shots: int) -> None:
    sampler = EpisodeSampler(PAIRS, shots=shots, rule=rule)
    for index in range(200):
        episode = sampler.sample(index)
        images = {episode.query, *episode.supports}
        assert episode.index == index
        assert len(episode.supports) == shots
        assert len(images) == shots + 1  # all distinct
        assert all((image, episode.class_id) in PAIRS for image in images)


@pytest.mark.parametrize("rule", ["class", "root", "pair", "image"])
def test_episode_depends_on_seed_and_index_alone(rule: str) -> None:
    sampler = EpisodeSampler(PAIRS, rule=rule, seed=3)
    in_order = [sampler.sample(i) for i in range(60)]
    fresh = EpisodeSampler(PAIRS, rule=rule, seed=3)
    assert [fresh.sample(i) for i in reversed(range(60))] == in_order[::-1]
    other = EpisodeSampler(PAIRS, rule=rule, seed=4)
    assert [other.sample(i) for i in range(60)] != in_order


def test_a_class_in_proportion_to_the_root_of_its_images() -> None:
    pairs = [(f"{c}/{i}", c) for c, images in ((0, 16), (5, 4)) for i in range(images)]
    sampler = EpisodeSampler(pairs, rule="root")
    drawn = [sampler.sample(i).class_id for i in range(600)]
    assert 0.61 < drawn.count(0) / len(drawn) < 0.72  # 4 : 2


@pytest.mark.parametrize(
    ("rule", "length"), {"pair": 12, "image": 8, "pfenet": 8, "crop": 8, "class": 8, "root": 8}.items()
)
def test_an_epoch_counts_images_or_pairs(rule: str, length: int) -> None:
    assert EpisodeSampler(PAIRS, rule=rule).epoch_length == length


def test_an_episode_of_another_class_has_supports_of_it() -> None:
    sampler = EpisodeSampler(PAIRS, shots=2, rule="crop", seed=3)
    for index in range(40):
        episode = sampler.sample(index)
        moved = sampler.of_class(episode, 4)
        assert (moved.index, moved.query, moved.seed) == (index, episode.query, episode.seed)
        assert moved.class_id == 4 and len({moved.query, *moved.supports}) == 3
        assert set(moved.supports) <= set("aefgh")
        assert moved == sampler.of_class(episode, 4)


@pytest.mark.parametrize("rule", ["pair", "image", "crop"])
def test_every_query_comes_once_an_epoch_in_a_new_order(rule: str) -> None:
    sampler = EpisodeSampler(PAIRS, rule=rule)
    epochs = []
    for epoch in range(3):
        drawn = [sampler.sample(epoch * sampler.epoch_length + i) for i in range(sampler.epoch_length)]
        epochs.append([(e.query, e.class_id) if rule == "pair" else e.query for e in drawn])
    expected = PAIRS if rule == "pair" else list("abcdefgh")
    assert all(sorted(epoch, key=str) == sorted(expected, key=str) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_class_rule_is_uniform_over_classes_and_supports_over_images() -> None:
    sampler = EpisodeSampler(PAIRS, shots=2)
    episodes = [sampler.sample(i) for i in range(6000)]
    classes = Counter(e.class_id for e in episodes)
    assert all(abs(count - 2000) < 150 for count in classes.values())  # 4 standard deviations
    supports = Counter(image for e in episodes if e.class_id == 4 for image in e.supports)
    assert set(supports) == set("aefgh")
    assert all(abs(count - 2 * classes[4] / 5) < 150 for count in supports.values())


def test_image_rule_draws_the_class_uniformly_among_the_image_s_classes() -> None:
    sampler = EpisodeSampler(PAIRS, rule="image")
    classes = Counter(e.class_id for e in map(sampler.sample, range(8000)) if e.query == "e")  # in 1 and 4
    assert set(classes) == {1, 4}
    assert abs(classes[1] - 500) < 70


def test_pfenet_rule_also_draws_classes_too_small_for_a_support() -> None:
    small: list[Pair] = [("a", 1), ("a", 0), ("z", 0), ("b", 7)]  # z is not listed, class 7 has no supports
    sampler = EpisodeSampler(PAIRS, rule="pfenet", shots=2, query_pairs=small)
    episodes = [sampler.sample(i) for i in range(8000)]
    assert sampler.epoch_length == 8
    assert sorted(e.query for e in episodes[:8]) == list("abcdefgh")
    classes = Counter(e.class_id for e in episodes if e.query == "a")
    assert set(classes) == {0, 1, 4}
    assert all(abs(count - 1000 / 3) < 70 for count in classes.values())
    supports = Counter(s for e in episodes if (e.query, e.class_id) == ("a", 1) for s in e.supports)
    assert set(supports) == set("cde")  # all of the class, and no image that is too small
    assert {(e.query, e.class_id) for e in episodes} == {*PAIRS, ("a", 1)}
    assert all(e.query not in e.supports and len(set(e.supports)) == 2 for e in episodes)


def test_other_rules_draw_no_class_too_small() -> None:
    for rule in ("class", "pair", "image"):
        plain, given = (EpisodeSampler(PAIRS, rule=rule, query_pairs=q) for q in ((), [("a", 1)]))
        assert [plain.sample(i) for i in range(50)] == [given.sample(i) for i in range(50)]
    alike = EpisodeSampler(PAIRS, rule="pfenet")
    image = EpisodeSampler(PAIRS, rule="image")
    assert [alike.sample(i) for i in range(50)] == [image.sample(i) for i in range(50)]


def test_pairs_of_queries() -> None:
    records = [
        {"image_id": "a", "classes": [0], "query_classes": [0, 2, 3]},
        {"image_id": "b", "classes": [2]},
    ]
    assert pairs_of(records, [0, 2]) == [("a", 0), ("b", 2)]
    assert pairs_of(records, [0, 2], of_queries=True) == [("a", 0), ("a", 2), ("b", 2)]


def test_repeats_only_when_asked_for() -> None:
    with_repeats = EpisodeSampler(PAIRS, shots=5, repeat_supports=True)
    episodes = [with_repeats.sample(i) for i in range(100)]
    assert {e.class_id for e in episodes} == {0, 1, 4}  # class 1 has three images and still gives 5 shots
    assert any(len(set(e.supports)) < 5 for e in episodes)
    assert all(e.query not in e.supports for e in episodes)


def test_several_shots_change_by_batch_and_never_within() -> None:
    sampler = EpisodeSampler(PAIRS, shots=(1, 2), batch_size=4)
    shots = [len(sampler.sample(i).supports) for i in range(400)]
    batches = [set(shots[i : i + 4]) for i in range(0, 400, 4)]
    assert all(len(batch) == 1 for batch in batches)
    assert 30 < sum(batch == {1} for batch in batches) < 70


@pytest.mark.parametrize("repeat_supports", [False, True])
@pytest.mark.parametrize("rule", ["class", "pair", "image"])
def test_episodes_without_supports_need_one_image_a_class(rule: str, repeat_supports: bool) -> None:
    pairs: list[Pair] = [("a", 0), ("b", 0), ("c", 1)]  # one image of class 1
    sampler = EpisodeSampler(pairs, shots=(0,), rule=rule, repeat_supports=repeat_supports, batch_size=4)
    episodes = [sampler.sample(i) for i in range(30)]
    assert {(e.query, e.class_id) for e in episodes} == set(pairs)
    assert all(e.supports == () for e in episodes)


def test_queries_do_not_depend_on_the_shots() -> None:
    alone, shot = (EpisodeSampler(PAIRS, shots=k, rule="image", seed=2) for k in (0, 1))
    assert [alone.sample(i).query for i in range(40)] == [shot.sample(i).query for i in range(40)]


def test_small_classes_are_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        sampler = EpisodeSampler(PAIRS, shots=3, class_names=["cat", "dog", "", "", "owl"])
    assert sampler.class_ids == [0, 4]
    assert len(caplog.messages) == 1 and "fewer than 4 images each: dog" in caplog.messages[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shots": 5}, "no class has the 6 images"),
        ({"shots": -1}, "shots must be positive"),
        ({"shots": (0, 1)}, "or 0 alone"),
        ({"shots": (1, -1)}, "shots must be positive"),
        ({"shots": ()}, "shots must be positive"),
        ({"seed": -1}, "must not be negative"),
        ({"rule": "random"}, "unknown query rule 'random'; choose one of class, pair, image"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EpisodeSampler(PAIRS, **options)  # type: ignore[arg-type]


def test_no_pairs_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="no class has"):
        EpisodeSampler([])


def test_sample_every_pair_takes_each_once_in_list_order() -> None:
    episodes = EpisodeSampler(PAIRS, shots=2, rule="class").sample_every_pair()
    assert [(e.query, e.class_id) for e in episodes] == PAIRS
    assert [e.index for e in episodes] == list(range(12))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_training_ranks_together_are_the_single_process_order(world_size: int) -> None:
    def first(count: int, start: int, rank: int, world: int) -> list[object]:
        sampler = TrainingEpisodeSampler(
            EpisodeSampler(PAIRS, rule="pair"), start=start, rank=rank, world_size=world
        )
        return list(itertools.islice(sampler, count))

    single = first(30, 6, 0, 1)
    ranks = [first(30 // world_size, 6, rank, world_size) for rank in range(world_size)]
    assert [episode for step in zip(*ranks, strict=True) for episode in step] == single
    assert single == first(36, 0, 0, 1)[6:]  # resuming is starting later


@pytest.mark.parametrize("world_size", [1, 2, 5, 20])
def test_inference_ranks_partition_the_list(world_size: int) -> None:
    episodes = EpisodeSampler(PAIRS).sample_every_pair()
    shares = [InferenceEpisodeSampler(episodes, rank=r, world_size=world_size) for r in range(world_size)]
    assert [len(share) for share in shares] == [len(list(share)) for share in shares]
    assert sorted((e for share in shares for e in share), key=lambda e: e.index) == episodes


def test_pairs_of_keeps_record_order_and_the_wanted_classes() -> None:
    records = [{"image_id": 9, "classes": [3, 1]}, {"image_id": 2, "classes": [0, 1]}]
    assert pairs_of(records, [1, 3]) == [(9, 3), (9, 1), (2, 1)]
