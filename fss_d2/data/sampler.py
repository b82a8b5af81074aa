"""Which images make up episode i: a pure function of (seed, i). Each process gets its share."""

import itertools
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.utils import comm
from torch.utils.data import Sampler

from .episode import Episode, ImageId, episode_seed

__all__ = [
    "QUERY_RULES",
    "EpisodeSampler",
    "InferenceEpisodeSampler",
    "Pair",
    "TrainingEpisodeSampler",
    "pairs_of",
]

logger = logging.getLogger(__name__)

Pair = tuple[ImageId, int]  # (image id, class id): the image can be query or support of the class

QUERY_RULES = ("class", "pair", "image", "pfenet", "root", "crop")

# First word of the entropy of each random stream, so that no two streams share their numbers (1: seeds of
# episodes, 5 and 6: their kinds).
_DRAW_STREAM, _SHOTS_STREAM, _ORDER_STREAM, _CLASS_STREAM = 2, 3, 4, 7


def pairs_of(
    records: Iterable[Mapping[str, Any]], class_ids: Iterable[int], *, of_queries: bool = False
) -> list[Pair]:
    """Return all (image id, class id) pairs of the given classes, in the order of the dataset dicts.

    With `of_queries` the classes are those of the key "query_classes", where a record has it: all that the
    image shows, however small.
    """
    wanted = set(class_ids)
    key = "query_classes" if of_queries else "classes"
    return [(r["image_id"], c) for r in records for c in r.get(key, r["classes"]) if c in wanted]


class EpisodeSampler:
    """An endless sequence of episodes; episode i depends only on the pairs, the options and (seed, i)."""

    def __init__(
        self,
        pairs: Sequence[Pair],
        *,
        shots: int | Sequence[int] = 1,
        rule: str = "class",
        seed: int = 0,
        repeat_supports: bool = False,
        batch_size: int = 1,
        class_names: Sequence[str] | None = None,
        query_pairs: Sequence[Pair] = (),
    ) -> None:
        """
        Args:
            pairs: (image id, class id) pairs; their order is the list order of rules other than "class" and
                "root".
            shots: K, or several K of which one is drawn uniformly for each block of `batch_size` episodes;
                0 alone gives episodes of a query without supports.
            rule: how the query is drawn, see FEW_SHOT.TRAIN.QUERY_RULE. Every epoch has a new order.
            seed: not negative.
            repeat_supports: draw supports with replacement. The query is never its own support.
            batch_size: episodes of one training step over all processes.
            query_pairs: further pairs whose image can be query, but not support, of the class; pairs with an
                image or a class that `pairs` lacks are ignored. Only rule "pfenet" uses them.

        Classes with too few images are left out with a warning; ValueError if none is left.
        """
        if rule not in QUERY_RULES:
            raise ValueError(f"unknown query rule {rule!r}; choose one of {', '.join(QUERY_RULES)}")
        self.shots = (shots,) if isinstance(shots, int) else tuple(shots)
        if self.shots != (0,) and not (self.shots and all(isinstance(k, int) and k > 0 for k in self.shots)):
            raise ValueError(
                f"shots must be positive numbers, or 0 alone, got {shots!r}; "
                "check FEW_SHOT.TRAIN.SHOTS or TEST.SHOTS"
            )
        if seed < 0:
            raise ValueError(f"the seed of episodes must not be negative, got {seed}")
        self.rule, self.seed, self.batch_size = rule, seed, batch_size
        self.repeat_supports = repeat_supports
        most = max(self.shots)
        needed = min(most, 1) + 1 if repeat_supports else most + 1
        self.pairs = _drop_small_classes(list(dict.fromkeys(pairs)), needed, class_names)
        self.images_of: dict[int, list[ImageId]] = {}
        self._position: dict[Pair, int] = {}  # of an image in the list of its class
        classes_of: dict[ImageId, list[int]] = {}
        for image, class_id in self.pairs:
            members = self.images_of.setdefault(class_id, [])
            self._position[image, class_id] = len(members)
            members.append(image)
            classes_of.setdefault(image, []).append(class_id)
        for image, class_id in dict.fromkeys(query_pairs if rule == "pfenet" else ()):
            if image in classes_of and class_id in self.images_of and class_id not in classes_of[image]:
                classes_of[image].append(class_id)
        self.class_ids = sorted(self.images_of)
        self._image_classes = list(classes_of.items())
        self._cached_order: tuple[int, np.ndarray] = (-1, np.empty(0, int))

    @property
    def epoch_length(self) -> int:
        """Episodes of an epoch: with rule "pair" the number of pairs, otherwise the number of images."""
        return len(self.pairs) if self.rule == "pair" else len(self._image_classes)

    def sample(self, index: int) -> Episode:
        """Return episode `index`, any number from 0 on."""
        rng = self._rng(_DRAW_STREAM, index)
        if self.rule in ("class", "root"):
            class_id = self.class_ids[self._place_of_class(rng)]
            members = self.images_of[class_id]
            return self._with_supports(index, members[rng.integers(len(members))], class_id, rng)
        epoch, place = divmod(index, self.epoch_length)
        entry = self._order(epoch)[place]
        if self.rule == "pair":
            return self._with_supports(index, *self.pairs[entry], rng)
        image, classes = self._image_classes[entry]
        return self._with_supports(index, image, classes[rng.integers(len(classes))], rng)

    def _place_of_class(self, rng: np.random.Generator) -> int:
        if self.rule == "class":
            return int(rng.integers(len(self.class_ids)))
        roots = np.sqrt([len(self.images_of[class_id]) for class_id in self.class_ids])
        return int(rng.choice(len(roots), p=roots / roots.sum()))

    def sample_every_pair(self) -> list[Episode]:
        """Return one episode for each (image, class) pair as query, in list order."""
        return [
            self._with_supports(i, image, class_id, self._rng(_DRAW_STREAM, i))
            for i, (image, class_id) in enumerate(self.pairs)
        ]

    def of_class(self, episode: Episode, class_id: int) -> Episode:
        """Return the episode with another class of `class_ids`, and supports of it."""
        rng = self._rng(_CLASS_STREAM, episode.index)
        return self._with_supports(episode.index, episode.query, class_id, rng)

    def _with_supports(self, index: int, query: ImageId, class_id: int, rng: np.random.Generator) -> Episode:
        members = self.images_of[class_id]
        shots = self._shots_at(index)
        place = self._position.get((query, class_id), len(members))
        others = len(members) - (place < len(members))
        chosen = rng.choice(others, shots, replace=self.repeat_supports)
        chosen = chosen + (chosen >= place)  # skips the query
        supports = tuple(members[i] for i in chosen)
        return Episode(index, class_id, query, supports, episode_seed(self.seed, index))

    def _shots_at(self, index: int) -> int:
        if len(self.shots) == 1:
            return self.shots[0]
        return self.shots[self._rng(_SHOTS_STREAM, index // self.batch_size).integers(len(self.shots))]

    def _order(self, epoch: int) -> np.ndarray:
        if self._cached_order[0] != epoch:
            self._cached_order = (epoch, self._rng(_ORDER_STREAM, epoch).permutation(self.epoch_length))
        return self._cached_order[1]

    def _rng(self, stream: int, number: int) -> np.random.Generator:
        return np.random.default_rng([stream, self.seed, number])


def _drop_small_classes(pairs: list[Pair], needed: int, class_names: Sequence[str] | None) -> list[Pair]:
    counts = Counter(class_id for _, class_id in pairs)
    small = {class_id for class_id, count in counts.items() if count < needed}
    if len(small) == len(counts):
        fault = f"no class has the {needed} images that an episode needs; lower the shots or add images"
        raise ValueError(fault)
    if small:
        names = ", ".join(str(class_names[c]) if class_names else str(c) for c in sorted(small))
        logger.warning("Classes left out, fewer than %d images each: %s", needed, names)
    return [pair for pair in pairs if pair[1] not in small]


class TrainingEpisodeSampler(Sampler[Episode]):
    """Endless episodes of one process: rank r of W yields start + r, start + r + W, ...

    `start` counts over all processes (iterations done times total batch); rank and number of processes are by
    default those of `detectron2.utils.comm`.
    """

    def __init__(
        self, episodes: EpisodeSampler, start: int = 0, rank: int | None = None, world_size: int | None = None
    ) -> None:
        self.episodes = episodes
        self.start = start + (comm.get_rank() if rank is None else rank)
        self.world_size = comm.get_world_size() if world_size is None else world_size

    def __iter__(self) -> Iterator[Episode]:
        return map(self.episodes.sample, itertools.count(self.start, self.world_size))


class InferenceEpisodeSampler(Sampler[Episode]):
    """The share of one process in all episodes of an evaluation: rank r of W yields numbers r, r + W, ..."""

    def __init__(
        self, episodes: Sequence[Episode], *, rank: int | None = None, world_size: int | None = None
    ) -> None:
        rank = comm.get_rank() if rank is None else rank
        world_size = comm.get_world_size() if world_size is None else world_size
        self.all_episodes = tuple(episodes)
        self.episodes = self.all_episodes[rank::world_size]

    def __iter__(self) -> Iterator[Episode]:
        return iter(self.episodes)

    def __len__(self) -> int:
        return len(self.episodes)
