"""Regions of one picture whose colours are alike, as objects to learn from without any annotation."""

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
from torch import Tensor

from .augmenting import Augmenter, Picture
from .images import read_image
from .masks import annotate
from .samples import Sample, Segment

__all__ = ["appearance_regions", "region_samples"]

_TRIES = 6  # until a region covers enough of query and supports
_STREAM, _SCRIBBLE_STREAM = 4, 2  # of random numbers, apart from those of the augmentations
_CLUSTERS = (3, 6)
_CLUSTER_SIDE, _SIDE = 96, 256  # pixels of which the clusters are made, and to which they are assigned
_BLUR, _FINE_BLUR = 1.0, 1.5  # deviations of the Gaussian at those sizes
_MEDIAN = 5  # side of the filter that takes specks away
_STEPS = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 15, 1.0)  # of k-means
_LEAST, _MOST_OF_SUPPORT, _MOST_OF_QUERY = 0.02, 0.7, 0.8  # shares of the picture


def appearance_regions(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cluster the colours (CIELAB, k-means) of an image (H, W, 3) uint8 RGB.

    Returns (H, W) uint8, the region at each pixel, from 0 on; there are 3 to 6. A region may have many parts.
    """
    height, width = image.shape[:2]
    number = int(rng.integers(_CLUSTERS[0], _CLUSTERS[1] + 1))
    cv2.setRNGSeed(int(rng.integers(2**31)))
    coarse = _colors(image, _CLUSTER_SIDE, _BLUR)
    centers = cv2.kmeans(coarse, number, None, _STEPS, 1, cv2.KMEANS_PP_CENTERS)[2]  # (number, 3)
    nearness = _colors(image, _SIDE, _FINE_BLUR) @ centers.T - (centers**2).sum(axis=1) / 2
    regions = nearness.argmax(axis=1).astype(np.uint8).reshape(_SIDE, _SIDE)
    return cv2.resize(cv2.medianBlur(regions, _MEDIAN), (width, height), interpolation=cv2.INTER_NEAREST)


def region_samples(
    picture: Picture, shots: int, augmenter: Augmenter, seed: int, annotation: str = "mask"
) -> list[Sample]:
    """Return a query and its supports, forms of one picture, with one of its regions as the object.

    The region covers 2 to 80 % of the query and 2 to 70 % of each support; if several draws of it and of the
    forms give none that does, all are the resized picture with its largest region.

    Args:
        picture: its file is read for its colours; its mask is of the class at which augmentations may look.
        seed: of all that is drawn.
        annotation: what the supports show of the region, see `annotate`.

    Returns:
        1 + shots samples; the query's segments are those of the picture.
    """
    rng = np.random.default_rng((seed, _STREAM))
    regions = appearance_regions(read_image(picture.record["file_name"])[0], rng)
    for attempt in range(_TRIES):
        region = regions == rng.integers(regions.max() + 1)
        forms = augmenter.forms(_with_region(picture, region, annotation, seed), 1 + shots, (seed, attempt))
        if _covers_enough([form.of_first_segment().mask for form in forms]):
            break
    else:
        largest = regions == np.bincount(regions.ravel()).argmax()
        forms = [augmenter.plain(_with_region(picture, largest, annotation, seed))] * (1 + shots)
    query, supports = forms[0].of_first_segment(), (form.of_first_segment() for form in forms[1:])
    return [
        replace(query, segments=query.segments[1:]),
        *(replace(support.of_first_segment(), segments=()) for support in supports),
    ]


def _with_region(picture: Picture, region: np.ndarray, annotation: str, seed: int) -> Picture:
    """The picture with the region and what a support shows of it as its first two segments."""
    mask = region.astype(np.uint8)
    shown = annotate(mask, annotation, (seed, _SCRIBBLE_STREAM))
    return replace(picture, segments=[Segment(0, mask), Segment(0, shown), *picture.segments])


def _covers_enough(masks: Sequence[Tensor]) -> bool:
    """Whether a region's masks (H, W) of query and supports are neither tiny nor nearly all of it."""
    query, *supports = [float((mask == 1).float().mean()) for mask in masks]
    return min(query, *supports) >= _LEAST and query <= _MOST_OF_QUERY and max(supports) <= _MOST_OF_SUPPORT


def _colors(image: np.ndarray, side: int, blur: float) -> np.ndarray:
    """The colours (side * side, 3) float32 of an image at that size."""
    small = cv2.GaussianBlur(cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA), (0, 0), blur)
    return cv2.cvtColor(small, cv2.COLOR_RGB2LAB).reshape(-1, 3).astype(np.float32)
