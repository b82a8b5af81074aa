"""Augmentations that image and mask go through together, and the builders that configs name.

Random numbers come from numpy's global generator, as in Detectron2; the mapper seeds it for each image.
"""

import math
from collections.abc import Sequence

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from fvcore.common.registry import Registry

from .warps import (
    BlurTransform,
    ColorTransform,
    LetterboxTransform,
    PadCrop,
    RotateTransform,
    ScaleTransform,
    SquashTransform,
)

__all__ = [
    "AUGMENTATION_REGISTRY",
    "Letterbox",
    "PadTo",
    "RandomColor",
    "RandomKeepCrop",
    "RandomResizedCrop",
    "RandomRotate",
    "RandomScale",
    "ShortestEdge",
    "Squash",
    "build_augmentations",
    "build_resize",
]

AUGMENTATION_REGISTRY = Registry("AUGMENTATION")
AUGMENTATION_REGISTRY.__doc__ = "Builders `name(cfg) -> Augmentation` for cfg.INPUT.TRAIN_AUGMENTATIONS."

RESIZES = ("squash", "letterbox", "shortest_edge")
# After one of the first the image has the network's size; one of the second undoes that.
_FIX_SIZE = {"crop", "random_resized_crop", "pad", *RESIZES}
_CHANGE_SIZE = {"scale", "random_shortest_edge", "random_crop"}
_CROP_REDRAWS = 31  # PFENet: redraws of a crop that loses too much of the target
_ASPECT = (3 / 4, 4 / 3)  # of a random resized crop, width over height


class Squash(T.Augmentation):
    """Resize to a fixed (height, width) whatever the aspect ratio."""

    def __init__(self, size: Sequence[int]) -> None:
        super().__init__()
        self.size = tuple(size)

    def get_transform(self, image: np.ndarray) -> T.Transform:
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
        (h, w), (height, width) = image.shape[:2], self.size
        fitted = (height, w * height // h) if h * width >= w * height else (h * width // w, width)
        valid = (max(fitted[0] // 8 * 8, 8), max(fitted[1] // 8 * 8, 8))
        return LetterboxTransform(valid, height, width)


class ShortestEdge(T.ResizeShortestEdge):
    """Detectron2's ResizeShortestEdge, with the mask resized by torch "nearest" as in the few-shot codes."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        resize = super().get_transform(image)
        return (
            SquashTransform(resize.new_h, resize.new_w) if isinstance(resize, T.ResizeTransform) else resize
        )


class RandomScale(T.Augmentation):
    """Scale both sides by one factor, uniform in `factors`."""

    def __init__(self, factors: tuple[float, float]) -> None:
        super().__init__()
        self.factors = factors

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return ScaleTransform(float(self._rand_range(*self.factors)))


class RandomRotate(T.Augmentation):
    """Turn by an angle uniform in [-degrees, degrees] on the same canvas."""

    def __init__(self, degrees: float, fill: Sequence[float]) -> None:
        super().__init__()
        self.degrees, self.fill = degrees, tuple(fill)

    def get_transform(self, image: np.ndarray) -> T.Transform:
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


class RandomResizedCrop(T.Augmentation):
    """Cut a window of random area and aspect ratio and resize it to (height, width).

    The area is uniform in `area` (fractions of the image's), the aspect ratio log-uniform in [3/4, 4/3];
    after ten windows that do not fit, the whole image is taken.
    """

    def __init__(self, size: Sequence[int], area: tuple[float, float]) -> None:
        super().__init__()
        self.size, self.area = tuple(size), area

    def get_transform(self, image: np.ndarray) -> T.Transform:
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
        return ColorTransform(*self._rand_range(1 - self.strength, 1 + self.strength, size=3).tolist())


class PadTo(T.Augmentation):
    """Pad right and below to (height, width), or cut what is beyond it."""

    def __init__(self, size: Sequence[int], fill: Sequence[float]) -> None:
        super().__init__()
        self.size, self.fill = tuple(size), tuple(fill)

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return PadCrop(0, 0, *self.size, self.fill)


@AUGMENTATION_REGISTRY.register()
def squash(cfg: CfgNode) -> T.Augmentation:
    return Squash(cfg.INPUT.FEW_SHOT_SIZE)


@AUGMENTATION_REGISTRY.register()
def letterbox(cfg: CfgNode) -> T.Augmentation:
    return Letterbox(cfg.INPUT.FEW_SHOT_SIZE)


@AUGMENTATION_REGISTRY.register()
def shortest_edge(cfg: CfgNode) -> T.Augmentation:
    return ShortestEdge(min(cfg.INPUT.FEW_SHOT_SIZE), cfg.INPUT.MAX_SIZE_TEST)


@AUGMENTATION_REGISTRY.register()
def random_shortest_edge(cfg: CfgNode) -> T.Augmentation:
    return ShortestEdge(cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING)


@AUGMENTATION_REGISTRY.register()
def scale(cfg: CfgNode) -> T.Augmentation:
    return RandomScale(cfg.INPUT.AUG.SCALE_RANGE)


@AUGMENTATION_REGISTRY.register()
def rotate(cfg: CfgNode) -> T.Augmentation:
    turn = RandomRotate(cfg.INPUT.AUG.ROTATE_DEGREES, cfg.MODEL.PIXEL_MEAN)
    return T.RandomApply(turn, cfg.INPUT.AUG.ROTATE_PROB)


@AUGMENTATION_REGISTRY.register()
def blur(cfg: CfgNode) -> T.Augmentation:
    return T.RandomApply(BlurTransform(), cfg.INPUT.AUG.BLUR_PROB)


@AUGMENTATION_REGISTRY.register()
def flip(cfg: CfgNode) -> T.Augmentation:
    return T.RandomFlip(cfg.INPUT.AUG.FLIP_PROB)


@AUGMENTATION_REGISTRY.register()
def crop(cfg: CfgNode) -> T.Augmentation:
    return RandomKeepCrop(cfg.INPUT.FEW_SHOT_SIZE, cfg.INPUT.AUG.CROP_KEEP, cfg.MODEL.PIXEL_MEAN)


@AUGMENTATION_REGISTRY.register()
def random_crop(cfg: CfgNode) -> T.Augmentation:
    """Plain random window; smaller images are kept whole (MM-Former, before `pad`)."""
    return T.RandomCrop("absolute", cfg.INPUT.FEW_SHOT_SIZE)


@AUGMENTATION_REGISTRY.register()
def pad(cfg: CfgNode) -> T.Augmentation:
    """Pad right and below with grey 128 (MM-Former)."""
    return PadTo(cfg.INPUT.FEW_SHOT_SIZE, (128, 128, 128))


@AUGMENTATION_REGISTRY.register()
def random_resized_crop(cfg: CfgNode) -> T.Augmentation:
    return RandomResizedCrop(cfg.INPUT.FEW_SHOT_SIZE, cfg.INPUT.AUG.CROP_AREA)


@AUGMENTATION_REGISTRY.register()
def color(cfg: CfgNode) -> T.Augmentation:
    return RandomColor(cfg.INPUT.AUG.COLOR)


@AUGMENTATION_REGISTRY.register()
def ssd_color(cfg: CfgNode) -> T.Augmentation:
    """Colour distortion of SSD (MM-Former), as Detectron2's PointRend project has it."""
    from detectron2.projects.point_rend import ColorAugSSDTransform

    return T.RandomApply(ColorAugSSDTransform(img_format="RGB"), prob=1.0)


def build_resize(cfg: CfgNode) -> T.Augmentation:
    """Build the resize of evaluation and of un-augmented training from cfg.INPUT.TEST_RESIZE.

    Raises:
        ValueError: unknown kind, or INPUT.FEW_SHOT_SIZE is no (height, width).
    """
    size = tuple(cfg.INPUT.FEW_SHOT_SIZE)
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise ValueError(f"INPUT.FEW_SHOT_SIZE {size} is not a height and a width in pixels")
    kind = cfg.INPUT.TEST_RESIZE
    if kind not in RESIZES:
        raise ValueError(f"unknown INPUT.TEST_RESIZE {kind!r}; choose one of {', '.join(RESIZES)}")
    return AUGMENTATION_REGISTRY.get(kind)(cfg)


def build_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """Build cfg.INPUT.TRAIN_AUGMENTATIONS in order, plus the test resize where they leave the size open.

    Raises:
        ValueError: unknown name, or settings that it refuses.
    """
    names = tuple(cfg.INPUT.TRAIN_AUGMENTATIONS)
    known = sorted(name for name, _ in AUGMENTATION_REGISTRY)
    for name in names:
        if name not in known:
            raise ValueError(f"unknown {name!r} in INPUT.TRAIN_AUGMENTATIONS; choose from {', '.join(known)}")
    augmentations = [_build(name, cfg) for name in names]
    sizing = [name for name in names if name in _FIX_SIZE | _CHANGE_SIZE]
    fixed = bool(sizing) and sizing[-1] in _FIX_SIZE
    return augmentations if fixed else [*augmentations, build_resize(cfg)]


def _build(name: str, cfg: CfgNode) -> T.Augmentation:
    try:
        return AUGMENTATION_REGISTRY.get(name)(cfg)
    except (AssertionError, TypeError, ValueError) as error:  # Detectron2's augmentations assert
        raise ValueError(f"INPUT.TRAIN_AUGMENTATIONS {name!r}: {error}; check its INPUT.AUG keys") from error
