"""What the values of a mask image of one object mean: recognised, said by the user, or refused."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import cv2
import numpy as np
from PIL import Image

from .images import to_rgb
from .mask_values import Color, MaskRule, UnclearMask

__all__ = ["decode_mask"]

_IGNORE = 255
_OPAQUE = 128  # least alpha of a pixel that counts
_MOST_SHOWN = 8  # values in a message
_JPEG = ("JPEG", "MPO")  # formats that keep no number as it was written
_LOSSY = (*_JPEG, "WEBP", "AVIF", "JPEG2000")  # that may change numbers
_NOISE = 20  # grey levels that compression moves black and white by, next to an outline
_FLAT_NOISE = 10  # the same in flat areas
_NOISY_LEVELS = 8  # levels between black and white that a file with such noise has at least
_OUTLINE = 16  # pixels from the outline up to which levels in between are its soft edge (a feather of up to
# 10 pixels, a block of JPEG); also the mean width of that edge, at most
_STEPS = 0.75  # share of few levels that must be steps from dark to bright
_THIN = np.ones((5, 5))  # reaches from the edge to the middle of lines that are too thin for white
_FEW = 0.05  # share of these levels that may lie farther away, or in flat spots
_COLOR_REACH = 48  # of a colour that the user names, per channel, in files with lossy compression
_BLACK_AND_WHITE = "black and white with a soft outline, the object from half of white on"
_HALF = "bright (from half on)"
_FEW_COLORS = 16  # a cut-out shows a photograph, which has more


def decode_mask(image: Image.Image, name: str, rule: MaskRule | None = None) -> tuple[np.ndarray, str]:
    """Tell object, background and ignored pixels of a decoded mask image, as stored, and say by what.

    Recognised without a rule are: one value besides 0; 0, 1 and 255 (ignored); black and white, also with a
    soft or compressed outline; two grey levels, one dark and one bright; a palette with one index besides 0
    and 255 (ignored); one colour on black; and a cut-out or one colour on a transparent ground.

    Returns:
        The mask (H, W) uint8 in {0, 1, 255}, and what the file was taken for.

    Raises:
        UnclearMask: it is none of these; names the file, the values and the rule to give.
        ValueError: its values cannot be those of a mask, or the rule does not fit them.
    """
    if rule is not None and rule.names_object:
        return _by_rule(image, name, rule), f"mask_values {rule.text}"
    alpha = _alpha(image)
    if alpha is not None and alpha.min() < _IGNORE:
        return _by_alpha(image, alpha, name)
    if image.mode == "P":
        return _by_palette(image, name)
    values = _grey_values(image)
    return _by_colors(image, name) if values is None else _by_levels(values, name, image.format)


# -- what is recognised ------------------------------------------------------------------------------------


def _by_levels(values: np.ndarray, name: str, kind: str | None = None) -> tuple[np.ndarray, str]:
    """A single channel of any number type; ``kind`` is the format of the file."""
    present = _present(values)
    several = f"{name} holds the values {_listed(present)}"
    if present[0] < 0 or not np.isfinite(present).all():
        raise ValueError(f"{several}: save it with 0 for background and 1 for the object")
    if not present.any():
        return np.zeros(values.shape, np.uint8), "0 only, no object"
    if kind not in _JPEG and (exact := _by_exact_values(values, present)):
        return exact
    scale = 1 / 256 if present[-1] > _IGNORE else 255 if present.dtype.kind == "f" and present[-1] <= 1 else 1
    levels = values if values.dtype == np.uint8 else values.astype(np.float32) * np.float32(scale)
    doubt = _not_black_and_white(levels, present * scale, kind in _LOSSY)
    two = len(present) == 2 and kind not in _JPEG and present[0] * scale < 128 <= present[1] * scale < _IGNORE
    if doubt and not two:
        if len(present) > _MOST_SHOWN:
            raise UnclearMask.of_values(f"{several}, {doubt}", f"nonzero, or {_HALF}")
        objects = [value for value in present.tolist() if value not in (0, _IGNORE)]
        example = _example(objects, _IGNORE in present)
        if objects[-1] >= _IGNORE - _NOISE and _IGNORE in present:  # perhaps white with noise
            example = f"{_HALF}, or {example}"
        elif len(objects) == 1 and _IGNORE in present and 64 <= objects[0] <= 192:  # perhaps between the two
            example = f"255 ignore={objects[0]}, or {example}"
        elif any(128 <= value < _IGNORE for value in objects):
            example = f"{example}, or {_HALF}"
        raise UnclearMask.of_values(several, example)
    meaning = f"{present[1]} is the object, {present[0]} background" if two else _BLACK_AND_WHITE
    return (levels >= 128).astype(np.uint8), meaning


def _by_exact_values(values: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, str] | None:
    """0, 1 and 255, or one value besides 0; None for others."""
    found = {value.item() for value in present[:4]}
    if len(present) <= 3 and 1 in found and found <= {0, 1, _IGNORE}:
        void = "255 is ignored, " if _IGNORE in found else ""
        rest = "0 background" if 0 in found else "nothing is background"
        return values.astype(np.uint8), f"{void}1 is the object, {rest}"
    if len(present) == 2 and 0 in found:
        return (values > 0).astype(np.uint8), f"{present[1]} is the object, 0 background"
    if len(present) == 1 and found <= {_IGNORE, 65535}:
        return np.ones(values.shape, np.uint8), f"{present[0]} is the object, everywhere"
    return None


def _not_black_and_white(levels: np.ndarray, present: np.ndarray, lossy: bool) -> str:
    """Why grey levels are more than black and white with a soft outline; "" if they are not.

    Levels in between must lie near the outline of white, where blur, resizing and compression leave them, or
    in lines that are too thin for white, and be no wider than a blob of a heat map. They fill no area of
    their own, as numbers of classes and objects do. Where they are few, they are several, and most have a
    darker and a brighter neighbour. ``levels`` are (H, W) uint8 or float32 from 0 to 255, ``present`` those
    that occur.
    """
    between = present[(present > 0) & (present < _IGNORE)]
    noisy = lossy or (len(between) >= _NOISY_LEVELS and between[-1] >= _IGNORE - _NOISE)
    reach, margin = (_NOISE, _FLAT_NOISE) if noisy else (0, 0)
    if present[-1] < _IGNORE - reach:
        return "none of them white"
    low, high = cv2.erode(levels, np.ones((3, 3))), cv2.dilate(levels, np.ones((3, 3)))
    white = levels >= _IGNORE - reach
    middle = (levels > reach) & ~white
    inside = np.count_nonzero(middle)
    count, spots = cv2.connectedComponents((middle | white).astype(np.uint8))
    has_white = np.zeros(count, bool)
    has_white[spots[white]] = True
    apart = ~has_white[spots]
    flat = (low == high) & (levels > margin) & (levels < _IGNORE - margin)
    few = _FEW * inside
    if (flat & apart).any() or np.count_nonzero(flat) > few or 2 * _in_squares(levels, middle) > inside:
        return "which fill areas of their own"
    steps = np.count_nonzero(middle & (low < levels) & (levels < high))
    if not noisy and (len(between) == 1 or (len(between) < _NOISY_LEVELS and steps < _STEPS * inside)):
        return "which are no steps between black and white"
    wide = middle & (cv2.dilate((levels <= reach).astype(np.uint8), _THIN) == 0)
    bright = (levels >= 128).astype(np.uint8)
    edge = cv2.dilate(bright, np.ones((3, 3))) - cv2.erode(bright, np.ones((3, 3)))
    soft = max(_OUTLINE, max(levels.shape) // 100)
    far = np.count_nonzero(wide & (apart | (cv2.distanceTransform(1 - edge, cv2.DIST_C, 3) > soft)))
    widest = min(soft * np.count_nonzero(edge & bright), 2 * np.count_nonzero(white))
    if np.count_nonzero(wide) > widest or far > few or 2 * inside > levels.size:
        return "not only at the outline"
    return ""


def _in_squares(levels: np.ndarray, middle: np.ndarray) -> int:
    """The pixels of ``middle`` (H, W) bool that belong to a square of 2x2 with one level."""
    here, right, below, across = levels[:-1, :-1], levels[:-1, 1:], levels[1:, :-1], levels[1:, 1:]
    corners = (here == right) & (here == below) & (here == across) & middle[:-1, :-1]
    covered = np.zeros_like(middle)
    for down, along in ((0, 0), (0, 1), (1, 0), (1, 1)):
        height, width = corners.shape
        covered[down : down + height, along : along + width] |= corners
    return np.count_nonzero(covered)


def _by_palette(image: Image.Image, name: str) -> tuple[np.ndarray, str]:
    """The indices count, and 255 is ignored; of a palette in black, white and grey, the colours count."""
    indices = np.asarray(image)
    used = np.unique(indices)
    colors = _palette_colors(image)
    shown = {int(i): colors[i] for i in used}
    greys = all(red == green == blue for red, green, blue in shown.values())
    if greys and all(color[0] == index for index, color in shown.items()):
        return _by_levels(indices, name)
    black_and_white = set(shown.values()) == {(0, 0, 0), (255,) * 3} and len(used) == 2
    if black_and_white or (greys and len(set(shown.values())) == len(used) > 2 and _IGNORE not in used):
        with suppress(ValueError):  # otherwise the message lists indices, which mask_values takes
            return _by_levels(np.array([c[0] for c in colors], np.uint8)[indices], name)
    objects = [int(i) for i in used if i not in (0, _IGNORE)]
    several = f"{name} holds the palette indices {_listed(used)}"
    if len(objects) > 1 or (not objects and _IGNORE in used):
        example = _example(objects, _IGNORE in used) if objects else "255"
        raise UnclearMask.of_values(several, example)
    extremes = {(0, 0, 0), (255,) * 3}
    if 0 in shown and shown[0] not in extremes and any(shown[i] in extremes for i in objects):
        first = f"#{bytes(shown[0]).hex()} is index 0"
        raise UnclearMask.of_values(f"{several}, where {first}", f"0, or {objects[0]}")
    mask = np.where(indices == _IGNORE, _IGNORE, indices != 0).astype(np.uint8)
    void = ", 255 ignored" if _IGNORE in used else ""
    return mask, f"palette index {objects[0] if objects else 1} is the object{void}, 0 background"


def _by_colors(image: Image.Image, name: str) -> tuple[np.ndarray, str]:
    """Three channels: grey in colour, or one colour on black."""
    rgb = _rgb(image)
    spread = rgb.max(axis=2) - rgb.min(axis=2)
    if not spread.any():
        return _by_levels(rgb[:, :, 0], name, image.format)
    grey = rgb.max(axis=2)
    if spread.max() <= _NOISE and not _not_black_and_white(grey, _present(grey), image.format in _LOSSY):
        return (grey >= 128).astype(np.uint8), _BLACK_AND_WHITE
    colors = _colors(rgb)
    if len(colors) == 2 and colors[0] == 0:
        return (spread > 0).astype(np.uint8), f"{_hex(colors[1])} is the object, black background"
    named = _hex(colors[colors > 0][0])
    example = named if len(colors) <= _MOST_SHOWN else f"{_HALF}, or colours as #ff0000"
    raise UnclearMask.of_values(f"{name} holds the colours {_listed(colors, _hex)}", example)


def _by_alpha(image: Image.Image, alpha: np.ndarray, name: str) -> tuple[np.ndarray, str]:
    """With transparent pixels: what is opaque is the object, if its colours do not say otherwise."""
    present = _present(alpha)
    two = len(present) == 2 and present[0] == 0
    opaque = alpha > 0 if two else alpha >= _OPAQUE
    if not alpha.any():
        raise ValueError(f"{name} is transparent everywhere: save it without transparency")
    if not two and (doubt := _not_black_and_white(alpha, present, lossy=False)):
        several = f"{name} has the alpha values {_listed(present)}"
        raise UnclearMask.of_values(f"{several}, {doubt}", "opaque (from half on)")
    if image.mode == "P" and set(np.asarray(image)[~opaque].tolist()) == {0}:
        used = np.unique(np.asarray(image)[opaque])
        if 1 <= np.count_nonzero(used != _IGNORE) <= _FEW_COLORS:
            return _by_palette(_without_transparency(image), name)
    colors = _colors(_rgb(image)[opaque][None])
    if 1 < len(colors) <= _FEW_COLORS:
        held = f"holds the colours {_listed(colors, _hex)} and transparent pixels"
        raise UnclearMask.of_values(f"{name} {held}", f"opaque, or {_hex(colors[-1])}")
    return opaque.astype(np.uint8), "a cut-out, what is opaque is the object"


# -- what the user says ------------------------------------------------------------------------------------


def _by_rule(image: Image.Image, name: str, rule: MaskRule) -> np.ndarray:
    alpha = _alpha(image)
    if rule.word == "opaque":
        if alpha is None:
            raise ValueError(f"{name} has no alpha channel: mask_values opaque does not fit it")
        shown = alpha >= _OPAQUE
    elif rule.word in ("bright", "dark"):
        values = _grey_values(image)
        values = _rgb(image).max(axis=2) if values is None else values
        shown = (_eight_bits(values, values.max()) >= 128) == (rule.word == "bright")
    else:
        shown = _matches(image, name, rule.objects)  # no objects: nonzero
    mask = shown.astype(np.uint8)
    if alpha is not None and rule.word != "opaque":
        mask[alpha < _OPAQUE] = 0
    if rule.ignored:
        mask[_matches(image, name, rule.ignored)] = _IGNORE
    return mask


def _matches(image: Image.Image, name: str, wanted: frozenset[int] | frozenset[Color]) -> np.ndarray:
    """Which pixels have one of the values; without values, which are not 0."""
    colored = any(isinstance(value, tuple) for value in wanted)
    values = np.asarray(image) if image.mode == "P" else _grey_values(image)
    if not colored and values is not None:
        return np.isin(values, list(wanted)) if wanted else values != 0
    rgb = _rgb(image)
    if not wanted:
        return rgb.any(axis=2)
    if not colored:
        raise ValueError(
            f"{name} holds the colours {_listed(_colors(rgb), _hex)}: give mask_values as #rrggbb"
        )
    reach = _COLOR_REACH if image.format in _LOSSY else 0
    near = [np.abs(rgb.astype(np.int16) - np.array(color)).max(axis=2) <= reach for color in sorted(wanted)]
    return np.logical_or.reduce(near)


# -- pixels ------------------------------------------------------------------------------------------------


def _grey_values(image: Image.Image) -> np.ndarray | None:
    """(H, W) of a single channel, or of three equal ones; None of colours."""
    if image.mode in ("LA", "La"):
        return np.asarray(image)[:, :, 0]
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8)
    if image.mode in ("L", "F") or image.mode.startswith("I"):
        return np.asarray(image)
    if image.mode == "P":
        return None
    rgb = _rgb(image)
    return rgb[:, :, 0] if (rgb == rgb[:, :, :1]).all() else None


def _present(values: np.ndarray) -> np.ndarray:
    """The values that occur, rising."""
    if values.dtype in (np.uint8, np.uint16):  # much faster than sorting
        return np.flatnonzero(np.bincount(values.ravel())).astype(values.dtype)
    return np.unique(values)


def _alpha(image: Image.Image) -> np.ndarray | None:
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        return np.asarray(_full(image).getchannel("A")) if not image.mode.startswith("I") else None
    return None


def _full(image: Image.Image) -> Image.Image:
    """The image as RGBA."""
    return (image.convert("LA") if image.mode == "La" else image).convert("RGBA")


def _rgb(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8, also under transparent pixels."""
    return to_rgb(image) if _alpha(image) is None else np.asarray(_full(image).convert("RGB"))


def _without_transparency(image: Image.Image) -> Image.Image:
    plain = image.copy()
    plain.info.pop("transparency", None)
    return plain


def _palette_colors(image: Image.Image) -> list[Color]:
    """RGB of all 256 indices; those that the palette lacks are black."""
    flat = _without_transparency(image).getpalette("RGB") or []
    flat = flat + [0] * (768 - len(flat))
    return [(flat[i], flat[i + 1], flat[i + 2]) for i in range(0, 768, 3)]


def _colors(rgb: np.ndarray) -> np.ndarray:
    """The colours of (H, W, 3) uint8 as numbers 0xrrggbb, rising."""
    found = np.zeros(1 << 24, bool)
    found[rgb.astype(np.uint32) @ np.array([65536, 256, 1], np.uint32)] = True
    return np.flatnonzero(found)


def _eight_bits(values: np.ndarray, top: float) -> np.ndarray:
    """Grey levels of any type as uint8: 16 bits, or a range of 0 to 1 of floats, are scaled."""
    if values.dtype.kind == "f" and top <= 1:
        return (np.nan_to_num(values) * 255).round().astype(np.uint8)
    return (values.astype(np.int64) >> 8 if top > _IGNORE else values).clip(0, 255).astype(np.uint8)


# -- words -------------------------------------------------------------------------------------------------


def _shown(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _hex(color: int) -> str:
    return f"#{color:06x}"


def _listed(values: np.ndarray, show: Callable[[Any], str] = _shown) -> str:
    """At most `_MOST_SHOWN` values, the last one always: "0, 1, 2, ... 255 (60 in total)"."""
    if len(values) <= _MOST_SHOWN:
        return ", ".join(map(show, values.tolist()))
    first = ", ".join(map(show, values[: _MOST_SHOWN - 1].tolist()))
    return f"{first}, ... {show(values[-1].item())} ({len(values)} in total)"


def _example(objects: list[int], void: bool) -> str:
    listed = ",".join(_shown(value) for value in objects)
    return f"{listed} ignore=255" if void else listed
