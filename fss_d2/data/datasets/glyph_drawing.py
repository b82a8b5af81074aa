"""Draws the images of `glyphs` (80 symbols in many fonts), each a pure function of (seed, size, index)."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFont

from .splits import NUM_FOLDS

__all__ = ["CLASS_NAMES", "SYMBOLS", "GlyphGenerator", "fonts_of", "glyph_bitmap"]

# No two of these look alike in any font, rotated by up to 40 degrees: of O 0 o, I l 1, X x, 5 S, 8 B, 9 g,
# y Y, A Α and similar ones at most one is listed.
SYMBOLS: dict[str, str] = {
    **{f"upper_{c}": c for c in "ABEGHKMNQRSTWY"},
    **{f"lower_{c}": c for c in "adefghirt"},
    **{f"digit_{c}": c for c in "2347"},
    **{"Delta": "Δ", "Xi": "Ξ", "Sigma": "Σ", "Phi": "Φ", "Psi": "Ψ", "Omega": "Ω"},
    **{"alpha": "α", "delta": "δ", "theta": "θ", "lambda": "λ", "mu": "μ"},
    **{"pi": "π", "sigma": "σ", "omega": "ω"},
    **{"zhe": "Ж", "yu": "Ю", "sha": "Ш", "de": "Д"},
    **{"infinity": "∞", "integral": "∫", "root": "√", "for_all": "∀", "element_of": "∈", "tensor": "⊗"},
    **{"not_equal": "≠", "approximately": "≈", "plus_minus": "±", "divide": "÷", "intersection": "∩"},
    **{"arrow_right": "→", "arrow_up": "↑"},
    **{"ampersand": "&", "at": "@", "hash": "#", "percent": "%", "question": "?", "dollar": "$"},
    **{"euro": "€", "pound": "£", "section": "§", "pilcrow": "¶", "double_dagger": "‡"},
    **{"copyright": "©", "asterisk": "*"},
    **{"spade": "♠", "club": "♣", "heart": "♥", "diamond": "♦", "notes": "♫", "loop": "⌘"},
    **{"venus": "♀", "mars": "♂", "star": "★"},
}
CLASS_NAMES: tuple[str, ...] = tuple(SYMBOLS)

_WIDE_FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
)
# TeX's own encodings: only letters and digits have their Unicode code points.
_TEX_FONTS = ("cmb10", "cmr10", "cmss10", "cmti10", "cmtt10")
_FONT_PIXELS = 128


def _font_path(font: str) -> Path:
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"


@cache
def _characters_of(font: str) -> frozenset[str]:
    face = FT2Font(str(_font_path(font)))
    return frozenset(c for c in SYMBOLS.values() if face.get_char_index(ord(c)))


@cache
def fonts_of(class_id: int) -> tuple[str, ...]:
    """Return the names of matplotlib's fonts that hold the symbol of a class."""
    character = SYMBOLS[CLASS_NAMES[class_id]]
    candidates = _WIDE_FONTS + (_TEX_FONTS if character.isascii() and character.isalnum() else ())
    return tuple(font for font in candidates if character in _characters_of(font))


@cache
def glyph_bitmap(class_id: int, font: str) -> np.ndarray:
    """Return the coverage (h, w) uint8, 0..255, of a class's symbol in a font, cropped to its box."""
    typeface = ImageFont.truetype(str(_font_path(font)), _FONT_PIXELS)
    canvas = Image.new("L", (3 * _FONT_PIXELS, 3 * _FONT_PIXELS))
    ImageDraw.Draw(canvas).text((_FONT_PIXELS, _FONT_PIXELS), SYMBOLS[CLASS_NAMES[class_id]], 255, typeface)
    return np.asarray(canvas.crop(canvas.getbbox()))


_NUM_CLASSES = len(CLASS_NAMES)
_OBJECT_COUNTS = (0.25, 0.4, 0.25, 0.1)  # probability of 1, 2, 3, 4 objects
_OBJECT_SIDE = (0.4, 0.75)  # longer side of a symbol over the image's side
_MAX_TURN = 40.0  # degrees of rotation
_MAX_CLUTTER = 3  # background shapes that are no symbols
_MAX_BOLDNESS = 0.045  # growth of strokes on each side, over the symbol's longer side
_MAX_HIDDEN = 0.12  # share of a symbol's pixels that another symbol may hide
_PLACEMENTS = 12  # tries, each smaller, before a distractor is left out
_MIN_CONTRAST = 0.25  # distance in RGB (0..1) between a symbol's mean colour and the background's
_STAGES = {"plan": 0, "background": 1, "objects": 2, "finish": 3}


@dataclass(frozen=True)
class GlyphGenerator:
    """Draws image `index` of the set of a seed.

    The subject of image `index` is class `index % 80`, of fold `f = class % 4`. Its other symbols come from
    fold f and one partner fold, `(f + index // 80) % 4`, so that every image is in the training sets of at
    least two folds.

    >>> image, class_map = GlyphGenerator(seed=0, size=64).generate(5)
    >>> image.shape, class_map.shape, 5 + 1 in class_map
    ((64, 64, 3), (64, 64), True)
    """

    seed: int = 0
    size: int = 160

    def generate(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (image (size, size, 3) uint8 RGB, class map (size, size) uint8: 0 or class id + 1)."""
        image = self.background(index)
        class_map = np.zeros((self.size, self.size), np.uint8)
        rng, ground = self._rng(index, "objects"), image.mean((0, 1))
        for class_id in self.classes(index):
            coverage = self._place(rng, class_id, class_map)
            if coverage is None:
                continue
            texture = _texture(rng, self.size, _contrasting_colour(rng, ground), amplitude=0.2)
            image += coverage[..., None] * (texture - image)
            class_map[coverage >= 0.5] = class_id + 1
        return self.finish(image, index), class_map

    def classes(self, index: int) -> list[int]:
        """Return the distinct class ids planned for image `index`, its subject first."""
        rng, main = self._rng(index, "plan"), index % _NUM_CLASSES
        fold = main % NUM_FOLDS
        partner = (fold + index // _NUM_CLASSES) % NUM_FOLDS
        count = 1 + rng.choice(len(_OBJECT_COUNTS), p=_OBJECT_COUNTS)
        others = [c for c in range(_NUM_CLASSES) if c % NUM_FOLDS in (fold, partner) and c != main]
        return [main, *(int(c) for c in rng.choice(others, count - 1, replace=False))]

    def background(self, index: int) -> np.ndarray:
        """Return the textured and cluttered background (size, size, 3) float32, 0..1, of image `index`."""
        rng = self._rng(index, "background")
        image = _texture(rng, self.size, rng.uniform(0.1, 0.9, 3), amplitude=0.25)
        for _ in range(rng.integers(_MAX_CLUTTER + 1)):
            coverage = _clutter(rng, self.size)
            image += coverage[..., None] * (_texture(rng, self.size, rng.uniform(0, 1, 3), 0.15) - image)
        return image

    def finish(self, image: np.ndarray, index: int) -> np.ndarray:
        """Return a float image (size, size, 3) with uneven light, blur and noise, as uint8."""
        rng = self._rng(index, "finish")
        light = 1 + rng.uniform(0, 0.35) * _ramp(rng, self.size)
        image = cv2.GaussianBlur(image * light[..., None], (0, 0), rng.uniform(0.3, 1.0))
        image = image + rng.uniform(0.005, 0.03) * rng.standard_normal(image.shape, np.float32)
        return (np.clip(image, 0, 1) * 255).round().astype(np.uint8)

    def _rng(self, index: int, stage: str) -> Generator:
        return np.random.default_rng((self.seed, index, _STAGES[stage]))

    def _place(self, rng: Generator, class_id: int, class_map: np.ndarray) -> np.ndarray | None:
        """Return a coverage (size, size) float32 that hides little of the drawn symbols, or None."""
        areas = np.bincount(class_map.ravel(), minlength=_NUM_CLASSES + 1)
        for attempt in range(_PLACEMENTS):
            side = rng.uniform(*_OBJECT_SIDE) * self.size * (1 - 0.5 * attempt / _PLACEMENTS)
            coverage = _symbol(rng, class_id, self.size, side)
            inside = coverage >= 0.5
            hidden = np.bincount(class_map[inside], minlength=_NUM_CLASSES + 1)
            if np.all(hidden[1:] <= _MAX_HIDDEN * np.minimum(areas[1:], inside.sum())):
                return coverage
        return None


def _symbol(rng: Generator, class_id: int, size: int, side: float) -> np.ndarray:
    """Return the coverage (size, size) float32, 0..1, of a rotated symbol about `side` pixels long."""
    fonts = fonts_of(class_id)
    glyph = glyph_bitmap(class_id, fonts[rng.integers(len(fonts))])
    scale = side / max(glyph.shape) * np.exp(rng.uniform(-0.15, 0.15, 2))  # (x, y)
    width, height = np.maximum(2, np.round(scale * glyph.shape[::-1])).astype(int)
    glyph = cv2.resize(glyph, (int(width), int(height)), interpolation=cv2.INTER_AREA)
    border = int(_MAX_BOLDNESS * side)
    glyph = cv2.copyMakeBorder(glyph, *[border] * 4, cv2.BORDER_CONSTANT)
    pen = 2 * int(rng.integers(border + 1)) + 1
    glyph = cv2.dilate(glyph, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (pen, pen)))
    height, width = glyph.shape
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    angle = np.deg2rad(rng.uniform(-_MAX_TURN, _MAX_TURN))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moved = (corners - corners.mean(0)) @ turn.T + rng.uniform(-0.08, 0.08, (4, 2)) * side
    reach = np.minimum(np.abs(moved).max(0), 0.5 * size)
    moved += rng.uniform(reach, size - reach)
    homography = cv2.getPerspectiveTransform(corners, moved.astype(np.float32))
    return cv2.warpPerspective(glyph, homography, (size, size)).astype(np.float32) / 255


def _contrasting_colour(rng: Generator, ground: np.ndarray) -> np.ndarray:
    colours = rng.uniform(0, 1, (32, 3))
    distance = np.linalg.norm(colours - ground, axis=1)
    return colours[np.argmax(distance >= _MIN_CONTRAST)]


def _clutter(rng: Generator, size: int) -> np.ndarray:
    """Return the coverage (size, size) float32 of a line, ellipse or polygon."""
    canvas = np.zeros((size, size), np.uint8)
    kind = rng.integers(3)
    points = rng.integers(0, size, (2, 2))
    if kind == 0:
        cv2.line(canvas, points[0].tolist(), points[1].tolist(), 255, int(rng.integers(1, 7)), cv2.LINE_AA)
    elif kind == 1:
        axes = rng.integers(size // 16, size // 5, 2).tolist()
        cv2.ellipse(canvas, points[0].tolist(), axes, int(rng.integers(180)), 0, 360, 255, -1, cv2.LINE_AA)
    else:
        polygon = points[0] + rng.integers(-size // 4, size // 4, (rng.integers(3, 7), 2))
        cv2.fillPoly(canvas, [polygon.astype(np.int32)], 255, cv2.LINE_AA)
    return canvas.astype(np.float32) / 255


def _texture(rng: Generator, size: int, colour: np.ndarray, amplitude: float) -> np.ndarray:
    """Return a texture (size, size, 3) float32 around a colour: stripes, blobs, clouds, checks or a ramp."""
    pattern = _PATTERNS[rng.integers(len(_PATTERNS))](rng, size)  # -1..1
    grain = 0.25 * _noise(rng, size, size // 2)
    tint = rng.uniform(-amplitude, amplitude, 3).astype(np.float32)
    return np.clip(colour.astype(np.float32) + (pattern + grain)[..., None] * tint, 0, 1)


def _ramp(rng: Generator, size: int) -> np.ndarray:
    angle, axis = rng.uniform(0, 2 * np.pi), np.linspace(-np.sqrt(0.5), np.sqrt(0.5), size, dtype=np.float32)
    return float(np.cos(angle)) * axis + float(np.sin(angle)) * axis[:, None]


def _stripes(rng: Generator, size: int) -> np.ndarray:
    return np.sin(np.pi * rng.uniform(4, 24) * _ramp(rng, size) + rng.uniform(0, 2 * np.pi), dtype=np.float32)


def _checks(rng: Generator, size: int) -> np.ndarray:
    return np.sign(_stripes(rng, size)) * np.sign(_stripes(rng, size))


def _noise(rng: Generator, size: int, cells: int) -> np.ndarray:
    coarse = 2 * rng.random((cells, cells), np.float32) - 1
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_LINEAR)


def _cloud(rng: Generator, size: int) -> np.ndarray:
    return sum(_noise(rng, size, cells) / octave for octave, cells in enumerate((4, 8, 16), 1)) / 1.5


def _blobs(rng: Generator, size: int) -> np.ndarray:
    return np.tanh(8 * _noise(rng, size, int(rng.integers(5, 16))))


_PATTERNS = (_ramp, _stripes, _checks, _cloud, _blobs)
