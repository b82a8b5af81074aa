"""The test episodes of MM-Former (Jiao et al., NeurIPS 2022), as its released code draws them.

They come from Python's generator, seeded once with the fold's seed and consumed in the order of the episodes.
All numbers of shots share the shuffled queries; the classes differ, for the supports' draws lie between them.
"""

import random
from collections.abc import Sequence

from .episode import Episode, ImageId, episode_seed
from .hsnet_episodes import members_of
from .sampler import Pair

__all__ = ["mmformer_episodes"]


def mmformer_episodes(
    pairs: Sequence[Pair], shots: int, episodes: int = 1000, seed: int = 0
) -> list[Episode]:
    """Query: the images, repeated as a whole until they are enough, shuffled. Class: uniform among its own.

    Supports are drawn uniformly from the class's list, never the query, and none twice unless the class has
    no more than K images. The released code draws among all classes that a query's label shows, however
    small; here among those that `pairs` lists the image for.

    Args:
        pairs: (image id, class id) in the order of the list.
        shots: K.
        episodes: how many; 0 takes each image once.
        seed: of the generator; the published ones are in the configs.

    Raises:
        ValueError: no pairs, or a class with one image only.
    """
    members = members_of(pairs)
    classes_of: dict[ImageId, list[int]] = {}
    for image, class_id in sorted(pairs, key=lambda pair: pair[1]):
        classes_of.setdefault(image, []).append(class_id)
    images = list(dict.fromkeys(image for image, _ in pairs))
    count = episodes or len(images)
    queries = images * -(-count // len(images))
    rng = random.Random(seed)
    rng.shuffle(queries)
    drawn = []
    for index, query in enumerate(queries[:count]):
        class_id = classes_of[query][rng.randint(1, len(classes_of[query])) - 1]
        supports = _supports(members[class_id], query, shots, rng)
        drawn.append(Episode(index, class_id, query, supports, episode_seed(seed, index)))
    return drawn


def _supports(
    members: Sequence[ImageId], query: ImageId, shots: int, rng: random.Random
) -> tuple[ImageId, ...]:
    places: list[int] = []
    while len(places) < shots:
        place = rng.randint(1, len(members)) - 1
        if members[place] != query and (len(members) <= shots or place not in places):
            places.append(place)
    return tuple(members[place] for place in places)
