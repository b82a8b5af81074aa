"""Plots of numbers: t-SNE keeps groups together, points and lines have the colours of their names."""

import numpy as np
import pytest

from fss_d2.visualization.plots import embed_tsne, line_figure, tsne_figure

BLUE, RED, ORANGE = (31, 119, 180), (214, 39, 40), (255, 127, 14)  # of "tab10"


def _shows(picture: np.ndarray, color: tuple[int, int, int]) -> bool:
    return bool((picture == color).all(axis=2).any())


def test_tsne_keeps_groups_together() -> None:
    pytest.importorskip("sklearn", reason="t-SNE needs the extra 'figures'")
    rng = np.random.default_rng(0)
    centres = np.eye(3, 16)
    features = np.repeat(centres, 8, axis=0) + 0.02 * rng.normal(size=(24, 16))
    lengths = rng.uniform(1, 9, size=(24, 1))
    points = embed_tsne(features * lengths, perplexity=5)
    assert points.shape == (24, 2)
    assert np.array_equal(points, embed_tsne(features * lengths, perplexity=5))
    distances = np.linalg.norm(points[:, None] - points[None], axis=2) + 1e9 * np.eye(24)
    assert (distances.argmin(axis=1) // 8 == np.arange(24) // 8).all()


def test_tsne_of_too_little_is_refused() -> None:
    with pytest.raises(ValueError, match="3 points: give at least 4"):
        embed_tsne(np.ones((3, 5)))


def test_points_of_the_object_are_blue_and_those_of_the_background_red() -> None:
    points = np.array([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    both = tsne_figure({"a": points, "b": points}, [True, False, True, False], side=192)
    assert both.shape == (192 + 40, 2 * 192, 3) and both.dtype == np.uint8
    for half in (both[:180, :192], both[:180, 192:]):
        assert _shows(half, BLUE) and _shows(half, RED)
    one = tsne_figure({"a": points}, [True, True, False, False], side=192)[:194].astype(int)
    for color in (BLUE, RED):  # a diagonal each; edges of a marker are mixed with white
        places = np.argwhere((np.abs(one - color) < 60).all(axis=2))
        assert np.ptp(places, axis=0).min() > 50
    with pytest.raises(ValueError, match="3 labels for 4 points of a: give as many"):
        tsne_figure({"a": points}, [True] * 3)


def test_a_line_has_its_colour_in_every_panel() -> None:
    first, second = ([0, 10], [1.0, 2.0]), ([0, 10], [3.0, 1.0])
    picture = line_figure({"run 1": {"a": first, "b": second}, "run 2": {"b": second}}, x="x", height=192)
    assert picture.shape == (192 + 40, 2 * 256, 3)
    left, right = picture[:170, :256], picture[:170, 256:]
    assert _shows(left, BLUE) and _shows(left, ORANGE)
    assert _shows(right, ORANGE) and not _shows(right, BLUE)
    with pytest.raises(ValueError, match="nothing to plot"):
        line_figure({}, x="x")
