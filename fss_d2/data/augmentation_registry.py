"""Builders of the augmentations that a config names (INPUT.TRAIN_AUGMENTATIONS) and of its resizes."""

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import transforms as T
from fvcore.common.registry import Registry

from .augmentations import (
    Letterbox,
    PadTo,
    RandomColor,
    RandomKeepCrop,
    RandomObjectCrop,
    RandomResizedCrop,
    RandomRotate,
    RandomScale,
    ShortestEdge,
    Squash,
)
from .transforms import BlurTransform

__all__ = ["AUGMENTATION_REGISTRY", "build_augmentations", "build_resize", "build_view_resizes"]

AUGMENTATION_REGISTRY = Registry("AUGMENTATION")
AUGMENTATION_REGISTRY.__doc__ = "Builders `name(cfg) -> Augmentation` for cfg.INPUT.TRAIN_AUGMENTATIONS."

RESIZES = ("squash", "letterbox", "shortest_edge")
# After an augmentation of the first set the image has the network's size; one of the second changes it.
_FIX_SIZE = {"crop", "random_resized_crop", "pad", *RESIZES}
_CHANGE_SIZE = {"scale", "object_crop", "random_shortest_edge", "random_crop"}


@AUGMENTATION_REGISTRY.register()
def squash(cfg: CfgNode) -> T.Augmentation:
    """Resize to INPUT.FEW_SHOT_SIZE without keeping the aspect ratio (HSNet, DCAMA)."""
    return Squash(cfg.INPUT.FEW_SHOT_SIZE)


@AUGMENTATION_REGISTRY.register()
def letterbox(cfg: CfgNode) -> T.Augmentation:
    """Fit into INPUT.FEW_SHOT_SIZE with the aspect ratio kept and the rest black (PFENet)."""
    return Letterbox(cfg.INPUT.FEW_SHOT_SIZE)


@AUGMENTATION_REGISTRY.register()
def shortest_edge(cfg: CfgNode) -> T.Augmentation:
    """Resize the shortest side to min(INPUT.FEW_SHOT_SIZE), the longest to at most INPUT.MAX_SIZE_TEST."""
    return ShortestEdge(min(cfg.INPUT.FEW_SHOT_SIZE), cfg.INPUT.MAX_SIZE_TEST)


@AUGMENTATION_REGISTRY.register()
def random_shortest_edge(cfg: CfgNode) -> T.Augmentation:
    """Resize the shortest side to a random one of INPUT.MIN_SIZE_TRAIN, at most INPUT.MAX_SIZE_TRAIN."""
    return ShortestEdge(cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING)


@AUGMENTATION_REGISTRY.register()
def scale(cfg: CfgNode) -> T.Augmentation:
    """Scale by a factor in INPUT.AUG.SCALE_RANGE (PFENet)."""
    return RandomScale(cfg.INPUT.AUG.SCALE_RANGE)


@AUGMENTATION_REGISTRY.register()
def rotate(cfg: CfgNode) -> T.Augmentation:
    """With INPUT.AUG.ROTATE_PROB rotate by up to ROTATE_DEGREES, corners in the mean colour (PFENet)."""
    turn = RandomRotate(cfg.INPUT.AUG.ROTATE_DEGREES, cfg.MODEL.PIXEL_MEAN)
    return T.RandomApply(turn, cfg.INPUT.AUG.ROTATE_PROB)


@AUGMENTATION_REGISTRY.register()
def blur(cfg: CfgNode) -> T.Augmentation:
    """With INPUT.AUG.BLUR_PROB blur by a 5x5 Gaussian (PFENet)."""
    return T.RandomApply(BlurTransform(), cfg.INPUT.AUG.BLUR_PROB)


@AUGMENTATION_REGISTRY.register()
def flip(cfg: CfgNode) -> T.Augmentation:
    """With INPUT.AUG.FLIP_PROB exchange left and right."""
    return T.RandomFlip(cfg.INPUT.AUG.FLIP_PROB)


@AUGMENTATION_REGISTRY.register()
def crop(cfg: CfgNode) -> T.Augmentation:
    """Crop to INPUT.FEW_SHOT_SIZE with INPUT.AUG.CROP_KEEP of the object, filled with the mean colour."""
    return RandomKeepCrop(cfg.INPUT.FEW_SHOT_SIZE, cfg.INPUT.AUG.CROP_KEEP, cfg.MODEL.PIXEL_MEAN)


@AUGMENTATION_REGISTRY.register()
def object_crop(cfg: CfgNode) -> T.Augmentation:
    """With INPUT.AUG.OBJECT_CROP_PROB crop round the object, INPUT.AUG.OBJECT_CONTEXT times its sides."""
    low, high = cfg.INPUT.AUG.OBJECT_CONTEXT
    if not 1 <= low <= high:
        raise ValueError(f"INPUT.AUG.OBJECT_CONTEXT {(low, high)}: give two rising factors of at least 1")
    return T.RandomApply(RandomObjectCrop((low, high)), cfg.INPUT.AUG.OBJECT_CROP_PROB)


@AUGMENTATION_REGISTRY.register()
def random_crop(cfg: CfgNode) -> T.Augmentation:
    """Crop to a random window of INPUT.FEW_SHOT_SIZE; smaller images stay whole (MM-Former, before `pad`)."""
    return T.RandomCrop("absolute", cfg.INPUT.FEW_SHOT_SIZE)


@AUGMENTATION_REGISTRY.register()
def pad(cfg: CfgNode) -> T.Augmentation:
    """Pad right and below with grey 128 (MM-Former)."""
    return PadTo(cfg.INPUT.FEW_SHOT_SIZE, (128, 128, 128))


@AUGMENTATION_REGISTRY.register()
def random_resized_crop(cfg: CfgNode) -> T.Augmentation:
    """Resize a window of INPUT.AUG.CROP_AREA of the image to INPUT.FEW_SHOT_SIZE."""
    return RandomResizedCrop(cfg.INPUT.FEW_SHOT_SIZE, cfg.INPUT.AUG.CROP_AREA)


@AUGMENTATION_REGISTRY.register()
def color(cfg: CfgNode) -> T.Augmentation:
    """Change brightness, contrast and saturation by up to INPUT.AUG.COLOR."""
    return RandomColor(cfg.INPUT.AUG.COLOR)


@AUGMENTATION_REGISTRY.register()
def ssd_color(cfg: CfgNode) -> T.Augmentation:
    """Colour distortion of SSD (MM-Former), from Detectron2's PointRend project."""
    from detectron2.projects.point_rend import ColorAugSSDTransform

    return T.RandomApply(ColorAugSSDTransform(img_format="RGB"), prob=1.0)


def build_resize(cfg: CfgNode) -> T.Augmentation:
    """Build INPUT.TEST_RESIZE, the resize of evaluation and of images that are not augmented.

    Raises:
        ValueError: unknown kind, or INPUT.FEW_SHOT_SIZE is not (height, width).
    """
    size = tuple(cfg.INPUT.FEW_SHOT_SIZE)
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise ValueError(f"INPUT.FEW_SHOT_SIZE {size} is not a height and a width in pixels: give (384, 384)")
    kind = cfg.INPUT.TEST_RESIZE
    if kind not in RESIZES:
        raise ValueError(f"unknown INPUT.TEST_RESIZE {kind!r}; choose one of {', '.join(RESIZES)}")
    return AUGMENTATION_REGISTRY.get(kind)(cfg)


def build_view_resizes(cfg: CfgNode) -> list[T.Augmentation]:
    """Build INPUT.TEST_RESIZE at each size of TEST.SCALES, in order.

    Raises:
        ValueError: a size that is neither a side nor a height and a width, or that is listed twice.
    """
    resizes = []
    for size in _sizes(cfg.TEST.SCALES):
        at_size = cfg.clone()
        at_size.defrost()
        at_size.INPUT.FEW_SHOT_SIZE = size
        resizes.append(build_resize(at_size))
    return resizes


def _sizes(scales: Sequence[Any]) -> list[tuple[int, int]]:
    sizes = []
    for scale in scales:
        size = tuple(scale) if isinstance(scale, (list, tuple)) else (scale, scale)
        if len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
            raise ValueError(
                f"TEST.SCALES has {scale!r}; give sides in pixels, (473, 641), or heights and widths, "
                "((473, 473), (641, 641))"
            )
        sizes.append(size)
    if len(set(sizes)) < len(sizes):
        raise ValueError(f"TEST.SCALES {tuple(scales)} has a size twice; give each once")
    return sizes


def build_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """Build INPUT.TRAIN_AUGMENTATIONS in order, plus the resize of evaluation if they do not set the size.

    Raises:
        ValueError: unknown name, or settings that the augmentation refuses.
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
