"""Polygons that give the mask back when they are filled."""

import time

import cv2
import numpy as np
import pytest

from fss_d2.label.writers import mask_polygons
from tests.label.fakes import disc


def fill(polygons: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Fill each polygon by itself, as programs do that read one per line; (H, W) bool."""
    filled = np.zeros(shape, np.uint8)
    for polygon in polygons:
        one = np.zeros(shape, np.uint8)
        cv2.fillPoly(one, [polygon.astype(np.int32)], 1)
        filled |= one
    return filled.astype(bool)


def ring(inner: int = 10, outer: int = 20) -> np.ndarray:
    return disc((60, 70), (30, 35), outer) & ~disc((60, 70), (30, 35), inner)


def swiss_cheese() -> np.ndarray:
    """Holes side by side, above each other, one pixel apart; an island in a hole; a hole in the island."""
    mask = np.zeros((60, 70), bool)
    mask[0:55, 3:70] = True
    for top, left in ((5, 10), (5, 18), (5, 26), (12, 9), (14, 30), (20, 17)):
        mask[top : top + 6, left : left + 7] = False
    mask[30:52, 20:60] = False
    mask[35:48, 30:50] = True
    mask[40:43, 36:44] = False
    return mask


MASKS = {
    "disc": disc((60, 70), (30, 35), 20),
    "whole image": np.ones((7, 9), bool),
    "ring": ring(),
    "thin ring": ring(19, 20),
    "swiss cheese": swiss_cheese(),
    "pixel": np.eye(1, 12, 5, dtype=bool),
    "line": np.eye(9, 12, dtype=bool),
    "corner": np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0]], bool),
    "nothing": np.zeros((5, 5), bool),
}


@pytest.mark.parametrize("name", MASKS)
def test_filling_gives_the_mask_back(name: str) -> None:
    mask = MASKS[name]
    polygons = mask_polygons(mask)
    count = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] - 1
    assert len(polygons) == count
    assert all(len(polygon) >= 3 for polygon in polygons)
    np.testing.assert_array_equal(fill(polygons, mask.shape), mask)


@pytest.mark.parametrize("density", [0.3, 0.5, 0.7, 0.9])
def test_noise_comes_back_too(density: float) -> None:
    """Any topology: hundreds of parts and holes, diagonal neighbours, borders."""
    for seed in range(10):
        mask = np.random.default_rng(seed).random((37, 41)) < density
        np.testing.assert_array_equal(fill(mask_polygons(mask), mask.shape), mask)


def test_thousands_of_holes_take_no_time() -> None:
    """60 x 60 holes of 8 x 8 pixels; a search of the growing outline for each hole takes 5 s or more."""
    mask = np.ones((61 * 16, 61 * 16), bool)
    for top in range(8, 60 * 16, 16):
        for left in range(8, 60 * 16, 16):
            mask[top : top + 8, left : left + 8] = False
    started = time.process_time()
    polygons = mask_polygons(mask)
    assert time.process_time() - started < 2
    assert len(polygons) == 1
    np.testing.assert_array_equal(fill(polygons, mask.shape), mask)


def test_straight_lines_have_no_corners_between() -> None:
    mask = np.zeros((20, 20), bool)
    mask[3:15, 4:18] = True
    (polygon,) = mask_polygons(mask)
    assert sorted(map(tuple, polygon.tolist())) == [(4, 3), (4, 14), (17, 3), (17, 14)]


def test_a_tolerance_saves_corners_and_stays_close() -> None:
    mask = disc((200, 200), (100, 100), 80)
    (exact,), (simple,) = mask_polygons(mask), mask_polygons(mask, 1.0)
    assert len(simple) < len(exact) / 3
    filled = fill([simple], mask.shape)
    assert (filled & mask).sum() / (filled | mask).sum() > 0.97
