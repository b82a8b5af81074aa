"""Boxes and strokes whose numbers are far outside of the image."""

import time

import numpy as np
import pytest

from fss_d2.inference.annotations import Box, Boxes, Scribble


@pytest.mark.parametrize("far", [1e4, 3e6, 1e9])
def test_strokes_are_cut_at_the_border(far: float) -> None:
    for near, distant in (
        ([(10, 20), (64 + 100, 20)], [(10, 20), (far, 20)]),
        ([(-100, 5), (164, 5)], [(-far, 5), (far, 5)]),
        ([(10, 20), (10, -100)], [(10, 20), (10, -far)]),
        ([(0, 0), (200, 200)], [(0, 0), (far, far)]),
        ([(5, 40), (10, 20), (10, -100)], [(5, 40), (10, 20), (10, -far)]),
    ):
        expected = Scribble(near, width=3).mask(48, 64)
        assert (expected == 1).any()
        np.testing.assert_array_equal(Scribble(distant, width=3).mask(48, 64), expected)
    for outside in ([(far, far)], [(far, 3), (far, 40)], [(-far, -1e4), (far, -1e4)]):
        assert (Scribble(outside, width=3).mask(48, 64) == 255).all()


def test_strokes_of_no_image_are_refused() -> None:
    for point in ((1e12, 5), (5, -1e300)):
        with pytest.raises(ValueError, match=r"more than 1e\+09 pixels away"):
            Scribble([(1, 1), point])


def test_boxes_of_any_size_take_the_memory_of_one_mask() -> None:
    assert Box(-1e308, 5, 1e308, 7).mask(48, 64).sum() == 2 * 64
    started = time.process_time()
    mask = Boxes([(i % 7, 0, 1e30, 2) for i in range(20_000)]).mask(1000, 1000)  # 20 GB if each had its own
    assert mask.sum() == 2000 and time.process_time() - started < 5
