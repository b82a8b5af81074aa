"""Outlines are checked against the frame of their picture, then drawn; pixels are counted by hand."""

import itertools
import math
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
import pytest

from fss_d2.data.outlines import (
    box_outline,
    checked_frame,
    checked_outline,
    disc,
    draw_outlines,
    has_outline,
    is_empty,
    overhang,
)

FRAME = (48, 64)
SQUARE = [20, 10, 40, 10, 40, 30, 20, 30]  # 400 pixels
CORNERS = [[20, 10], [40, 10], [40, 30], [20, 30]]


def drawn(given: Any, frame: tuple[int, int] = FRAME) -> np.ndarray:
    return draw_outlines([checked_outline(given, frame)], frame)


def square() -> np.ndarray:
    mask = np.zeros(FRAME, np.uint8)
    mask[10:30, 20:40] = 1
    return mask


@pytest.mark.parametrize(
    "given",
    [
        [SQUARE],
        CORNERS,
        [CORNERS],
        SQUARE,
        [{"x": x, "y": y} for x, y in CORNERS],
        [[{"x": x, "y": y} for x, y in CORNERS]],
        [tuple(SQUARE)],
        [np.array(SQUARE)],
        [SQUARE, []],
        [SQUARE, [1, 2], [5, 6, 7, 8]],  # stray pixels of contours
        [[corner] for corner in CORNERS],  # OpenCV
        [[[corner] for corner in CORNERS]],
        [[float(v) for v in SQUARE]],
    ],
)
def test_every_way_to_write_a_square(given: Any) -> None:
    np.testing.assert_array_equal(drawn(given), square())


def test_what_is_in_the_form_of_coco_is_not_copied() -> None:
    polygons, packed = [SQUARE, [1.5, 2.5, 9.5, 2.5, 9.5, 8.5]], coco_mask.encode(np.asfortranarray(square()))
    assert checked_outline(polygons, FRAME) is polygons
    assert checked_outline(packed, FRAME) is packed


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([[20, 10, 20, 20]], r"has fewer than 3 corners \(2\); give a box as 'bbox'"),
        ([[20, 10], [40, 10]], r"has fewer than 3 corners \(2\)"),
        ([[1, 2], [5, 6, 7, 8]], r"has fewer than 3 corners \(1\); draw it again"),
        ([[20, 10, 40, 10, 40, 30, 20]], "has 7 numbers, an odd number"),
        ([[20, 10, 0, 40, 10, 0, 40, 30, 0]], "leave out the third value of each corner"),
        ([[20, 10, 2, 40, 10, 2, 40, 30, 2, 20, 30, 2]], "each third number of its outline is 0, 1 or 2"),
        (
            [[20, 10, 7, 40, 10, 7, 40, 30, 7, 20, 30, 7]],
            "each third number of its outline is 7: give x and y",
        ),
        (
            [[20, 10, -1.5, 40, 10, -1.5, 40, 30, -1.5, 20, 30, -1.5]],
            r"each third number .* is -1\.5: give x and",
        ),
        ([[20, 10, 0.0], [40, 10, 0.0], [40, 30, 0.0]], "has 3 numbers, an odd number"),
        ([[220, 210, 240, 210, 240, 230, 220, 230]], r"x 220 to 240, y 210 to 230\) lies outside"),
        ([[-40, 10, -20, 10, -20, 30]], r"x -40 to -20, y 10 to 30\) lies outside"),
        ([SQUARE, [70, 50, 80, 50, 80, 60]], "lies outside the picture"),
        ([[0.3, 0.2, 0.6, 0.2, 0.6, 0.6]], "all its numbers lie from 0 to 1: they are shares"),
        ([[0, 0, 1, 0, 1, 1, 0, 1]], "all its numbers lie from 0 to 1: they are shares"),
        ([[math.nan, 10, 40, 10, 40, 30]], "has the value nan; give finite numbers"),
        ([[20, 10, 40, math.inf, 40, 30]], "has the value inf; give finite numbers"),
        ([[20, 10, 1e9, 10, 1e9, 30]], "has the value 1000000000.0, far outside the picture"),
        ([[20, 10, -3e8, 10, 40, 30]], "has the value -300000000.0, far outside the picture"),
        ([[20, 10, 2**31, 10, 40, 30]], "has the value 2147483648, far outside the picture"),
        ([[20, 10, 10**400, 10, 40, 30]], "has the value a huge number; give finite numbers"),
        ([[20.5, 10, 10**400, 10, 40, 30]], "has the value a huge number; give finite numbers"),
        ([[1e308, 10, 1e308, 10, 40, 30]], "has the value 1e[+]308; give finite numbers"),
        ([["20", "10", "40", "10", "40", "30"]], "holds '20' where a number belongs"),
        ([[20, 10, None, 10, 40, 30]], "holds None where a number belongs"),
        ([[20, 10, True, 10, 40, 30]], "holds True where a number belongs"),
        ([[[[20, 10]], 40, 10, 40, 30, 3]], r"holds \[20, 10\] where a number belongs"),
        ([{"x": 1}], "holds {'x': 1} where a number belongs"),
        ("polygon", "its outline is 'polygon'; give polygons"),
        (7, "its outline is 7; give polygons"),
        ([], "it has no outline"),
        ({"counts": [3072]}, "its run lengths have no 'size'"),
        ({"size": [48, 64]}, "its run lengths have no 'counts'"),
        ({"size": [64, 48], "counts": [3072]}, r"RLE of size \[64, 48\], the image is \[48, 64\]"),
        ({"size": 3072, "counts": [3072]}, "RLE of size 3072"),
        ({"size": [48, 64], "counts": [970, 20, 700]}, "add up to 1690 pixels, the picture has 3072"),
        ({"size": [48, 64], "counts": [970, 20, 7000]}, "add up to 7990 pixels, the picture has 3072"),
        ({"size": [48, 64], "counts": [3080, -20, 12]}, "its run lengths hold -20; none can be negative"),
        ({"size": [48, 64], "counts": [970.5, 20, 700]}, "its run lengths hold 970.5; give whole numbers"),
        ({"size": [48, 64], "counts": ["970", 20, 700]}, "its run lengths hold '970'"),
        ({"size": [48, 64], "counts": [True, 3071]}, "its run lengths hold True"),
        ({"size": [48, 64], "counts": [2**70, 3]}, "more than any picture"),
        ({"size": [48, 64], "counts": 3072}, "its run lengths are 3072; give a list or COCO's text"),
        ({"size": [48, 64], "counts": ""}, "are not COCO's text"),
        ({"size": [48, 64], "counts": "nö"}, "are not COCO's text"),
        ({"size": [48, 64], "counts": "oooo"}, "is cut off"),
        ({"size": [48, 64], "counts": "ooooooooooooo0"}, "a number larger than any picture"),
        ({}, "its run lengths have no 'size'"),
    ],
)
def test_what_cannot_be_an_outline(given: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as error:
        checked_outline(given, FRAME)
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("polygon", "expected"),
    [
        ([-10, -10, 10, -10, 10, 10, -10, 10], (slice(0, 10), slice(0, 10))),
        ([50, 40, 90, 40, 90, 99, 50, 99], (slice(40, 48), slice(50, 64))),
        ([-200, -150, 300, -150, 300, 200, -200, 200], (slice(0, 48), slice(0, 64))),
        ([30, -99, 34, -99, 34, 99, 30, 99], (slice(0, 48), slice(30, 34))),
    ],
)
def test_what_lies_outside_is_cut_off(polygon: list[int], expected: tuple[slice, slice]) -> None:
    mask = np.zeros(FRAME, np.uint8)
    mask[expected] = 1
    np.testing.assert_array_equal(drawn([polygon]), mask)
    assert overhang([polygon], FRAME) > 2


def test_a_slanted_outline_is_cut_where_it_leaves_the_picture() -> None:
    """The same as the part of a larger picture."""
    polygon = [10, 5, 120, 30, 15, 100]
    np.testing.assert_array_equal(drawn([polygon]), drawn([polygon], (200, 200))[:48, :64])


def test_a_figure_of_eight_is_filled_in_both_halves() -> None:
    mask = drawn([[10, 10, 30, 30, 30, 10, 10, 30]])
    assert mask[20, 12] and mask[20, 27] and not mask[12, 20] and not mask[27, 20]


def test_an_outline_outside_but_for_its_box_marks_nothing() -> None:
    """Its box meets the picture, the triangle does not: no corner is moved to the border."""
    assert not drawn([[100, -5, 100, 80, 66, 80]], (48, 70)).any()


def test_run_lengths_with_empty_runs() -> None:
    """pycocotools stops where two runs of 0 meet."""
    counts = [0, 0, 490, 20, 0, 0, 28, 0, 0, 20, 3072 - 558]
    flat = np.repeat(np.arange(len(counts)) % 2, counts)
    expected = flat.reshape(64, 48).T
    np.testing.assert_array_equal(drawn({"size": [48, 64], "counts": counts}), expected)
    both = [checked_outline({"size": [48, 64], "counts": counts}, FRAME)] * 2
    np.testing.assert_array_equal(draw_outlines(both, FRAME), expected)


def test_the_text_of_run_lengths_is_read_as_pycocotools_writes_it() -> None:
    rng = np.random.default_rng(0)
    for height, width in itertools.product((1, 7, 48), (1, 33, 700)):
        mask = np.asfortranarray(rng.random((height, width)) < rng.choice([0.02, 0.5, 0.98]), dtype=np.uint8)
        packed = coco_mask.encode(mask)
        for counts in (packed["counts"], packed["counts"].decode()):
            given = {"size": [height, width], "counts": counts}
            np.testing.assert_array_equal(drawn(given, (height, width)), mask)


def test_run_lengths_that_hang_pycocotools_are_refused() -> None:
    cut = coco_mask.encode(np.asfortranarray(square()))["counts"][:-2]
    with pytest.raises(ValueError, match=r"add up to|cut off"):
        checked_outline({"size": [48, 64], "counts": cut}, FRAME)


def test_many_outlines_are_joined() -> None:
    mask = np.zeros((60, 90), np.uint8)
    mask[::2, ::3] = 1
    outlines = [[[x, y, x + 1, y, x + 1, y + 1, x, y + 1]] for y, x in np.argwhere(mask).tolist()]
    outlines = [checked_outline(outline, (60, 90)) for outline in outlines if max(outline[0]) > 1]
    mask[0, 0] = 0
    np.testing.assert_array_equal(draw_outlines(outlines, (60, 90)), mask)


def test_an_outline_that_would_take_all_memory() -> None:
    zigzag = [v for i in range(200_000) for v in (0.5, 4000 * (i % 2))]
    with pytest.raises(ValueError, match="too long for 4000x4000 pixels"):
        checked_outline([zigzag], (4000, 4000))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, False),
        ([], False),
        ([[]], False),
        ([[], []], False),
        ("None", False),
        ("[]", False),
        (math.nan, False),
        ({}, False),
        ([[1, 2]], True),
        ("x", True),
        (0, True),
        ([0], True),
    ],
)
def test_which_objects_have_no_outline(given: Any, expected: bool) -> None:
    assert has_outline(given) is expected


def test_boxes_cover_the_pixels_that_they_touch() -> None:
    assert drawn(box_outline([45, 10, 15, 15], FRAME)).sum() == 225
    assert drawn(box_outline([45.5, 10.5, 1, 1], FRAME)).sum() == 4
    assert drawn(box_outline([60, 40, 100, 100], FRAME)).sum() == 4 * 8


@pytest.mark.parametrize(
    "box",
    [
        *(None, [], "box", [1, 2, 3], [1, 2, 0, 4], [1, 2, -3, 4], [1, 2, math.nan, 4], [1, 2, "3", 4]),
        *([1, 2, 1e12, 4], [0.1, 0.2, 0.5, 0.5], [100, 10, 5, 5], [-10, 10, 5, 5], [True, 1, 5, 5], 5, {}),
    ],
)
def test_what_cannot_be_a_box(box: Any) -> None:
    with pytest.raises(ValueError, match="its box"):
        box_outline(box, FRAME)


@pytest.mark.parametrize(
    ("centre", "radius", "expected"),
    [
        ((10.5, 20.5), 0.4, [(20, 10)]),
        ((10.5, 20.5), 1, [(19, 10), (20, 9), (20, 10), (20, 11), (21, 10)]),
        ((10, 20), 1, [(19, 9), (19, 10), (20, 9), (20, 10)]),
        ((10.2, 20.2), 0.1, [(20, 10)]),  # no pixel's centre lies on it
        ((0, 0), 1, [(0, 0)]),
    ],
)
def test_small_circles(centre: tuple[float, float], radius: float, expected: list[tuple[int, int]]) -> None:
    assert [tuple(pixel) for pixel in np.argwhere(disc(centre, radius, FRAME)).tolist()] == expected


def test_large_circles() -> None:
    y, x = np.ogrid[:400, :500]
    expected = (x + 0.5 - 240) ** 2 + (y + 0.5 - 210) ** 2 <= 199**2
    np.testing.assert_array_equal(disc((240, 210), 199, (400, 500)), expected)
    assert disc((30, 20), 180, FRAME).all()
    for centre, radius in (((200, 20), 10), ((20, 20), 0), ((20, math.nan), 3), ((20, 20), 1e9)):
        with pytest.raises(ValueError, match=r"circle|outside"):
            disc(centre, radius, FRAME)


def test_frames() -> None:
    assert checked_frame(48, 64.0) == (48, 64)
    for side in (0, -3, 2.5, None, "48", True, math.nan, math.inf, 10**40):
        with pytest.raises(ValueError, match="its height is"):
            checked_frame(side, 64)


def test_which_outlines_have_no_area() -> None:
    assert is_empty([[20, 10, 40, 10, 30, 10]]) and is_empty([[5, 5, 5, 5, 5, 5]])
    assert not is_empty([[20, 10, 40, 10, 30, 11]]) and not is_empty([[10, 10, 30, 30, 30, 10, 10, 30]])
    assert is_empty({"size": [48, 64], "counts": [3072]}) and not is_empty(
        {"size": [48, 64], "counts": [0, 3072]}
    )
