"""What the values of mask files mean: recognised with exact pixels, said by the user, or refused by name."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from fss_d2.data.mask_decoding import decode_mask
from fss_d2.data.mask_values import parse_mask_values

# Three objects of 8x6 pixels on 40x30, the first with a ring of 2 pixels around it.
OBJECTS = np.zeros((30, 40), np.uint8)
for number, left in enumerate((4, 16, 28), start=1):
    OBJECTS[12:18, left : left + 8] = number
ALL = (OBJECTS > 0).astype(np.uint8)
ONE = (OBJECTS == 1).astype(np.uint8)
VOID = ONE.copy()
VOID[10:20, 2:14] = 255
VOID[12:18, 4:12] = 1
VOC = [0, 0, 0, 128, 0, 0, 0, 128, 0, *[64] * (252 * 3), 224, 224, 192]


def decoded(image: Image.Image | np.ndarray, rule: str | None = None) -> np.ndarray:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    mask, meaning = decode_mask(image, "mask file m.png", parse_mask_values(rule).of())
    assert mask.dtype == np.uint8 and meaning and "\n" not in meaning
    return mask


def palette(indices: np.ndarray, colors: list[int]) -> Image.Image:
    image = Image.fromarray(indices)
    image.putpalette(colors)
    return image


def saved(image: Image.Image, kind: str, **options: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    opened = Image.open(buffer)
    opened.load()
    return opened


def drawn(scale: int = 4) -> Image.Image:
    """A disc and a triangle in black and white, drawn larger and reduced: with grey along the outline."""
    big = Image.new("L", (160 * scale, 120 * scale))
    draw = ImageDraw.Draw(big)
    draw.ellipse([20 * scale, 30 * scale, 80 * scale, 90 * scale], fill=255)
    draw.polygon([(100 * scale, 20 * scale), (150 * scale, 60 * scale), (110 * scale, 110 * scale)], fill=255)
    return big.resize((160, 120), Image.Resampling.BOX)


SOFT = np.asarray(drawn())


@pytest.mark.parametrize(
    "image",
    [
        ALL,
        ALL * 255,
        ALL * 15,  # one class number
        ALL.astype(np.uint16) * 65535,
        ALL.astype(np.uint16) * 300,
        ALL.astype(np.int32) * 70_000,
        ALL.astype(np.float32),
        ALL.astype(bool),
        np.where(ALL, 200, 30).astype(np.uint8),
        np.repeat(ALL[:, :, None] * 255, 3, axis=2),
        np.dstack([ALL * 255] * 3 + [np.full_like(ALL, 255)]),
        np.dstack([ALL * 255, np.full_like(ALL, 255)]),
        np.dstack([ALL * 128, ALL * 0, ALL * 0]),  # one colour on black
        palette(ALL, VOC),
        palette(ALL * 2, VOC),
        palette(ALL, [255, 0, 0, 0, 255, 0]),
        palette(1 - ALL, [255, 255, 255, 0, 0, 0]),  # of black and white the colours count
        palette(ALL, [0, 0, 0]),  # one colour: the indices count
    ],
)
def test_one_value_of_the_object(image: Image.Image | np.ndarray) -> None:
    np.testing.assert_array_equal(decoded(image), ALL)


@pytest.mark.parametrize(
    "image",
    [
        VOID,
        VOID.astype(np.uint16),
        np.repeat(VOID[:, :, None], 3, axis=2),
        palette(VOID, VOC),
        palette(np.where(VOID == 1, 15, VOID), VOC),
        palette(VOID, [i for i in range(256) for _ in range(3)]),
    ],
)
def test_255_next_to_the_object_is_ignored(image: Image.Image | np.ndarray) -> None:
    np.testing.assert_array_equal(decoded(image), VOID)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("blur", [0, 2, 5])
def test_a_soft_outline_is_cut_at_half(blur: int, depth: int) -> None:
    image = Image.fromarray(SOFT).filter(ImageFilter.GaussianBlur(blur))
    levels = np.asarray(image)
    stored = levels.astype(np.uint16) * 257 if depth == 16 else levels
    np.testing.assert_array_equal(decoded(stored), levels >= 128)
    np.testing.assert_array_equal(decoded(Image.fromarray(levels).convert("RGB")), levels >= 128)


def test_holes_and_specks_may_be_soft_too() -> None:
    """A blur leaves flat spots in gaps of two pixels, and turns specks grey."""
    levels = SOFT.copy()
    levels[60, 30:70:3] = 0
    levels[5:10:2, 5:8] = 255
    blurred = np.asarray(Image.fromarray(levels).filter(ImageFilter.BoxBlur(1)))
    np.testing.assert_array_equal(decoded(blurred), blurred >= 128)


@pytest.mark.parametrize("level", [100, 150])
def test_a_small_grey_object_is_no_soft_outline(level: int) -> None:
    levels = SOFT.copy()
    levels[2:9, 2:9] = level
    with pytest.raises(ValueError, match="which fill areas of their own"):
        decoded(levels)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("quality", [10, 40, 75, 95])
def test_jpeg_is_black_and_white(quality: int, mode: str) -> None:
    """Also after a copy to PNG, which keeps the traces of compression."""
    image = saved(drawn().convert(mode), "JPEG", quality=quality)
    expected = np.asarray(image.convert("RGB")).max(axis=2) >= 128
    for copy in (image, Image.fromarray(np.asarray(image))):
        np.testing.assert_array_equal(decoded(copy), expected)
    assert np.count_nonzero(expected != (SOFT >= 128)) < 60


def test_jpeg_with_levels_0_1_and_255_has_no_void() -> None:
    image = Image.fromarray(np.where(ONE, 255, 1).astype(np.uint8))
    image.format = "JPEG"
    np.testing.assert_array_equal(decoded(image), ONE)


def cut_out(shape: np.ndarray) -> np.ndarray:
    photo = np.random.default_rng(0).integers(0, 256, (*shape.shape, 3), dtype=np.uint8)
    return np.dstack([photo, shape * 255])


@pytest.mark.parametrize(
    "image",
    [
        cut_out(ALL),
        np.dstack([cut_out(ALL)[..., 0], ALL * 255]),  # LA
        np.dstack([ALL * 230, ALL * 0, ALL * 40, ALL * 255]),  # one colour on a transparent layer
        np.dstack([ALL * 230, ALL * 0, ALL * 40, ALL * 100]),  # with a translucent brush
        np.dstack([ALL * 0, ALL * 0, ALL * 0, ALL * 255]),  # black
    ],
)
def test_what_is_opaque_is_the_object(image: np.ndarray) -> None:
    np.testing.assert_array_equal(decoded(image), ALL)


def test_a_soft_cut_out_is_cut_at_half() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decoded(np.dstack([photo, SOFT])), SOFT >= 128)


def test_a_soft_outline_in_a_grey_palette() -> None:
    """As GIF and reduced PNG store it: the grey of each index counts, in whatever order."""
    levels, order = np.unique(SOFT), np.random.default_rng(0).permutation(len(np.unique(SOFT)))
    assert 8 < len(levels) < 255
    colors = np.zeros(len(levels), np.uint8)
    colors[order] = levels
    indices = order[np.searchsorted(levels, SOFT)].astype(np.uint8)
    np.testing.assert_array_equal(decoded(palette(indices, colors.repeat(3).tolist())), SOFT >= 128)


def test_a_transparent_palette_index_0_is_background() -> None:
    image = palette(VOID, VOC)
    image.info["transparency"] = 0
    np.testing.assert_array_equal(decoded(saved(image, "PNG")), VOID)


SAY = r": say which are the object with mask_values \(--mask-values\), such as "
GRADIENT = np.tile(np.linspace(0, 255, 160).astype(np.uint8), (120, 1))
THIN = np.zeros((6, 8), np.uint8)  # numbers in lines that are too thin to fill an area
THIN[1, 2:4], THIN[3], THIN[5] = 1, 2, 255
HEAT = (255 * np.exp(-((np.indices((30, 40)) - 15) ** 2).sum(axis=0) / 72)).round().astype(np.uint8)
RED, BLUE = np.array([255, 0, 0], np.uint8), np.array([0, 0, 255], np.uint8)
TWO_COLORS = (ONE[:, :, None] * RED + (OBJECTS == 2)[:, :, None] * BLUE).astype(np.uint8)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (OBJECTS, rf"holds the values 0, 1, 2, 3{SAY}1,2,3$"),
        (OBJECTS.astype(np.uint16) * 1000, rf"holds the values 0, 1000, 2000, 3000{SAY}1000,2000,3000$"),
        (np.where(OBJECTS == 3, 65535, OBJECTS.astype(np.uint16)), r"holds the values 0, 1, 2, 65535: say"),
        (np.where(VOID == 1, 15, VOID), rf"holds the values 0, 15, 255{SAY}15 ignore=255$"),
        (np.where(VOID == 0, 7, np.where(VOID == 1, 7, VOID)), rf"holds the values 7, 255{SAY}7 ignore=255$"),
        (
            np.where(VOID == 255, 128, VOID * 255),
            rf"holds the values 0, 128, 255{SAY}255 ignore=128, or 128 ignore=255$",
        ),
        (THIN, rf"holds the values 0, 1, 2, 255{SAY}1,2 ignore=255$"),
        (
            np.where(VOID == 255, 127, VOID * 255)[::5, ::5],
            r"holds the values 0, 127, 255: say",
        ),  # a thin ring
        (np.where(THIN == 1, 15, THIN), r"holds the values 0, 2, 15, 255: say"),
        (
            np.where(OBJECTS == 2, 250, OBJECTS),
            rf"values 0, 1, 3, 250{SAY}1,3,250, or bright \(from half on\)$",
        ),
        (
            np.where(OBJECTS == 2, 254, ALL * 255),
            rf"values 0, 254, 255{SAY}bright \(from half on\), or 254 ig",
        ),
        (np.where(ONE, 7, 3).astype(np.uint8), rf"holds the values 3, 7{SAY}3,7$"),
        (np.full_like(ALL, 15), rf"holds the values 15{SAY}15$"),
        (
            GRADIENT,
            r"holds the values 0, 1, 3, 4, 6, 8, 9, \.\.\. 255 \(160 in total\), not only at the outline",
        ),
        (HEAT, "not only at the outline: say .* bright"),
        (GRADIENT // 2, "none of them white: say .* bright"),
        ((GRADIENT / 255).astype(np.float32), r"160 in total"),
        (-ALL.astype(np.int32), "holds the values -1, 0: save it with 0 for background"),
        (np.full((4, 4), np.nan, np.float32), "holds the values nan: save it with 0"),
        (palette(OBJECTS, VOC), rf"holds the palette indices 0, 1, 2, 3{SAY}1,2,3$"),
        (
            palette(OBJECTS, [0, 0, 0, 85, 85, 85, 170, 170, 170, 255, 255, 255]),
            rf"indices 0, 1, 2, 3{SAY}1,2,3$",
        ),
        (palette(ALL * 255, VOC), rf"holds the palette indices 0, 255{SAY}255$"),
        (palette(np.where(VOID == 0, 3, VOID), VOC), rf"palette indices 1, 3, 255{SAY}1,3 ignore=255$"),
        (
            palette(1 - ALL, [255, 0, 0, 0, 0, 0]),
            rf"palette indices 0, 1, where #ff0000 is index 0{SAY}0, or 1$",
        ),
        (TWO_COLORS, rf"holds the colours #000000, #0000ff, #ff0000{SAY}#0000ff$"),
        (np.where(ONE[:, :, None], RED, 255).astype(np.uint8), rf"the colours #ff0000, #ffffff{SAY}#ff0000$"),
        (
            np.dstack([TWO_COLORS, TWO_COLORS.max(axis=2)]),
            rf"holds the colours #0000ff, #ff0000 and transparent pixels{SAY}opaque, or #ff0000$",
        ),
        (
            np.dstack([ALL * 255] * 3 + [(OBJECTS != 3) * np.uint8(255)]),
            "colours #000000, #ffffff and transp",
        ),
        (np.dstack([ALL * 9] * 3 + [ALL * 0]), "is transparent everywhere: save it without transparency"),
        (
            np.dstack([TWO_COLORS, np.resize(GRADIENT, ALL.shape)]),
            r"alpha values 0, 1, .*opaque \(from half on\)",
        ),
    ],
)
def test_other_meanings_are_refused_with_what_was_found(
    image: Image.Image | np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=rf"^mask file m\.png .*{message}") as caught:
        decoded(image)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 260


def test_a_photograph_is_no_mask(photographs: Path) -> None:
    for path in sorted((photographs / "voc_coseg/Dog/images").iterdir())[:5]:
        for mode in ("L", "RGB"):
            with Image.open(path) as photo, pytest.raises(ValueError, match="say which are the object"):
                decoded(photo.convert(mode))


@pytest.mark.parametrize(
    ("image", "rule", "expected"),
    [
        (OBJECTS, "1,2,3", ALL),
        (OBJECTS, "1-3", ALL),
        (OBJECTS, "nonzero", ALL),
        (OBJECTS, "1", ONE),
        (1 - ALL, "0", ALL),  # black on white
        (OBJECTS.astype(np.uint16) * 1000, "1000,2000,3000", ALL),
        (palette(OBJECTS, VOC), "1", ONE),
        (palette(OBJECTS, VOC), "#800000", ONE),
        (np.repeat(OBJECTS[:, :, None], 3, axis=2), "1", ONE),
        (np.where(VOID == 1, 15, VOID), "15 ignore=255", VOID),
        (np.where(VOID == 255, 128, VOID * 255), "255 ignore=128", VOID),
        (GRADIENT, "bright", GRADIENT >= 128),
        (GRADIENT, "dark", GRADIENT < 128),
        (TWO_COLORS, "#ff0000", ONE),
        (TWO_COLORS, "#ff0000 ignore=#0000ff", np.where(OBJECTS == 2, 255, ONE)),
        (TWO_COLORS, "nonzero", (OBJECTS == 1) | (OBJECTS == 2)),
        (np.dstack([TWO_COLORS, TWO_COLORS.max(axis=2)]), "opaque", (OBJECTS == 1) | (OBJECTS == 2)),
        (np.dstack([TWO_COLORS, TWO_COLORS.max(axis=2)]), "#ff0000", ONE),
    ],
)
def test_values_that_the_user_names(image: Image.Image | np.ndarray, rule: str, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(decoded(image, rule), expected)


def test_named_colours_survive_jpeg() -> None:
    large = TWO_COLORS.repeat(8, axis=0).repeat(8, axis=1)
    image = saved(Image.fromarray(large), "JPEG", quality=90, subsampling=0)
    expected = ONE.repeat(8, axis=0).repeat(8, axis=1)
    assert np.count_nonzero(decoded(image, "#ff0000") != expected) < 10


@pytest.mark.parametrize(
    ("image", "rule", "message"),
    [
        (TWO_COLORS, "1", "holds the colours #000000, #0000ff, #ff0000: give mask_values as #rrggbb"),
        (OBJECTS, "opaque", "has no alpha channel: mask_values opaque does not fit it"),
    ],
)
def test_rules_that_do_not_fit_the_file(image: np.ndarray, rule: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^mask file m\.png {message}"):
        decoded(image, rule)
