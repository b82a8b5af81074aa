"""Masks as polygons whose filling gives the mask back."""

import cv2
import numpy as np

__all__ = ["mask_polygons"]


def mask_polygons(mask: np.ndarray, tolerance: float = 0.0) -> list[np.ndarray]:
    """Trace a mask: one closed polygon for each 8-connected component.

    The corners are pixels of the mask, as OpenCV traces and fills them: with ``tolerance`` 0 `cv2.fillPoly`
    of all polygons is the mask again. A hole is joined to what is left of it by a bridge of two edges on
    top of each other, so that one polygon says it all under the even-odd and the non-zero rule alike.

    Args:
        mask: (H, W) bool.
        tolerance: pixels by which a simplified outline may miss the true one.

    Returns:
        (N, 2) int64 corners x, y of each, N at least 3 (corners are repeated where a component is thinner).
    """
    contours, tree = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    outlines = [contour[:, 0].astype(np.int64) for contour in contours]  # (N, 2)
    holes: dict[int, list[np.ndarray]] = {}  # by the number of the outline that they are in; -1: none
    for index, outline in enumerate(outlines):
        holes.setdefault(int(tree[0, index, 3]), []).append(outline)
    return [
        _simplified(_bridged(outline, holes.get(index, []), mask), tolerance)
        for index, outline in enumerate(outlines)
        if tree[0, index, 3] < 0
    ]


def _bridged(outline: np.ndarray, holes: list[np.ndarray], mask: np.ndarray) -> np.ndarray:
    """Join the outlines of holes (traced on the mask's pixels round them) to the outer one.

    A bridge runs to the left from a hole's first leftmost pixel, within the mask, to the next outline. That
    is the outer one or that of a hole whose leftmost pixel lies further left, hence joined before.
    """
    for hole in sorted(holes, key=lambda points: points[:, 0].min()):
        start = int(hole[:, 0].argmin())
        x, y = hole[start]
        end = x
        while end > 0 and mask[y, end - 1]:
            end -= 1
        place = int((outline == (end, y)).all(axis=1).argmax())
        ring = np.concatenate([hole[start:], hole[: start + 1]])  # closed
        outline = np.concatenate([outline[: place + 1], ring, outline[place:]])
    return outline


def _simplified(outline: np.ndarray, tolerance: float) -> np.ndarray:
    """Drop corners on straight lines, or all that ``tolerance`` allows; keep at least 3."""
    if tolerance > 0:
        kept = cv2.approxPolyDP(outline.astype(np.int32)[:, None], tolerance, closed=True)[:, 0]
        if len(kept) >= 3:
            return kept.astype(np.int64)
    # Steps are to a neighbour or along a row: equal signs mean one direction. A turn back is kept.
    before = np.sign(outline - np.roll(outline, 1, axis=0))
    after = np.sign(np.roll(outline, -1, axis=0) - outline)
    kept = outline[(before != after).any(axis=1) | (outline == outline[0]).all(axis=1)]
    return kept if len(kept) >= 3 else np.resize(kept, (3, 2))
