"""Whether and how much small objects are enlarged, and the windows in which they are seen."""

import numpy as np
import pytest

from fss_d2.data.views import Window
from fss_d2.data.zoom import Zoom, choose_zoom, object_windows, tile_weights, tile_windows


def dots(side: int = 10, count: int = 5, size: tuple[int, int] = (200, 200)) -> np.ndarray:
    """Squares in a row, 30 pixels apart."""
    mask = np.zeros(size, np.uint8)
    for i in range(count):
        mask[20 : 20 + side, 10 + 30 * i : 10 + 30 * i + side] = 1
    return mask


def test_an_object_gets_a_third_of_its_window() -> None:
    assert choose_zoom(dots(20), 25) == Zoom(pytest.approx(0.3), 400 / 40000, many=True)


def test_few_objects_are_enlarged_less() -> None:
    assert choose_zoom(dots(20, 3), 25) == Zoom(pytest.approx(0.5), 400 / 40000, many=False)


def test_the_limit_of_tiles_bounds_the_enlargement() -> None:
    mask = dots(10)
    for most, share in ((25, 1 / 4), (24, 1 / 3.25), (9, 1 / 2.5), (4, 1 / 1.75)):
        zoom = choose_zoom(mask, most)
        assert zoom and zoom.share == pytest.approx(share)
        assert len(tile_windows((200, 200), zoom.share)) <= most
    assert choose_zoom(mask, 1) is choose_zoom(mask, 0) is None


def test_specks_do_not_make_an_object_small() -> None:
    mask = dots(20)
    mask[100:200:4, 0:200:4] = 1  # 1250 pixels that touch nothing
    assert choose_zoom(mask, 25) == choose_zoom(dots(20), 25)


@pytest.mark.parametrize("mask", [dots(20, 5, (60, 160)), dots(0, 0)], ids=["large", "none"])
def test_other_pictures_are_seen_as_they_are(mask: np.ndarray) -> None:
    assert choose_zoom(mask, 25) is None


def test_pixels_of_neither_belong_to_no_object() -> None:
    mask = dots(20)
    assert choose_zoom(np.where(mask == 1, 255, mask), 25) is None


@pytest.mark.parametrize("size", [(200, 200), (520, 696), (256, 300), (90, 1000), (7, 5)])
@pytest.mark.parametrize("share", [0.25, 0.31, 0.6, 0.95])
def test_tiles_cover_a_picture(size: tuple[int, int], share: float) -> None:
    seen, windows = np.zeros(size, int), tile_windows(size, share)
    for window in windows:
        assert window.of(seen).shape == (
            min(max(1, round(share * max(size))), size[0]),
            min(max(1, round(share * max(size))), size[1]),
        )
        window.of(seen)[:] += 1
    assert seen.min() == 1
    assert len(set(windows)) == len(windows)


def test_tiles_of_a_square() -> None:
    windows = tile_windows((100, 100), 0.4)
    assert len(windows) == 9
    assert windows[:3] == [Window(0, 0, 40, 40), Window(30, 0, 70, 40), Window(60, 0, 100, 40)]


def test_windows_of_a_support_show_most_of_its_objects() -> None:
    mask = dots(20, 6)
    windows = object_windows(mask, 0.3)
    assert windows[0] == Window(0, 0, 60, 60)  # two objects, as far left as the picture reaches
    seen = np.zeros_like(mask)
    for window in windows:
        window.of(seen)[:] = 1
    assert seen[mask == 1].all()
    assert len(windows) == 4
    assert len(object_windows(dots(10, 8, (300, 300)), 0.1)) == 6


def test_the_middle_of_a_tile_counts_most() -> None:
    np.testing.assert_array_equal(tile_weights(3, 4), [[1, 2, 2, 1], [2, 4, 4, 2], [1, 2, 2, 1]])
