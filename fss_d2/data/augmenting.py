"""A picture and its masks at the network's size: drawn anew for each episode, or one of its few variants."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import transforms as T

from .masks import components, load_sample
from .samples import Sample, Segment, blank_image, seeded, transform_sample

__all__ = ["Augmenter", "Picture"]

# Random streams of the object at which the augmentations of a variant look, and of the forms of one picture.
_OBJECT_STREAM, _FORM_STREAM = 1, 5


@dataclass(frozen=True)
class Picture:
    """An image with its masks, as loaded."""

    record: Mapping[str, Any]
    image: np.ndarray  # (H, W, 3) uint8 RGB
    mask: np.ndarray  # (H, W) uint8, of the episode's class
    segments: Sequence[Segment] = ()


@dataclass(frozen=True)
class Augmenter:
    """Brings pictures to the network's size; what it draws depends on the seeds alone.

    With `variants` there are so many augmented forms of a picture, the same for all episodes, classes and
    trainings. The augmentations of a variant look at one object, a connected part of the mask of one of the
    picture's classes: the largest in half of the variants, in the others any. A class for which none of them
    is good has one more, which looks at its mask.
    """

    resize: T.Augmentation
    augmentation: T.Augmentation | None = None  # None = resize only
    redraws: int = 10
    variants: int = 0

    def prepare(self, picture: Picture, seed: tuple[int, ...], is_good: Callable[[Sample], bool]) -> Sample:
        """Augment until the sample is good; after the redraws resize only."""
        if self.augmentation is None:
            return self.plain(picture)
        if not self.variants:
            return self.drawn(picture, seed, is_good)
        order = np.random.default_rng(seed).permutation(self.variants)
        samples = (self.variant(picture, int(number)) for number in order)
        found = next(filter(is_good, samples), None)
        return found or self.drawn(picture, _seed(picture, self.variants), is_good)

    def plain(self, picture: Picture) -> Sample:
        """Resize only."""
        return transform_sample(self.resize, picture.image, picture.mask, picture.segments)

    def drawn(self, picture: Picture, seed: tuple[int, ...], is_good: Callable[[Sample], bool]) -> Sample:
        """Augment, looking at the mask, until the sample is good; after the redraws, resize only."""
        with seeded(seed):
            for _ in range(self.redraws + 1):
                sample = transform_sample(self.augmentation, picture.image, picture.mask, picture.segments)
                if is_good(sample):
                    return sample
        return self.plain(picture)

    def forms(self, picture: Picture, count: int, seed: tuple[int, int]) -> list[Sample]:
        """Return augmented samples, different ones (as far as there are so many variants).

        Args:
            seed: of an episode, and a number from 0 on: which of several such lists it is.
        """
        if self.augmentation is None:
            return [self.plain(picture)] * count
        if not self.variants:
            seeds = [(*seed, _FORM_STREAM, place) for place in range(count)]
            return [self.drawn(picture, each, lambda sample: sample.shows(1)) for each in seeds]
        order = np.random.default_rng(seed[0]).permutation(self.variants)
        places = range(seed[1] * count, (seed[1] + 1) * count)
        return [self.variant(picture, int(order[place % self.variants])) for place in places]

    def variant(self, picture: Picture, number: int) -> Sample:
        """Return variant `number`, below `variants`."""
        seed = _seed(picture, number)
        rng, classes = np.random.default_rng((*seed, _OBJECT_STREAM)), picture.record["classes"]
        mask = load_sample(picture.record, classes[rng.integers(len(classes))], blank_image)[1]
        objects = components(mask == 1)
        box, shape = objects[rng.integers(len(objects)) if rng.random() < 0.5 else 0]
        looked_at = np.zeros_like(mask)
        looked_at[box] = shape
        looking = replace(picture, mask=looked_at, segments=[Segment(0, picture.mask), *picture.segments])
        return self.drawn(looking, seed, lambda sample: sample.shows(1)).of_first_segment()


def _seed(picture: Picture, variant: int) -> tuple[int, int]:
    return zlib.crc32(Path(picture.record["file_name"]).name.encode()), variant
