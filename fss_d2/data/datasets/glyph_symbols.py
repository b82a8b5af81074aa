"""The 80 classes of `glyphs`, the fonts that draw them, and their bitmaps."""

from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

__all__ = ["CLASS_NAMES", "SYMBOLS", "fonts_of", "glyph_bitmap"]

# No two of these are taken for each other under a turn of 40 degrees in any font: of O 0 o, I l 1, X x,
# 5 S, 8 B, 9 g, y Y, A Α and the like at most one is listed.
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
# TeX's own encodings: only letters and digits stand at their Unicode places.
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
