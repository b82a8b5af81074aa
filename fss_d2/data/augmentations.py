"""Augmentations of an image together with its mask, and the names by which a config lists them.

Random numbers come from numpy's global generator, as in Detectron2; the mapper seeds it for each image.
Images are (H, W, 3) uint8 RGB, masks (H, W) in {0, 1, 255}, sizes (height, width).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from fvcore.common.registry import Registry

from . import transforms
from .views import random_object_window

__all__ = [
    "AUGMENTATION_REGISTRY",
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
    "build_augmentations",
    "build_resize",
    "build_view_resizes",
]

_CROP_REDRAWS = 31  # PFENet: redraws of a crop that loses too much of the target
_ASPECT = (3 / 4, 4 / 3)  # of a random resized crop, width over height


@dataclass(eq=False)
class Squash(T.Augmentation):
    """Resize to a fixed (height, width) without keeping the aspect ratio."""

    size: Sequence[int]

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return transforms.SquashTransform(*self.size)


@dataclass(eq=False)
class Letterbox(T.Augmentation):
    """Fit the image into (height, width), with its aspect ratio and sides that are multiples of 8 (PFENet).

    The longer side is scaled to fit and the other by the same ratio, truncated; then both are rounded down to
    a multiple of 8 (at least 8). Smaller images are enlarged. The rest is black, and 255 in the mask.
    """

    size: Sequence[int]

    def get_transform(self, image: np.ndarray) -> T.Transform:
        (h, w), (height, width) = image.shape[:2], self.size
        fitted = (height, w * height // h) if h * width >= w * height else (h * width // w, width)
        valid = (max(fitted[0] // 8 * 8, 8), max(fitted[1] // 8 * 8, 8))
        return transforms.LetterboxTransform(valid, height, width)


class ShortestEdge(T.ResizeShortestEdge):
    """Detectron2's ResizeShortestEdge, with the mask resized by torch "nearest" as in the few-shot codes."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        resize = super().get_transform(image)
        if not isinstance(resize, T.ResizeTransform):
            return resize
        return transforms.SquashTransform(max(resize.new_h, 1), max(resize.new_w, 1))


@dataclass(eq=False)
class RandomScale(T.Augmentation):
    """Scale both sides by one factor, uniform in `factors`."""

    factors: tuple[float, float]

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return transforms.ScaleTransform(float(self._rand_range(*self.factors)))


@dataclass(eq=False)
class RandomRotate(T.Augmentation):
    """Rotate by an angle uniform in [-degrees, degrees] on the same canvas."""

    degrees: float
    fill: Sequence[float]

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return transforms.RotateTransform(float(self._rand_range(-self.degrees, self.degrees)), self.fill)


@dataclass(eq=False)
class RandomKeepCrop(T.Augmentation):
    """Crop to a random window that keeps most of the target (PFENet's Crop).

    A side smaller than the window is padded first, half of the missing pixels (rounded down) before it. The
    window is redrawn while it keeps less than `keep` of the target pixels (1), at most 31 times.
    """

    size: Sequence[int]
    keep: float
    fill: Sequence[float]

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray) -> T.Transform:
        target = sem_seg == 1
        enough = self.keep * np.count_nonzero(target)
        for _ in range(_CROP_REDRAWS + 1):
            top, left = (self._offset(*sides) for sides in zip(sem_seg.shape, self.size, strict=True))
            window = target[max(top, 0) : top + self.size[0], max(left, 0) : left + self.size[1]]
            if np.count_nonzero(window) >= enough:
                break
        return transforms.PadCrop(top, left, *self.size, self.fill)

    @staticmethod
    def _offset(side: int, window: int) -> int:
        return -((window - side) // 2) if side <= window else np.random.randint(side - window + 1)


@dataclass(eq=False)
class RandomObjectCrop(T.Augmentation):
    """Crop to a window that contains the whole object (1), with its sides times a factor of `context`."""

    context: tuple[float, float]

    def __post_init__(self) -> None:
        low, high = self.context
        if not 1 <= low <= high:
            raise ValueError(f"INPUT.AUG.OBJECT_CONTEXT {(low, high)}: give two rising factors of at least 1")

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray) -> T.Transform:
        left, top, right, bottom = random_object_window(sem_seg, self._rand_range(*self.context))
        return T.CropTransform(left, top, right - left, bottom - top)


@dataclass(eq=False)
class RandomResizedCrop(T.Augmentation):
    """Crop to a window of random area and aspect ratio and resize it to (height, width).

    The area is uniform in `area` (fractions of the image's), the aspect ratio log-uniform in [3/4, 4/3];
    after ten windows that do not fit, the whole image is taken.
    """

    size: Sequence[int]
    area: tuple[float, float]

    def get_transform(self, image: np.ndarray) -> T.Transform:
        height, width = image.shape[:2]
        squash = transforms.SquashTransform(*self.size)
        for _ in range(10):
            area = height * width * self._rand_range(*self.area)
            aspect = math.exp(self._rand_range(math.log(_ASPECT[0]), math.log(_ASPECT[1])))
            h, w = max(round(math.sqrt(area / aspect)), 1), max(round(math.sqrt(area * aspect)), 1)
            if h <= height and w <= width:
                top, left = np.random.randint(height - h + 1), np.random.randint(width - w + 1)
                return T.TransformList([T.CropTransform(left, top, w, h), squash])
        return squash


@dataclass(eq=False)
class RandomColor(T.Augmentation):
    """Change brightness, contrast and saturation by factors uniform in [1 - strength, 1 + strength]."""

    strength: float

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return transforms.ColorTransform(
            *self._rand_range(1 - self.strength, 1 + self.strength, size=3).tolist()
        )


@dataclass(eq=False)
class PadTo(T.Augmentation):
    """Pad right and below to (height, width), or cut off the part outside it."""

    size: Sequence[int]
    fill: Sequence[float]

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return transforms.PadCrop(0, 0, *self.size, self.fill)


AUGMENTATION_REGISTRY = Registry("AUGMENTATION")
AUGMENTATION_REGISTRY.__doc__ = "Builders `name(cfg) -> Augmentation` for cfg.INPUT.TRAIN_AUGMENTATIONS."

RESIZES = ("squash", "letterbox", "shortest_edge")
# After an augmentation of the first set the image has the network's size; one of the second changes it.
_FIX_SIZE = {"crop", "random_resized_crop", "pad", *RESIZES}
_CHANGE_SIZE = {"scale", "object_crop", "random_shortest_edge", "random_crop"}


_BUILDERS: dict[str, Callable[[CfgNode], T.Augmentation]] = {
    # Resize to INPUT.FEW_SHOT_SIZE without keeping the aspect ratio (HSNet, DCAMA).
    "squash": lambda cfg: Squash(cfg.INPUT.FEW_SHOT_SIZE),
    # Fit into INPUT.FEW_SHOT_SIZE with the aspect ratio kept and the rest black (PFENet).
    "letterbox": lambda cfg: Letterbox(cfg.INPUT.FEW_SHOT_SIZE),
    # Resize the shortest side to min(INPUT.FEW_SHOT_SIZE), the longest to at most INPUT.MAX_SIZE_TEST.
    "shortest_edge": lambda cfg: ShortestEdge(min(cfg.INPUT.FEW_SHOT_SIZE), cfg.INPUT.MAX_SIZE_TEST),
    # Resize the shortest side to a random one of INPUT.MIN_SIZE_TRAIN, at most INPUT.MAX_SIZE_TRAIN.
    "random_shortest_edge": lambda cfg: ShortestEdge(
        cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    ),
    # Scale by a factor in INPUT.AUG.SCALE_RANGE (PFENet).
    "scale": lambda cfg: RandomScale(cfg.INPUT.AUG.SCALE_RANGE),
    # With INPUT.AUG.ROTATE_PROB rotate by up to ROTATE_DEGREES, corners in the mean colour (PFENet).
    "rotate": lambda cfg: T.RandomApply(
        RandomRotate(cfg.INPUT.AUG.ROTATE_DEGREES, cfg.MODEL.PIXEL_MEAN), cfg.INPUT.AUG.ROTATE_PROB
    ),
    # With INPUT.AUG.BLUR_PROB blur by a 5x5 Gaussian (PFENet).
    "blur": lambda cfg: T.RandomApply(transforms.BlurTransform(), cfg.INPUT.AUG.BLUR_PROB),
    # With INPUT.AUG.FLIP_PROB exchange left and right.
    "flip": lambda cfg: T.RandomFlip(cfg.INPUT.AUG.FLIP_PROB),
    # Crop to INPUT.FEW_SHOT_SIZE with INPUT.AUG.CROP_KEEP of the object, filled with the mean colour.
    "crop": lambda cfg: RandomKeepCrop(
        cfg.INPUT.FEW_SHOT_SIZE, cfg.INPUT.AUG.CROP_KEEP, cfg.MODEL.PIXEL_MEAN
    ),
    # With INPUT.AUG.OBJECT_CROP_PROB crop round the object, INPUT.AUG.OBJECT_CONTEXT times its sides.
    "object_crop": lambda cfg: T.RandomApply(
        RandomObjectCrop(cfg.INPUT.AUG.OBJECT_CONTEXT), cfg.INPUT.AUG.OBJECT_CROP_PROB
    ),
    # Crop to a random window of INPUT.FEW_SHOT_SIZE; smaller images stay whole (MM-Former, before `pad`).
    "random_crop": lambda cfg: T.RandomCrop("absolute", cfg.INPUT.FEW_SHOT_SIZE),
    # Pad right and below with grey 128 (MM-Former).
    "pad": lambda cfg: PadTo(cfg.INPUT.FEW_SHOT_SIZE, (128, 128, 128)),
    # Resize a window of INPUT.AUG.CROP_AREA of the image to INPUT.FEW_SHOT_SIZE.
    "random_resized_crop": lambda cfg: RandomResizedCrop(cfg.INPUT.FEW_SHOT_SIZE, cfg.INPUT.AUG.CROP_AREA),
    # Change brightness, contrast and saturation by up to INPUT.AUG.COLOR.
    "color": lambda cfg: RandomColor(cfg.INPUT.AUG.COLOR),
    # Colour distortion of SSD (MM-Former), from Detectron2's PointRend project.
    "ssd_color": lambda cfg: _ssd_color(),
}
for _name, _build in _BUILDERS.items():
    _build.__name__ = _name  # by which the registry knows it
    AUGMENTATION_REGISTRY.register(_build)


def _ssd_color() -> T.Augmentation:
    from detectron2.projects.point_rend import ColorAugSSDTransform

    return T.RandomApply(ColorAugSSDTransform(img_format="RGB"), prob=1.0)


def build_resize(cfg: CfgNode) -> T.Augmentation:
    """Build INPUT.TEST_RESIZE, the resize of evaluation and of images that are not augmented."""
    size = tuple(cfg.INPUT.FEW_SHOT_SIZE)
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise ValueError(f"INPUT.FEW_SHOT_SIZE {size} is not a height and a width in pixels: give (384, 384)")
    kind = cfg.INPUT.TEST_RESIZE
    if kind not in RESIZES:
        raise ValueError(f"unknown INPUT.TEST_RESIZE {kind!r}; choose one of {', '.join(RESIZES)}")
    return AUGMENTATION_REGISTRY.get(kind)(cfg)


def build_view_resizes(cfg: CfgNode) -> list[T.Augmentation]:
    """Build INPUT.TEST_RESIZE at each size of TEST.SCALES, in order; ValueError for a size twice."""
    resizes: dict[tuple[int, int], T.Augmentation] = {}
    for given in cfg.TEST.SCALES:
        size = tuple(given) if isinstance(given, (list, tuple)) else (given, given)
        if len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
            raise ValueError(
                f"TEST.SCALES has {given!r}; give sides in pixels, (473, 641), or heights and widths, "
                "((473, 473), (641, 641))"
            )
        at_size = cfg.clone()
        at_size.defrost()
        at_size.INPUT.FEW_SHOT_SIZE = size
        resizes[size] = build_resize(at_size)
    if len(resizes) < len(cfg.TEST.SCALES):
        raise ValueError(f"TEST.SCALES {tuple(cfg.TEST.SCALES)} has a size twice; give each once")
    return list(resizes.values())


def build_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """Build INPUT.TRAIN_AUGMENTATIONS in order, plus the resize of evaluation if they do not set the size."""
    names = tuple(cfg.INPUT.TRAIN_AUGMENTATIONS)
    known = sorted(name for name, _ in AUGMENTATION_REGISTRY)
    for name in names:
        if name not in known:
            raise ValueError(f"unknown {name!r} in INPUT.TRAIN_AUGMENTATIONS; choose from {', '.join(known)}")
    augmentations = []
    for name in names:
        try:
            augmentations.append(AUGMENTATION_REGISTRY.get(name)(cfg))
        except (AssertionError, TypeError, ValueError) as error:  # Detectron2's augmentations assert
            raise ValueError(
                f"INPUT.TRAIN_AUGMENTATIONS {name!r}: {error}; check its INPUT.AUG keys"
            ) from error
    sizing = [name for name in names if name in _FIX_SIZE | _CHANGE_SIZE]
    fixed = bool(sizing) and sizing[-1] in _FIX_SIZE
    return augmentations if fixed else [*augmentations, build_resize(cfg)]
