"""Pictures, or regions of them, that do not show an object: read, encoded, and given to the supports."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from fss_d2.data.masks import IGNORE
from fss_d2.data.samples import Sample
from fss_d2.modeling import FewShotSegmentor
from fss_d2.modeling.meta_arch.contract import NegativeSet, resize_support

from .annotations import Annotation, Picture, read_picture, read_support
from .support_file import ClassSupport

__all__ = ["Negative", "Negatives", "add_negatives", "negatives_of", "read_negatives", "without_negative"]

Negatives = Mapping[str, Sequence[tuple[Picture, Annotation | None]]]
Negative = tuple[np.ndarray, np.ndarray]  # (H, W, 3) uint8, and (H, W) uint8: 0 in the region, 255 elsewhere


def read_negatives(
    pairs: Sequence[tuple[Picture, Annotation | None]], class_name: str = ""
) -> tuple[Negative, ...]:
    """Read pictures that do not show an object, each with the region that is meant, None for all of it.

    ``class_name`` is for error messages; errors are those of `read_support`.
    """
    read = []
    for number, (picture, region) in enumerate(pairs, start=1):
        name = f"{class_name}, negative {number}".removeprefix(", ")
        if region is None:
            pixels, _ = read_picture(picture, f"image of {name}")
            read.append((pixels, np.zeros(pixels.shape[:2], np.uint8)))
        else:
            pixels, mask = read_support(picture, region, name)
            read.append((pixels, np.where(mask == 1, 0, IGNORE).astype(np.uint8)))
    return tuple(read)


@torch.no_grad()
def add_negatives(
    model: FewShotSegmentor,
    at_each_size: Callable[[np.ndarray, np.ndarray], Sequence[Sample]],
    support: ClassSupport,
    negatives: Sequence[Negative],
) -> ClassSupport:
    """Add negatives to those of a class, each at the sizes of its supports; ValueError for a lost region."""
    if not negatives:
        return support
    sets = []
    by_size = zip(*(at_each_size(*negative) for negative in negatives), strict=True)
    for one, samples in zip(support.sets, by_size, strict=True):
        parts = [] if one.negatives is None else [one.negatives]
        for sample in samples:
            image, region = resize_support(sample.image, sample.mask, one.size)
            if not (region == 0).any():
                fault = "the region of a negative is lost when its image is resized"
                raise ValueError(f"{fault} to {one.size[1]}x{one.size[0]}: mark a larger one")
            parts.append(model.encode_negatives(image[None, None], region[None, None]))
        sets.append(model.with_negatives(one, NegativeSet.concatenate(parts)))
    return replace(support, sets=tuple(sets))


def without_negative(model: FewShotSegmentor, support: ClassSupport, index: int) -> ClassSupport:
    """Take one negative from a class, counted from 0; IndexError if there is none."""
    count = support.negatives
    if not 0 <= index < count:
        raise IndexError(f"there are {count} negatives, none with index {index}")
    kept = [i for i in range(count) if i != index]
    sets = [model.with_negatives(s, s.negatives.select(kept) if kept else None) for s in support.sets]
    return replace(support, sets=tuple(sets))


def negatives_of(model: FewShotSegmentor, other: ClassSupport, support: ClassSupport) -> ClassSupport:
    """Supports with the negatives of other supports of the same sizes in place of their own."""
    pairs = zip(support.sets, other.sets, strict=True)
    return replace(support, sets=tuple(model.with_negatives(s, o.negatives) for s, o in pairs))
