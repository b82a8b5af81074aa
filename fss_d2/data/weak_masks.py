"""Annotations of a support that are cheaper than its mask: boxes and scribbles."""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from detectron2.config import CfgNode

from .masks import IGNORE

__all__ = ["ANNOTATIONS", "Seed", "annotate", "boxes_of", "scribble_of", "support_annotation"]

Seed = int | Sequence[int]  # of numpy's default generator

# Uniform ranges of a stroke: its length over the longer side of the component's box, its width over the
# square root of the component's area.
_LENGTH = (0.4, 0.8)
_WIDTH = (0.02, 0.05)
_LEAST_WIDTH = 3  # pixels, so that the stroke survives the resize to the network's size
_CORNERS = 8  # of the line, at most
_DEPTH = 0.8  # least distance of a corner from the edge, over that of the deepest pixel in its column
_SMALL = 0.1  # components with less than this share of the largest area get no stroke


def boxes_of(mask: np.ndarray) -> np.ndarray:
    """Replace the object by filled boxes, one for each of its 8-connected components, of their exact extent.

    Args:
        mask: (H, W) uint8 in {0, 1, 255}.

    Returns:
        (H, W) uint8 in {0, 1, 255}: 1 inside the boxes; unchanged outside.
    """
    boxed = mask.copy()
    for box, _ in _components(mask == 1):
        boxed[box] = 1
    return boxed


def scribble_of(mask: np.ndarray, seed: Seed) -> np.ndarray:
    """Replace the mask by hand-like strokes: one per large component of the object, one in the background.

    A stroke follows the middle of its component along a random part of the longer side, slightly unsteady and
    never outside the component. Every object gets a stroke of at least a pixel; a mask without any 0 gets no
    background stroke.

    Args:
        mask: (H, W) uint8 in {0, 1, 255}.
        seed: the same seed gives the same strokes.

    Returns:
        (H, W) uint8: 1 on the object's strokes, 0 on the background's, 255 everywhere else.
    """
    rng = np.random.default_rng(seed)
    scribble = np.full_like(mask, IGNORE)
    objects, background = _components(mask == 1), _components(mask == 0)
    for box, component in objects:
        if np.count_nonzero(component) >= _SMALL * np.count_nonzero(objects[0][1]):
            scribble[box][_stroke(component, rng)] = 1
    for box, component in background[:1]:
        scribble[box][_stroke(component, rng)] = 0
    return scribble


_KINDS: dict[str, Callable[[np.ndarray, Seed], np.ndarray]] = {
    "mask": lambda mask, seed: mask,
    "box": lambda mask, seed: boxes_of(mask),
    "scribble": scribble_of,
}
ANNOTATIONS = tuple(_KINDS)


def annotate(mask: np.ndarray, kind: str, seed: Seed) -> np.ndarray:
    """Reduce a mask (H, W) in {0, 1, 255} to a kind of annotation; the seed is for scribbles.

    Raises:
        ValueError: unknown kind.
    """
    _check(kind, "SUPPORT_ANNOTATION")
    return _KINDS[kind](mask, seed)


def support_annotation(cfg: CfgNode, is_train: bool) -> str:
    """Return the annotation of supports in training or evaluation from the config; both are checked.

    Raises:
        ValueError: FEW_SHOT.TRAIN.SUPPORT_ANNOTATION or FEW_SHOT.TEST.SUPPORT_ANNOTATION is unknown.
    """
    kinds = {name: cfg.FEW_SHOT[name].SUPPORT_ANNOTATION for name in ("TRAIN", "TEST")}
    for name, kind in kinds.items():
        _check(kind, f"FEW_SHOT.{name}.SUPPORT_ANNOTATION")
    return kinds["TRAIN" if is_train else "TEST"]


def _check(kind: str, key: str) -> None:
    if kind not in ANNOTATIONS:
        raise ValueError(f"unknown {key} {kind!r}; choose one of {', '.join(ANNOTATIONS)}")


def _components(region: np.ndarray) -> list[tuple[tuple[slice, slice], np.ndarray]]:
    """Return the box and the pixels (h, w) bool of each 8-connected component of a region (H, W) bool.

    The largest component comes first.
    """
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(region.astype(np.uint8), connectivity=8)
    found = []
    for label in 1 + np.argsort(-statistics[1:, cv2.CC_STAT_AREA], kind="stable"):
        left, top, width, height, _ = statistics[label]
        box = slice(top, top + height), slice(left, left + width)
        found.append((box, labels[box] == label))
    return found


def _stroke(component: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a line of at least one pixel inside a component (h, w) bool; return its pixels (h, w) bool."""
    height, width = component.shape
    if height > width:
        return _stroke(component.T, rng).T
    length = rng.uniform(*_LENGTH) * (width - 1)
    start = rng.uniform(0, width - 1 - length)
    x = np.unique(np.linspace(start, start + length, _CORNERS).astype(int))
    # A connected component has a pixel in every column of its box. The box's edge counts as the component's.
    depth = cv2.distanceTransform(np.pad(component, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)[1:-1]
    deep = [np.flatnonzero(column >= _DEPTH * column.max()) for column in depth[:, 1:-1].T[x]]
    y = np.array([rng.choice(rows) for rows in deep])
    stroke = np.zeros(component.shape, np.uint8)
    thickness = max(round(rng.uniform(*_WIDTH) * np.count_nonzero(component) ** 0.5), _LEAST_WIDTH)
    cv2.polylines(stroke, [np.stack([x, y], axis=1).astype(np.int32)], False, 1, thickness)
    stroke[y, x] = 1  # polylines draws nothing for a single corner
    return (stroke == 1) & component
