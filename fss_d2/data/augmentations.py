"""Augmentations that image and mask go through together.

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
    """Resize to a fixed (height, width) whatever the aspect ratio."""

    def __init__(self, size: Sequence[int]) -> None:
        super().__init__()
        self.size = tuple(size)

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """The resize, whatever the image (H, W, 3)."""
        return SquashTransform(*self.size)


class Letterbox(T.Augmentation):
    """Fit the image into (height, width), aspect ratio kept, sides multiples of 8 (PFENet's Resize).

    The longer side is scaled to fit and the other by the same ratio, truncated; then both are rounded down to
    a multiple of 8 (at least 8). Smaller images are enlarged. The rest is black, and 255 in the mask.
    """

    def __init__(self, size: Sequence[int]) -> None:
        super().__init__()
        self.size = tuple(size)

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """The resize and padding of an image (H, W, 3), by its sides."""
        (h, w), (height, width) = image.shape[:2], self.size
        fitted = (height, w * height // h) if h * width >= w * height else (h * width // w, width)
        valid = (max(fitted[0] // 8 * 8, 8), max(fitted[1] // 8 * 8, 8))
        return LetterboxTransform(valid, height, width)


class ShortestEdge(T.ResizeShortestEdge):
    """Detectron2's ResizeShortestEdge, with the mask resized by torch "nearest" as in the few-shot codes."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """The resize of an image (H, W, 3) to a shortest side, in training drawn anew for each image."""
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
        """A scaling by a factor drawn anew."""
        return ScaleTransform(float(self._rand_range(*self.factors)))


class RandomRotate(T.Augmentation):
    """Turn by an angle uniform in [-degrees, degrees] on the same canvas."""

    def __init__(self, degrees: float, fill: Sequence[float]) -> None:
        super().__init__()
        self.degrees, self.fill = degrees, tuple(fill)

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """A turn by an angle drawn anew."""
        return RotateTransform(float(self._rand_range(-self.degrees, self.degrees)), self.fill)


class RandomKeepCrop(T.Augmentation):
    """Random window that keeps most of the target (PFENet's Crop).

    A side smaller than the window is padded first, half of the lack (rounded down) before it. The window is
    redrawn while it keeps less than `keep` of the target pixels, at most 31 times; the last draw stays.
    """

    def __init__(self, size: Sequence[int], keep: float, fill: Sequence[float]) -> None:
        super().__init__()
        self.size, self.keep, self.fill = tuple(size), keep, tuple(fill)

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray) -> T.Transform:
        """A window drawn anew, by the object (1) in the mask (H, W) in {0, 1, 255}."""
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
    """Cut a window with all of the object in it; its sides are the object's times a factor in `context`."""

    def __init__(self, context: tuple[float, float]) -> None:
        super().__init__()
        self.context = context

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray) -> T.Transform:
        """A window drawn anew, by the object (1) in the mask (H, W) in {0, 1, 255}."""
        left, top, right, bottom = random_object_window(sem_seg, self._rand_range(*self.context))
        return T.CropTransform(left, top, right - left, bottom - top)


class RandomResizedCrop(T.Augmentation):
    """Cut a window of random area and aspect ratio and resize it to (height, width).

    The area is uniform in `area` (fractions of the image's), the aspect ratio log-uniform in [3/4, 4/3];
    after ten windows that do not fit, the whole image is taken.
    """

    def __init__(self, size: Sequence[int], area: tuple[float, float]) -> None:
        super().__init__()
        self.size, self.area = tuple(size), area

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """A window drawn anew within the image (H, W, 3), and the resize after it."""
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
    """Brightness, contrast and saturation, each by a factor uniform in [1 - strength, 1 + strength]."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """A change of colours by three factors drawn anew."""
        return ColorTransform(*self._rand_range(1 - self.strength, 1 + self.strength, size=3).tolist())


class PadTo(T.Augmentation):
    """Pad right and below to (height, width), or cut what is beyond it."""

    def __init__(self, size: Sequence[int], fill: Sequence[float]) -> None:
        super().__init__()
        self.size, self.fill = tuple(size), tuple(fill)

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """The padding or cut, whatever the image (H, W, 3)."""
        return PadCrop(0, 0, *self.size, self.fill)
