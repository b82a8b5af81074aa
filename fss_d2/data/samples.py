"""One image with its masks on the way to the network's size, and the seeding of what happens to it."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from detectron2.data import transforms as T

from .segments import BACKGROUND, Segment, union_mask

__all__ = ["Sample", "seeded", "transform_sample"]


@dataclass(frozen=True)
class Sample:
    """One transformed image: image (3, H, W) uint8 RGB, mask (H, W) uint8 in {0, 1, 255}.

    `valid_size`: (height, width) of the part, top left, that is not padding; None where all is image.
    `segments`: all that were loaded, each with its transformed mask (H, W), which may be empty.
    """

    image: torch.Tensor
    mask: torch.Tensor
    valid_size: tuple[int, int] | None = None
    segments: tuple[Segment, ...] = ()

    def shows(self, pixels: int) -> bool:
        """Whether the mask has so many object pixels."""
        return int((self.mask == 1).sum()) >= pixels

    def shown_classes(self, pixels: int) -> list[int]:
        """Ids of the classes whose segments have so many pixels together, rising."""
        count: Counter[int] = Counter()
        for segment in self.segments:
            count[segment.label] += np.count_nonzero(segment.mask == 1)
        return sorted(label - 1 for label, n in count.items() if label != BACKGROUND and n >= pixels)

    def of_class(self, class_id: int) -> "Sample":
        """The same image with the mask of another class, the union of its segments."""
        mask = union_mask([s.mask for s in self.segments if s.label == class_id + 1])
        return replace(self, mask=torch.from_numpy(mask))


def transform_sample(
    augmentation: T.Augmentation, image: np.ndarray, mask: np.ndarray, segments: Sequence[Segment] = ()
) -> Sample:
    """Take an image (H, W, 3) uint8, its mask (H, W) uint8 and its segments through one augmentation.

    The augmentation may look at the mask (to keep the object in a crop), not at the segments.
    """
    inputs = T.AugInput(image, sem_seg=mask)
    transform = augmentation(inputs)
    return Sample(
        torch.from_numpy(inputs.image.transpose(2, 0, 1).copy()),  # (3, H, W)
        torch.from_numpy(inputs.sem_seg.copy()),
        getattr(transform, "valid_size", None),
        tuple(Segment(s.label, transform.apply_segmentation(s.mask).copy()) for s in segments),
    )


@contextmanager
def seeded(seed: tuple[int, int]) -> Iterator[None]:
    """Seed numpy's and Python's global generators, which Detectron2's augmentations use, for a while."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    number = int(np.random.SeedSequence(seed).generate_state(1)[0])
    np.random.seed(number)
    random.seed(number)
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
