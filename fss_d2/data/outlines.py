"""Outlines of objects (polygons, run lengths, boxes, discs): checked against the frame, and only then drawn.

A frame is the (height, width) of a picture. The rasterisers of pycocotools and OpenCV crash, hang or take all
memory for some numbers, so that none of them gets a number which was not checked here.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask

__all__ = [
    "box_outline",
    "checked_frame",
    "checked_outline",
    "disc",
    "draw_outlines",
    "fills_holes",
    "fits_box",
    "has_outline",
    "has_stray_parts",
    "is_empty",
    "overhang",
    "whole_frame",
]

Frame = tuple[int, int]  # (height, width) in pixels
Outline = list[Any] | Mapping[str, Any]  # polygons [[x, y, x, y, ...], ...], or {"size", "counts"}

_FAR = 4  # longer sides of the frame that a corner may lie outside of it
_BORDER = 1  # pixels by which an outline may miss the frame: it then rounds to nothing
_LARGEST_SIDE = 2**20  # pixels, of a picture
_RIM = 0.01  # share of an object that neighbouring polygons may both cover
_SPARE_LENGTH = 2**16  # pixels of outline that each polygon may have besides one per pixel of the frame
_MANY = 64  # run lengths that are merged at a time: merging one by one takes quadratic time
_NUMBERS = {int, float}
_NOTHING = ("", "[]", "none", "null", "nan")  # texts that exporters write for an object without outline


def checked_frame(height: Any, width: Any) -> Frame:
    """Return (height, width) as whole numbers; ValueError if they are none or not positive."""
    for name, side in (("height", height), ("width", width)):
        whole = isinstance(side, Real) and not isinstance(side, bool) and side == side // 1
        if not whole or not 1 <= side <= _LARGEST_SIDE:
            raise ValueError(f"its {name} is {_short(side)}; give the picture's {name} in pixels")
    return int(height), int(width)


def has_outline(given: Any) -> bool:
    """Whether an annotation's "segmentation" holds anything, also something wrong."""
    if given is None or (isinstance(given, str) and given.strip().lower() in _NOTHING):
        return False
    if isinstance(given, float) and math.isnan(given):
        return False
    if isinstance(given, list | tuple):
        return any(not isinstance(part, list | tuple) or len(part) for part in given)
    return not (isinstance(given, Mapping) and not given)


def checked_outline(given: Any, frame: Frame) -> Outline:
    """Check an annotation's "segmentation" and return it in COCO's form.

    Args:
        given: polygons [[x, y, x, y, ...], ...] in pixels, or COCO's run lengths {"size", "counts"}. Corners
            as [x, y], [[x, y]] (OpenCV) or {"x": x, "y": y}, and a single polygon without the outer list, are
            understood. Next to a polygon, parts of 1 or 2 corners are left out (`has_stray_parts`).
        frame: of the picture. A polygon may reach out of it by four times its longer side.

    Returns:
        `given` itself where it is in COCO's form already. ValueError, with the reason, for anything else:
        other types than numbers, numbers that are not finite or too far outside, polygons of fewer than 3
        corners or wholly outside of the frame, shares of the frame instead of pixels, runs that are negative
        or do not add up to the frame.
    """
    if isinstance(given, Mapping):
        return _checked_runs(given, frame)
    polygons = _polygons(given)
    if not polygons:
        raise ValueError("it has no outline")
    if stray := [polygon for polygon in polygons if len(polygon) in (2, 4)]:
        polygons = [polygon for polygon in polygons if polygon not in stray] or polygons
    bounds = [_bounds(polygon, frame) for polygon in polygons]
    if min(frame) > 2 and all(x1 <= 1 and y1 <= 1 for _, _, x1, y1 in bounds):
        raise ValueError("all its numbers lie from 0 to 1: they are shares of the picture; give pixels")
    return polygons


def has_stray_parts(given: Any, outline: Outline) -> bool:
    """Whether a checked outline lacks parts of ``given``: contours of 1 or 2 pixels have no 3 corners."""
    parts = [given, outline]
    if not all(isinstance(part, list) and all(map(_is_list, part)) for part in parts):
        return False
    return sum(map(len, outline)) < sum(map(len, given))


def fills_holes(outline: Outline, frame: Frame) -> bool:
    """Whether polygons of a checked outline overlap by more than their rims, as an object and its hole do."""
    if isinstance(outline, Mapping) or len(outline) < 2:
        return False
    areas = [int(coco_mask.area([run])[0]) for run in coco_mask.frPyObjects(outline, *frame)]
    union = int(np.count_nonzero(draw_outlines([outline], frame)))
    return sum(areas) > union + max(int(_RIM * union), 10)


def fits_box(outline: Outline, box: Any) -> bool:
    """Whether the bounds of checked polygons share half of their union with a box [x, y, width, height].

    True for run lengths, and where there is no such box to compare with.
    """
    is_box = isinstance(box, list | tuple) and len(box) == 4 and all(_is_finite(value) for value in box)
    if isinstance(outline, Mapping) or not is_box or min(box[2:]) <= 0:
        return True
    xs, ys = ([value for polygon in outline for value in polygon[i::2]] for i in (0, 1))
    width = min(max(xs), box[0] + box[2]) - max(min(xs), box[0])
    height = min(max(ys), box[1] + box[3]) - max(min(ys), box[1])
    shared = max(width, 0) * max(height, 0)
    bounds = (max(xs) - min(xs)) * (max(ys) - min(ys))
    return 2 * shared >= bounds + box[2] * box[3] - shared


def overhang(outline: Outline, frame: Frame) -> float:
    """Pixels by which a checked outline reaches out of a frame; 0 for run lengths and if it does not."""
    if isinstance(outline, Mapping):
        return 0.0
    reach = 0.0
    for polygon in outline:
        xs, ys = polygon[0::2], polygon[1::2]
        reach = max(reach, -min(xs), -min(ys), max(xs) - frame[1], max(ys) - frame[0])
    return reach


def is_empty(outline: Outline) -> bool:
    """Whether a checked outline has no area: each polygon's corners on a line, or no run of the object."""
    if isinstance(outline, Mapping):
        counts = outline["counts"]
        runs = _unpacked(counts) if isinstance(counts, str | bytes) else _listed(counts)
        return not runs[1::2].any()
    return all(_is_flat(polygon) for polygon in outline)


def box_outline(box: Any, frame: Frame) -> Outline:
    """The pixels that a box [x, y, width, height] touches, as a polygon; ValueError if it is none."""
    numbers = list(box) if isinstance(box, list | tuple) else []
    usable = len(numbers) == 4 and all(_is_finite(value) for value in numbers)
    if not usable or min(numbers[2:]) <= 0 or max(map(abs, numbers)) > (_FAR + 1) * max(frame):
        raise ValueError(f"its box is {_short(box)}; give [x, y, width, height] in pixels")
    x, y, width, height = numbers
    x0, y0, x1, y1 = math.floor(x), math.floor(y), math.ceil(x + width), math.ceil(y + height)
    if x1 <= 1 and y1 <= 1 and min(frame) > 2:
        raise ValueError(f"its box {_short(box)} is given in shares of the picture; give pixels")
    if x1 <= 0 or y1 <= 0 or x0 >= frame[1] or y0 >= frame[0]:
        raise ValueError(f"its box {_short(box)} lies outside the picture ({_size(frame)})")
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def whole_frame(frame: Frame) -> Outline:
    """The outline of all pixels of a frame."""
    height, width = frame
    return [[0, 0, width, 0, width, height, 0, height]]


def disc(centre: Sequence[float], radius: float, frame: Frame) -> np.ndarray:
    """(H, W) bool: the pixels whose centre lies on a disc, at least the one under the disc's own centre.

    ``centre`` is (x, y). ValueError for a radius of 0, and for a disc too far away or outside of the frame.
    """
    numbers = [*centre, radius]
    if not all(_is_finite(value) for value in numbers) or max(map(abs, numbers)) > _FAR * max(frame):
        raise ValueError(
            f"a circle around {_short(tuple(centre))} of radius {_short(radius)} cannot be drawn"
        )
    if radius <= 0:
        raise ValueError("a circle of radius 0 has no area")
    (x, y), (height, width) = centre, frame
    rows, columns = np.arange(height)[:, None] + 0.5, np.arange(width) + 0.5
    reach = radius**2 - (rows - y) ** 2
    half = np.where(reach >= 0, np.sqrt(np.maximum(reach, 0)), -1)  # (H, 1)
    drawn = np.abs(columns - x) <= half  # (H, W)
    if 0 <= x < width and 0 <= y < height:
        drawn[int(y), int(x)] = True
    if not drawn.any():
        raise ValueError(f"it lies outside the picture ({_size(frame)})")
    return drawn


def draw_outlines(outlines: Iterable[Outline], frame: Frame) -> np.ndarray:
    """Draw the union of checked outlines: (H, W) uint8 in {0, 1}, as pycocotools draws them.

    Polygons too thin to cover a pixel mark the pixels under their corners if nothing else is drawn.
    """
    runs: list[Any] = []
    corners: list[np.ndarray] = []
    for outline in outlines:
        if isinstance(outline, Mapping):
            packed = isinstance(outline["counts"], str | bytes)
            runs.append(outline if packed else coco_mask.frPyObjects(dict(outline), *frame))
        else:
            runs += coco_mask.frPyObjects(outline, *frame)
            corners += [np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in outline]
    while len(runs) > _MANY:
        runs = [coco_mask.merge(runs[i : i + _MANY]) for i in range(0, len(runs), _MANY)]
    drawn = coco_mask.decode(coco_mask.merge(runs)) if runs else np.zeros(frame, np.uint8)
    if corners and not drawn.any():
        x, y = np.concatenate(corners).T
        inside = (x >= 0) & (x <= frame[1]) & (y >= 0) & (y <= frame[0])
        x, y = x[inside].astype(int), y[inside].astype(int)
        drawn[np.minimum(y, frame[0] - 1), np.minimum(x, frame[1] - 1)] = 1
    return drawn


def _polygons(given: Any) -> list[list[Any]]:
    """A list of flat polygons [x, y, x, y, ...] whose numbers are still to be checked."""
    if isinstance(given, np.ndarray):
        given = given.tolist()
    if not isinstance(given, list | tuple):
        raise ValueError(f"its outline is {_short(given)}; give polygons [[x, y, x, y, ...]]")
    if all(type(part) is list and len(part) >= 6 and _NUMBERS.issuperset(map(type, part)) for part in given):
        return given if type(given) is list else list(given)
    given = [_corner(part) for part in given]
    if all(_is_corner(part) for part in given) or not any(_is_list(part) for part in given):
        given = [given]
    return [_flat(part) for part in given if not _is_list(part) or len(part)]


def _flat(part: Any) -> list[Any]:
    """One polygon as [x, y, x, y, ...], from numbers or corners."""
    if isinstance(part, np.ndarray):
        part = part.ravel().tolist()
    if not isinstance(part, list | tuple):
        raise ValueError(f"a part of its outline is {_short(part)}; give polygons [[x, y, x, y, ...]]")
    part = [_corner(value) for value in part]
    if part and all(_is_corner(corner) for corner in part):
        pairs = [(c["x"], c["y"]) if isinstance(c, Mapping) else tuple(c) for c in part]
        part = [value for pair in pairs for value in pair]
    for value in part:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise ValueError(f"its outline holds {_short(value)} where a number belongs")
    return [value if type(value) in _NUMBERS else float(value) for value in part]


def _is_list(part: Any) -> bool:
    return isinstance(part, list | tuple | np.ndarray)


def _corner(part: Any) -> Any:
    """[x, y] of [[x, y]], as OpenCV writes the corners of contours; anything else as it is."""
    return part[0] if isinstance(part, list | tuple) and len(part) == 1 and _is_corner(part[0]) else part


def _is_corner(part: Any) -> bool:
    """Whether something is [x, y] or {"x": x, "y": y}; the two values may be anything but lists."""
    if isinstance(part, Mapping):
        return {"x", "y"} <= part.keys()
    return isinstance(part, list | tuple) and len(part) == 2 and not any(_is_list(value) for value in part)


def _bounds(polygon: Sequence[Any], frame: Frame) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1 of a polygon of numbers; ValueError, with the reason, if it must not be drawn."""
    (height, width), count = frame, len(polygon)
    if count % 2:
        third = "; leave out the third value of each corner" if count % 3 == 0 and count > 6 else ""
        raise ValueError(
            f"its outline has {count} numbers, an odd number: give x and y of each corner{third}"
        )
    if count < 6:
        box = "; give a box as 'bbox', without an outline" if count == 4 else ""
        raise ValueError(f"its outline has fewer than 3 corners ({count // 2}){box or '; draw it again'}")
    try:
        is_finite = math.isfinite(sum(polygon))
    except OverflowError:  # a whole number that no float can hold
        is_finite = False
    if not is_finite:
        odd = next((v for v in polygon if not _is_finite(v)), max(polygon))
        raise ValueError(f"its outline has the value {_short(odd)}; give finite numbers of pixels")
    xs, ys = polygon[0::2], polygon[1::2]
    x0, y0, x1, y1 = min(xs), min(ys), max(xs), max(ys)
    far = _FAR * max(frame)
    if min(x0, y0) < -far or x1 > width + far or y1 > height + far:
        odd = max(x0, y0, x1, y1, key=abs)
        raise ValueError(f"its outline has the value {_short(odd)}, far outside the picture ({_size(frame)})")
    if x1 < -_BORDER or y1 < -_BORDER or x0 > width + _BORDER or y0 > height + _BORDER:
        where = f"x {x0:g} to {x1:g}, y {y0:g} to {y1:g}"
        raise ValueError(f"its outline ({where}) lies outside the picture ({_size(frame)})")
    if count % 3 == 0 and count >= 12:
        thirds = set(polygon[2::3])
        if thirds <= {0, 1, 2} or len(thirds) == 1:
            shown = "0, 1 or 2" if thirds <= {0, 1, 2} else _short(thirds.pop())
            raise ValueError(f"each third number of its outline is {shown}: give x and y of each corner only")
    longest = height * width + _SPARE_LENGTH
    if count * max(x1 - x0, y1 - y0) > 2 * longest and _length(polygon) > longest:
        raise ValueError(f"its outline is longer than {longest} pixels, too long for {_size(frame)}")
    return x0, y0, x1, y1


def _is_flat(polygon: Sequence[float]) -> bool:
    corners = np.asarray(polygon, np.float64).reshape(-1, 2)
    steps = corners - corners[0]
    x, y = steps[np.abs(steps).sum(axis=1).argmax()]  # the farthest corner
    return bool((np.abs(steps[:, 0] * y - steps[:, 1] * x) < 1e-6).all())


def _length(polygon: Sequence[float]) -> float:
    """Steps from pixel to pixel along a closed polygon."""
    corners = np.asarray(polygon, np.float64).reshape(-1, 2)
    return float(np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum())


def _checked_runs(given: Mapping[str, Any], frame: Frame) -> Mapping[str, Any]:
    """COCO's run lengths if they fill the frame; those that merging could not read are written again."""
    size, counts = given.get("size"), given.get("counts")
    if size is None or counts is None:
        raise ValueError(f"its run lengths have no {'size' if size is None else 'counts'!r}; add it")
    if not isinstance(size, list | tuple) or list(size) != list(frame):
        raise ValueError(f"RLE of size {_short(size)}, the image is {list(frame)}; export it again")
    runs = _unpacked(counts) if isinstance(counts, str | bytes) else _listed(counts)
    if (runs < 0).any():
        raise ValueError(f"its run lengths hold {int(runs.min())}; none can be negative")
    height, width = frame
    total = sum(runs.tolist()) if runs.size else 0
    if total != height * width:
        raise ValueError(
            f"its run lengths add up to {total} pixels, the picture has {height * width}; export it again"
        )
    if (runs[1:] == 0).any():  # pycocotools stops merging where two runs of 0 meet
        return {"size": list(frame), "counts": _without_empty_runs(runs)}
    return given


def _listed(counts: Any) -> np.ndarray:
    """Run lengths that are a list of whole numbers, (N,) int64."""
    values = counts.tolist() if isinstance(counts, np.ndarray) else counts
    if not isinstance(values, list | tuple):
        raise ValueError(f"its run lengths are {_short(counts)}; give a list or COCO's text")
    for value in values if not {int}.issuperset(map(type, values)) else ():
        if isinstance(value, bool) or not isinstance(value, Real) or value != value // 1:
            raise ValueError(f"its run lengths hold {_short(value)}; give whole numbers")
    try:
        return np.array([int(value) for value in values], np.int64)
    except OverflowError:
        raise ValueError(
            f"its run lengths hold {_short(max(values, key=abs))}, more than any picture"
        ) from None


def _unpacked(counts: str | bytes) -> np.ndarray:
    """Run lengths (N,) int64 of COCO's text: 5 bits a character, from the 4th on relative to 2 before."""
    text = counts.encode("utf-8", "replace") if isinstance(counts, str) else counts
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if not codes.size or codes.min() < 0 or codes.max() > 63:
        raise ValueError(f"its run lengths {_short(counts)} are not COCO's text; export it again")
    ends = np.flatnonzero(codes < 32)  # the last character of each number
    if not ends.size or ends[-1] != len(codes) - 1:
        raise ValueError("the text of its run lengths is cut off; export it again")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:
        raise ValueError("its run lengths hold a number larger than any picture; export it again")
    places = np.arange(len(codes)) - np.repeat(starts, lengths)
    values = np.add.reduceat((codes & 31) << 5 * places, starts)
    values -= np.where(codes[ends] & 16, 1 << 5 * lengths, 0)  # the sign
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def _without_empty_runs(runs: np.ndarray) -> list[int]:
    """Run lengths of the same pixels, of which only the first may be 0."""
    places = np.flatnonzero(runs)
    is_object = places % 2
    starts = np.flatnonzero(np.diff(is_object, prepend=-1))
    lengths = np.add.reduceat(runs[places], starts).tolist()
    return [0, *lengths] if is_object[0] else lengths


def _is_finite(value: Any) -> bool:
    """Whether something is a number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _short(value: Any) -> str:
    """A value for a message, in at most 40 characters."""
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**30 else "a huge number"
    return text if len(text) <= 40 else text[:37] + "..."


def _size(frame: Frame) -> str:
    return f"{frame[1]}x{frame[0]} pixels"
