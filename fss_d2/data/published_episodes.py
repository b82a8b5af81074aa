"""The exact test episodes of published results, drawn as the released code draws them.

HSNet (Min et al., ICCV 2021), also used by DCAMA and many others: numpy's legacy generator, seeded once (0 in
the published results) and consumed in the order of the episodes, so the order and the length of the lists
decide every draw. Each draw permutes a whole list and takes the first entry; draws that hit the query are
discarded but consumed; supports may repeat.

MM-Former (Jiao et al., NeurIPS 2022): Python's generator, seeded once with the fold's seed and consumed in
the order of the episodes. All numbers of shots share the shuffled queries; the classes differ, because the
draws of the supports lie between them.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from .episode import Episode, ImageId, episode_seed
from .sampler import Pair

__all__ = ["PUBLISHED_RULES", "hsnet_coco", "hsnet_fss", "hsnet_pascal", "mmformer_episodes"]

_Item = TypeVar("_Item")


def hsnet_pascal(pairs: Sequence[Pair], shots: int, episodes: int = 1000, seed: int = 0) -> list[Episode]:
    """Query: the pairs in list order, repeated. Supports: uniform in the class's part of the list.

    `pairs` have the order of the published list; `episodes` = 0 takes each once. ValueError without pairs, or
    for a class with a single image.
    """
    members, rng = _members_of(pairs), np.random.RandomState(seed)
    queries = (pairs[i % len(pairs)] for i in range(episodes or len(pairs)))
    return [_with_supports(i, *query, members, shots, rng, seed) for i, query in enumerate(queries)]


def hsnet_coco(pairs: Sequence[Pair], shots: int, episodes: int = 1000, seed: int = 0) -> list[Episode]:
    """Class uniform over the classes by rising id, then query and supports uniform in the class's list.

    Arguments and errors as in `hsnet_pascal`; only the order of the images within each class matters.
    """
    members, rng = _members_of(pairs), np.random.RandomState(seed)
    class_ids, drawn = sorted(members), []
    for index in range(episodes or len(pairs)):
        class_id = _legacy_choice(rng, class_ids)
        query = _legacy_choice(rng, members[class_id])
        drawn.append(_with_supports(index, query, class_id, members, shots, rng, seed))
    return drawn


def hsnet_fss(pairs: Sequence[Pair], shots: int, episodes: int = 0, seed: int = 0) -> list[Episode]:
    """Each image once (`episodes` = 0): classes by rising id, images of a class by name (1, 10, 2, ...).

    Supports are drawn from the class's images by rising number (1, 2, ..., 10). Arguments and errors as in
    `hsnet_pascal`, but the order of `pairs` does not matter.
    """
    walk = sorted(pairs, key=lambda pair: (pair[1], str(pair[0])))
    members = {c: sorted(images, key=_by_number) for c, images in _members_of(walk).items()}
    rng = np.random.RandomState(seed)
    queries = (walk[i % len(walk)] for i in range(episodes or len(walk)))
    return [_with_supports(i, *query, members, shots, rng, seed) for i, query in enumerate(queries)]


def mmformer_episodes(
    pairs: Sequence[Pair],
    shots: int,
    episodes: int = 1000,
    seed: int = 0,
    query_pairs: Sequence[Pair] = (),
) -> list[Episode]:
    """Query: the images, repeated as a whole until they are enough, shuffled. Class: uniform among its own.

    Its own are the classes that `pairs` lists for the image and, in `query_pairs`, those that it shows,
    however small. Supports are drawn uniformly from the class's list, never the query, and none twice unless
    the class has at most K images. Arguments and errors as in `hsnet_pascal`, but `episodes` = 0 takes each
    image once; the published seeds are in the configs.
    """
    members = _members_of(pairs)
    shown = [pair for pair in {*pairs, *query_pairs} if pair[1] in members]
    classes_of: dict[ImageId, list[int]] = {}
    for image, class_id in sorted(shown, key=lambda pair: pair[1]):
        classes_of.setdefault(image, []).append(class_id)
    images = list(dict.fromkeys(image for image, _ in pairs))
    count = episodes or len(images)
    queries = images * -(-count // len(images))
    rng = random.Random(seed)
    rng.shuffle(queries)
    drawn = []
    for index, query in enumerate(queries[:count]):
        class_id = classes_of[query][rng.randint(1, len(classes_of[query])) - 1]
        own, places = members[class_id], list[int]()
        while len(places) < shots:
            place = rng.randint(1, len(own)) - 1
            if own[place] != query and (len(own) <= shots or place not in places):
                places.append(place)
        supports = tuple(own[place] for place in places)
        drawn.append(Episode(index, class_id, query, supports, episode_seed(seed, index)))
    return drawn


PUBLISHED_RULES: dict[str, Callable[..., list[Episode]]] = {
    "hsnet_pascal": hsnet_pascal,
    "hsnet_coco": hsnet_coco,
    "hsnet_fss": hsnet_fss,
    "mmformer": mmformer_episodes,
}
"""FEW_SHOT.TEST.QUERY_RULE -> function of (pairs, shots, episodes, seed), and for "mmformer" query_pairs."""


def _members_of(pairs: Sequence[Pair]) -> dict[int, list[ImageId]]:
    if not pairs:
        raise ValueError("no (image, class) pairs to draw episodes from; check the dataset's list")
    members: dict[int, list[ImageId]] = {}
    for image, class_id in pairs:
        members.setdefault(class_id, []).append(image)
    for class_id, images in members.items():
        if len(set(images)) < 2:
            raise ValueError(f"class {class_id} has one image only; the published rules need two or more")
    return members


def _legacy_choice(rng: np.random.RandomState, choices: Sequence[_Item]) -> _Item:
    return choices[rng.permutation(len(choices))[0]]  # consumes what choice(list, 1, replace=False) consumes


def _with_supports(
    index: int,
    query: ImageId,
    class_id: int,
    members: Mapping[int, Sequence[ImageId]],
    shots: int,
    rng: np.random.RandomState,
    seed: int,
) -> Episode:
    supports: list[ImageId] = []
    while len(supports) < shots:
        image = _legacy_choice(rng, members[class_id])
        if image != query:
            supports.append(image)
    return Episode(index, class_id, query, tuple(supports), episode_seed(seed, index))


def _by_number(image: ImageId) -> list[tuple[int, int | str]]:
    """Read runs of digits as numbers, so that 2 is sorted before 10."""
    parts = re.split(r"(\d+)", str(image))
    return [(1, int(part)) if part.isdecimal() else (0, part) for part in parts if part]
