"""The papers' figures: which maps are drawn, where, and how bright."""

from typing import Any

import numpy as np
import pytest
import torch

from fss_d2.modeling.layers.alignment import channel_weights
from fss_d2.visualization.figures import (
    activation_figure,
    aggregated_figure,
    agnostic_figure,
    alignment_figure,
    attention_figure,
)
from fss_d2.visualization.tiles import heat_map

SIZE = (32, 64)  # of query and support; maps at stride 4 are (8, 16)
TILE, ROW = 64 + 4, 32 + 18 + 4  # a tile drawn 32 high, with the gap after it
BLACK, YELLOW = (0, 0, 4), (252, 255, 164)  # the two ends of "inferno"


def _episode(shots: int = 1, **extra: Any) -> dict[str, Any]:
    """A grey query; the object covers the columns 32 to 63."""
    image = torch.full((3, *SIZE), 90, dtype=torch.uint8)
    target = torch.zeros(SIZE, dtype=torch.uint8)
    target[:, 32:] = 1
    support = [{"image": image, "mask": target} for _ in range(shots)]
    frame = {"height": SIZE[0], "width": SIZE[1]}
    return {"image": image, "target": target, "support": support, **frame, **extra}


def _output(**aux: torch.Tensor) -> dict[str, Any]:
    margin = torch.full(SIZE, -1.0)
    margin[:, 32:] = 1.0
    return {"sem_seg": torch.stack([-margin, margin]), "aux": aux}


def _right_half(layers: int = 1, value: float = 1.0) -> torch.Tensor:
    maps = torch.zeros(layers, 8, 16)
    maps[:, :, 8:] = value
    return maps


def _tile(picture: np.ndarray, row: int, column: int) -> np.ndarray:
    """The inside of a tile, without its caption: (32, 64, 3)."""
    top, left = row * ROW + 18, column * TILE
    return picture[top : top + 32, left : left + 64].astype(int)


def _heat(color: tuple[int, int, int]) -> np.ndarray:
    return 0.4 * 90 + 0.6 * np.array(color)


def test_heat_map_blends_the_two_ends_and_clips() -> None:
    image = np.full((1, 4, 3), 90, np.uint8)
    drawn = heat_map(image, np.array([[-5.0, 2.0, 4.0, 9.0]]), 2.0, 4.0)
    expected = np.array([_heat(BLACK), _heat(BLACK), _heat(YELLOW), _heat(YELLOW)])
    np.testing.assert_allclose(drawn[0], expected, atol=1)
    assert (image == 90).all()
    assert (heat_map(image, np.zeros((1, 4)), 0.0, 0.0) == drawn[:, :1]).all()  # a constant map is dark


def test_aggregated_masks_are_the_mean_of_the_layers() -> None:
    """Second row: the mean, half as bright where one of two layers is bright. Third row: Otsu's mask."""
    layers = torch.cat([_right_half(), 0 * _right_half()])
    output = _output(aggregated_res3=layers, aggregated_res4=_right_half(), other=_right_half())
    picture = aggregated_figure(_episode(), output, height=32)
    assert picture.shape[0] == 3 * ROW - 4
    np.testing.assert_allclose(_tile(picture, 1, 1)[16, 60], _heat(YELLOW), atol=2)
    np.testing.assert_allclose(_tile(picture, 1, 0)[16, 60], 0.4 * 90 + 0.6 * np.array((188, 55, 84)), atol=3)
    np.testing.assert_allclose(_tile(picture, 1, 0)[16, 4], _heat(BLACK), atol=2)
    assert (picture[ROW : 3 * ROW, 2 * TILE :] == 255).all()  # "other" is none of its maps
    for column in range(2):
        changed = np.abs(_tile(picture, 2, column) - 90).max(axis=2) > 30
        assert changed[2:-2, 40:-2].all() and not changed[:, :24].any()


def test_maps_are_shown_in_the_frame_of_the_scores() -> None:
    """Padding is cut off, and the rest takes the proportions asked for: columns 0 to 31 become all 96."""
    episode = _episode(height=32, width=96, valid_size=(32, 32))
    episode["target"] = torch.zeros(32, 96, dtype=torch.uint8)
    output = _output(agnostic=_right_half()) | {"sem_seg": torch.zeros(2, 32, 96)}
    picture = agnostic_figure(episode, output, height=32)
    agnostic = picture[18:, -96:]
    assert (np.diff(agnostic[16, 80:].astype(int).sum(axis=1)) >= 0).all()
    np.testing.assert_allclose(agnostic[:, :70], np.broadcast_to(_heat(BLACK), (32, 70, 3)), atol=2)


def test_agnostic_map_is_stretched() -> None:
    """Cosines lie close together; the figure shows which is larger."""
    output = _output(agnostic=0.5 + 0.01 * _right_half())
    tile = _tile(agnostic_figure(_episode(), output, height=32), 0, 4)
    np.testing.assert_allclose(tile[16, 4], _heat(BLACK), atol=2)
    np.testing.assert_allclose(tile[16, 60], _heat(YELLOW), atol=2)


def test_activation_maps_masks_and_the_way_back() -> None:
    """Below the episode: two activations, pseudo and refined mask; then the same for each support."""
    parts = {"activations": _right_half(2), "pseudo_mask": _right_half(), "refined_mask": 0 * _right_half()}
    back = _output(**parts)
    back["sem_seg"] = -back["sem_seg"]  # the left half
    picture = activation_figure(_episode(shots=2), _output(**parts), [back, back], height=32)
    assert picture.shape[0] == 4 * ROW - 4
    brightness = [_tile(picture, 1, column)[16, 60].sum() for column in range(4)]
    assert min(brightness[:3]) > 2 * brightness[3]
    for row in (2, 3):
        changed = np.abs(_tile(picture, row, 4) - 90).max(axis=2) > 30
        assert changed[2:-2, 2:24].all() and not changed[:, 40:].any()
    assert activation_figure(_episode(), _output(**parts), height=32).shape[0] == 2 * ROW - 4
    with pytest.raises(ValueError, match="is shorter than"):
        activation_figure(_episode(shots=2), _output(**parts), [back], height=32)


def test_a_prior_alone_is_an_activation_figure() -> None:
    picture = activation_figure(_episode(), _output(prior=_right_half()), height=32)
    np.testing.assert_allclose(_tile(picture, 1, 0)[16, 60], _heat(YELLOW), atol=2)


@pytest.mark.parametrize("figure", [aggregated_figure, activation_figure, agnostic_figure])
def test_a_method_without_the_maps_is_refused(figure: Any) -> None:
    with pytest.raises(ValueError, match="gives no maps for this figure"):
        figure(_episode(), _output(cosine=_right_half()))


def test_attention_has_a_row_for_each_point_and_marks_it() -> None:
    points = {"object": (0.5, 0.75), "background": (0.5, 0.25)}
    maps = {"object": _right_half(2), "background": 1 - _right_half(2)}
    picture = attention_figure(_episode(shots=2), points, maps, height=32)
    assert picture.shape == (2 * ROW - 4, 3 * TILE - 4, 3)
    for row, (bright, column) in enumerate([(60, 48), (4, 16)]):
        query = np.abs(_tile(picture, row, 0) - 90).max(axis=2) > 20
        assert query[:, column - 6 : column + 6].any()
        assert not query[:, : column - 8].any() and not query[:, column + 8 :].any()
        for shot in (1, 2):
            tile = _tile(picture, row, shot).sum(axis=2)
            assert tile[16, bright] > 2 * tile[16, 63 - bright]


def test_alignment_shows_mean_important_channel_and_outlier() -> None:
    """Three channels: one that fires with the mean, one with a single peak elsewhere, one that is flat."""
    features = torch.zeros(3, 8, 16)
    features[0, :, 8:], features[1, 0, 0], features[2] = 4.0, 8.0, 0.1
    weights = channel_weights(features[None])[0]
    assert weights.argmax() == 0
    pairs = [(features, weights)] * 2
    picture = alignment_figure(_episode(), {"res4": pairs}, height=32)
    assert picture.shape == (2 * ROW - 4, 4 * TILE - 4, 3)  # query and support; picture and three maps
    for row in (0, 1):
        mean, important, outlier = (_tile(picture, row, column).sum(axis=2) for column in (1, 2, 3))
        assert mean[16, 60] > mean[16, 20] and important[16, 60] > important[16, 4]
        assert outlier[0, 0] > outlier[16, 60] and outlier[16, 60] == outlier[16, 30]  # its only peak
        # The important channel, 4 before, is shown as its share of 4: the weight.
        grey, kept = np.full((1, 1, 3), 90, np.uint8), np.array([[float(weights[0])]])
        np.testing.assert_allclose(_tile(picture, row, 2)[16, 60], heat_map(grey, kept)[0, 0], atol=1)
