"""Training episodes that force the supports to be used: negative ones, competition, pasted objects."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data.catalog import Metadata

from .episode import Episode, ImageId
from .joined import annotated_classes
from .sampler import EpisodeSampler, Pair

__all__ = ["EpisodeKinds", "MixedEpisodeSampler", "pictures_without"]

_KIND_STREAM = 5  # first word of the entropy, see `sampler`
_COPIES_ALONE = 0.5  # of the episodes with copies: their query does not show the class otherwise
_MOST_OTHERS = 2  # objects of other classes pasted into one query


@dataclass(frozen=True)
class EpisodeKinds:
    """Shares of the kinds of training episodes; the keys FEW_SHOT.TRAIN of the same names explain them."""

    negatives: float = 0.0
    negatives_start: int = 0  # iteration
    competition: float = 0.0
    paste_others: float = 0.0
    paste_copies: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is float and not 0 <= value <= 1:
                raise ValueError(f"FEW_SHOT.TRAIN.{field.name.upper()} {value} is no share: give 0 to 1")
        if self.negatives_start < 0:
            raise ValueError(f"FEW_SHOT.TRAIN.NEGATIVES_START {self.negatives_start} must not be negative")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "EpisodeKinds":
        """Read the keys."""
        return cls(**{field.name: cfg.FEW_SHOT.TRAIN[field.name.upper()] for field in fields(cls)})

    @property
    def any(self) -> bool:
        """Whether some episodes are not plain."""
        return any((self.negatives, self.competition, self.paste_others, self.paste_copies))


def pictures_without(records: Sequence[Mapping[str, Any]], metadata: Metadata) -> dict[int, list[ImageId]]:
    """Return for each class of a split the pictures that are annotated for it and do not show it.

    A crowd region of the class shows it.
    """
    found: dict[int, list[ImageId]] = {class_id: [] for class_id in metadata.class_ids}
    for record in records:
        shown = {*record["classes"], *record.get("query_classes", ())}
        shown.update(a["category_id"] for a in record.get("annotations", ()))
        for class_id in annotated_classes(metadata, record) - shown:
            found[class_id].append(record["image_id"])
    return found


class MixedEpisodeSampler(EpisodeSampler):
    """The episodes of `EpisodeSampler`, some of them changed; episode i still depends on (seed, i) alone.

    The class, the supports and the seed of an episode stay. What changes is the query, and the objects that
    are pasted into it.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        *,
        kinds: EpisodeKinds,
        without: Mapping[int, Sequence[ImageId]],
        **options: Any,
    ) -> None:
        """
        Args:
            without: pictures that do not show a class, see `pictures_without`.
            options: of `EpisodeSampler`.

        ValueError if a kind needs pictures of which there are none.
        """
        super().__init__(pairs, **options)
        self.kinds = kinds
        self.classes_of: dict[ImageId, list[int]] = {}
        for image, class_id in self.pairs:
            self.classes_of.setdefault(image, []).append(class_id)
        self.without = {
            class_id: [image for image in without.get(class_id, ()) if image in self.classes_of]
            for class_id in self.class_ids
        }
        self.competing = {
            class_id: [image for image in images if len(self.classes_of[image]) > 1]
            for class_id, images in self.images_of.items()
        }
        self._check("NEGATIVES", kinds.negatives, self.without, "is known not to show a class")
        self._check("PASTE_OTHERS", kinds.paste_others, self.without, "is known not to show a class")
        self._check("COMPETITION", kinds.competition, self.competing, "shows two classes")

    @staticmethod
    def _check(key: str, share: float, pictures: Mapping[int, Collection[ImageId]], what: str) -> None:
        if share and not any(pictures.values()):
            raise ValueError(
                f"FEW_SHOT.TRAIN.{key} {share}: no picture of the training set {what}; set it to 0, or add "
                "pictures whose annotations name all classes (class maps, COCO JSON)"
            )

    def sample(self, index: int) -> Episode:
        """Return episode `index`, any number from 0 on."""
        episode = super().sample(index)
        rng = self._rng(_KIND_STREAM, index)
        negative, competition, others, copies, alone = rng.random(5)
        without = self.without[episode.class_id]
        started = index >= self.kinds.negatives_start * self.batch_size
        if without and started and negative < self.kinds.negatives:
            episode = replace(episode, query=_one_of(without, rng), absent=True)
        elif copies < self.kinds.paste_copies:
            episode = self._with_copies(episode, without if alone < _COPIES_ALONE else (), rng)
        elif competition < self.kinds.competition:
            rivals = [i for i in self.competing[episode.class_id] if i not in episode.supports]
            episode = replace(episode, query=_one_of(rivals, rng)) if rivals else episode
        if without and others < self.kinds.paste_others:
            donors = [_one_of(without, rng) for _ in range(rng.integers(1, _MOST_OTHERS + 1))]
            pasted = [(image, _one_of(self.classes_of[image], rng)) for image in donors]
            episode = replace(episode, pasted=(*pasted, *episode.pasted))
        return episode

    def _with_copies(self, episode: Episode, without: Sequence[ImageId], rng: np.random.Generator) -> Episode:
        members = [i for i in self.images_of[episode.class_id] if i not in episode.supports]
        if not members:
            return episode
        pasted = ((_one_of(members, rng), episode.class_id),)
        if without:
            return replace(episode, query=_one_of(without, rng), absent=True, pasted=pasted)
        return replace(episode, pasted=pasted)


def _one_of(choices: Sequence[Any], rng: np.random.Generator) -> Any:
    return choices[rng.integers(len(choices))]
