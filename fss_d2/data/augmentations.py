"""Augmentations of an image together with its mask.

Random numbers come from numpy's global generator, as in Detectron2; the mapper seeds it for each image.
"""

import math
from collections.abc import Sequence

import numpy as np
from detectron2.data import transforms as T

from .transforms import (
    ColorTransform,
    LetterboxTransform,
    PadCrop,
    RotateTransform,
    ScaleTransform,
    SquashTransform,
)
from .views import random_object_window

__all__ = [
    "Letterbox",
    "PadTo",
    "RandomColor",
    "RandomKeepCrop",
    "RandomObjectCrop",
    "RandomResizedCrop",
    "RandomRotate",
    "RandomScale",
    "ShortestEdge",
    "Squash",
]

_CROP_REDRAWS = 31  # PFENet: redraws of a crop that loses too much of the target
_ASPECT = (3 / 4, 4 / 3)  # of a random resized crop, width over height


class Squash(T.Augmentation):
    """Resize to a fixed (height, width) without keeping the aspect ratio."""

    def __init__(self, size: Sequence[int]) -> None:
        super().__init__()
        self.size = tuple(size)

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Return the resize, the same for every image (H, W, 3)."""
        return SquashTransform(*self.size)


class Letterbox(T.Augmentation):
    """Fit the image into (height, width), with its aspect ratio and sides that are multiples of 8 (PFENet).

    The longer side is scaled to fit and the other by the same ratio, truncated; then both are rounded down to
    a multiple of 8 (at least 8). Smaller images are enlarged. The rest is black, and 255 in the mask.
    """

    def __init__(self, size: Sequence[int]) -> None:
        super().__init__()
        self.size = tuple(size)

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Return the resize and padding for the sides of an image (H, W, 3)."""
        (h, w), (height, width) = image.shape[:2], self.size
        fitted = (height, w * height // h) if h * width >= w * height else (h * width // w, width)
        valid = (max(fitted[0] // 8 * 8, 8), max(fitted[1] // 8 * 8, 8))
        return LetterboxTransform(valid, height, width)


class ShortestEdge(T.ResizeShortestEdge):
    """Detectron2's ResizeShortestEdge, with the mask resized by torch "nearest" as in the few-shot codes."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Return the resize of an image (H, W, 3) to the shortest side, random if several are given."""
        resize = super().get_transform(image)
        return (
            SquashTransform(max(resize.new_h, 1), max(resize.new_w, 1))
            if isinstance(resize, T.ResizeTransform)
            else resize
        )


class RandomScale(T.Augmentation):
    """Scale both sides by one factor, uniform in `factors`."""

    def __init__(self, factors: tuple[float, float]) -> None:
        super().__init__()
        self.factors = factors

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Return a scaling by a random factor."""
        return ScaleTransform(float(self._rand_range(*self.factors)))


class RandomRotate(T.Augmentation):
    """Rotate by an angle uniform in [-degrees, degrees] on the same canvas."""

    def __init__(self, degrees: float, fill: Sequence[float]) -> None:
        super().__init__()
        self.degrees, self.fill = degrees, tuple(fill)

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Return a rotation by a random angle."""
        return RotateTransform(float(self._rand_range(-self.degrees, self.degrees)), self.fill)


class RandomKeepCrop(T.Augmentation):
    """Crop to a random window that keeps most of the target (PFENet's Crop).

    A side smaller than the window is padded first, half of the missing pixels (rounded down) before it. The
    window is redrawn while it keeps less than `keep` of the target pixels, at most 31 times; the last one
    stays.
    """

    def __init__(self, size: Sequence[int], keep: float, fill: Sequence[float]) -> None:
        super().__init__()
        self.size, self.keep, self.fill = tuple(size), keep, tuple(fill)

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray) -> T.Transform:
        """Return a random window for the object (1) in the mask (H, W) in {0, 1, 255}."""
        target = sem_seg == 1
        enough = self.keep * np.count_nonzero(target)
        for _ in range(_CROP_REDRAWS + 1):
            top, left = (self._offset(*sides) for sides in zip(sem_seg.shape, self.size, strict=True))
            window = target[max(top, 0) : top + self.size[0], max(left, 0) : left + self.size[1]]
            if np.count_nonzero(window) >= enough:
                break
        return PadCrop(top, left, *self.size, self.fill)

    @staticmethod
    def _offset(side: int, window: int) -> int:
        return -((window - side) // 2) if side <= window else np.random.randint(side - window + 1)


class RandomObjectCrop(T.Augmentation):
    """Crop to a window that contains the whole object; its sides are those of the object times `context`."""

    def __init__(self, context: tuple[float, float]) -> None:
        super().__init__()
        self.context = context

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray) -> T.Transform:
        """Return a random window for the object (1) in the mask (H, W) in {0, 1, 255}."""
        left, top, right, bottom = random_object_window(sem_seg, self._rand_range(*self.context))
        return T.CropTransform(left, top, right - left, bottom - top)


class RandomResizedCrop(T.Augmentation):
    """Crop to a window of random area and aspect ratio and resize it to (height, width).

    The area is uniform in `area` (fractions of the image's), the aspect ratio log-uniform in [3/4, 4/3];
    after ten windows that do not fit, the whole image is taken.
    """

    def __init__(self, size: Sequence[int], area: tuple[float, float]) -> None:
        super().__init__()
        self.size, self.area = tuple(size), area

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Return a random window within the image (H, W, 3), and the resize after it."""
        height, width = image.shape[:2]
        squash = SquashTransform(*self.size)
        for _ in range(10):
            area = height * width * self._rand_range(*self.area)
            aspect = math.exp(self._rand_range(math.log(_ASPECT[0]), math.log(_ASPECT[1])))
            h, w = max(round(math.sqrt(area / aspect)), 1), max(round(math.sqrt(area * aspect)), 1)
            if h <= height and w <= width:
                top, left = np.random.randint(height - h + 1), np.random.randint(width - w + 1)
                return T.TransformList([T.CropTransform(left, top, w, h), squash])
        return squash


class RandomColor(T.Augmentation):
    """Change brightness, contrast and saturation by factors uniform in [1 - strength, 1 + strength]."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Return a change of colours by three random factors."""
        return ColorTransform(*self._rand_range(1 - self.strength, 1 + self.strength, size=3).tolist())


class PadTo(T.Augmentation):
    """Pad right and below to (height, width), or cut off the part outside it."""

    def __init__(self, size: Sequence[int], fill: Sequence[float]) -> None:
        super().__init__()
        self.size, self.fill = tuple(size), tuple(fill)

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Return the padding or cut, the same for every image (H, W, 3)."""
        return PadCrop(0, 0, *self.size, self.fill)
