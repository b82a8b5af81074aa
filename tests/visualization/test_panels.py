"""Pictures: what is drawn where, and how large."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from fss_d2.inference.prediction import Prediction
from fss_d2.visualization import (
    IGNORE_COLOR,
    PREDICTION_COLOR,
    SUPPORT_COLOR,
    attention_panel,
    class_color,
    class_map_png,
    draw_mask,
    episode_panel,
    picture_grid,
    prediction_panel,
    save_picture,
    tiles,
)
from fss_d2.visualization.tiles import draw_tile

_WIDE = np.full((40, 300, 3), 128, np.uint8)


def _episode(size: tuple[int, int] = (48, 64), shots: int = 2, **extra: Any) -> dict[str, Any]:
    mask = torch.zeros(size, dtype=torch.uint8)
    mask[10:30, 20:50] = 1
    image = torch.full((3, *size), 90, dtype=torch.uint8)
    support = [{"image": image, "mask": mask, "image_id": i} for i in range(shots)]
    frame = {"height": size[0], "width": size[1]}
    return {"image": image, "target": mask, "support": support, **frame, **extra}


def _ring(inner: int) -> np.ndarray:
    """A square region of a 40x60 picture, with a square hole of side ``inner``."""
    mask = np.zeros((40, 60), np.uint8)
    mask[8:30, 12:44] = 1
    mask[18 : 18 + inner, 22 : 22 + inner] = 0
    return mask


@pytest.mark.parametrize("inner", [0, 7])  # Detectron2 draws regions with and without holes differently
def test_mask_pixels_change_and_others_do_not(inner: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    before, mask = image.copy(), _ring(inner)
    drawn = draw_mask(image, mask, PREDICTION_COLOR, alpha=0.5)
    assert drawn.shape == image.shape and drawn.dtype == np.uint8
    assert (image == before).all()  # the input is left alone
    outside = ndimage.binary_dilation(mask, iterations=2) == 0
    assert (drawn[outside] == image[outside]).all()
    inside = ndimage.binary_erosion(mask, iterations=3)
    blend = 0.5 * image[inside] + 0.5 * 255 * np.array(PREDICTION_COLOR)
    np.testing.assert_allclose(drawn[inside], blend, atol=2)


def test_ignored_pixels_are_grey_and_an_empty_mask_changes_nothing() -> None:
    image = np.full((40, 60, 3), 20, np.uint8)
    assert (draw_mask(image, np.zeros((40, 60), np.uint8)) == image).all()
    drawn = draw_mask(image, 255 * _ring(0), alpha=1.0)
    np.testing.assert_allclose(drawn[20, 20], 255 * np.array(IGNORE_COLOR), atol=2)


def test_mask_of_another_size_is_an_error() -> None:
    with pytest.raises(ValueError, match="differ in size"):
        draw_mask(np.zeros((4, 5, 3), np.uint8), np.zeros((5, 4), np.uint8))


@pytest.mark.parametrize(("shots", "with_output", "tiles"), [(1, False, 3), (3, False, 5), (2, True, 5)])
def test_panel_has_a_tile_for_each_part(shots: int, with_output: bool, tiles: int) -> None:
    episode = _episode(shots=shots)
    output = {"sem_seg": torch.stack([torch.zeros(48, 64), torch.ones(48, 64)])} if with_output else None
    panel = episode_panel(episode, output, height=96)
    assert panel.dtype == np.uint8
    assert panel.shape == (96 + 18, tiles * 128 + (tiles - 1) * 4, 3)


def test_panel_draws_each_mask_in_its_tile() -> None:
    episode = _episode(shots=1)
    pred = np.zeros((48, 64), bool)
    pred[40:46, 2:8] = True
    panel = episode_panel(episode, pred, height=48)
    tiles = [panel[18:, i * 68 : i * 68 + 64].astype(int) for i in range(4)]
    changed = [np.abs(tile - 90).max(axis=2) > 30 for tile in tiles]
    assert changed[0][20, 35] and changed[3][20, 35]  # support and truth
    assert not changed[0][43, 5] and not changed[3][43, 5]
    assert not changed[1].any()  # the query is bare
    assert changed[2][43, 5] and not changed[2][20, 35]  # prediction
    expected = 45 + 127.5 * np.array([SUPPORT_COLOR, PREDICTION_COLOR])
    np.testing.assert_allclose([tiles[0][20, 35], tiles[2][43, 5]], expected, atol=2)


def test_scores_and_mask_draw_the_same_and_ties_are_background() -> None:
    episode = _episode(shots=1)
    margin = torch.zeros(48, 64)
    margin[5:20, 5:20] = 1.0
    scores = {"sem_seg": torch.stack([torch.zeros_like(margin), margin])}
    assert (episode_panel(episode, scores) == episode_panel(episode, (margin > 0).numpy())).all()


def test_caption_shows_name_and_score() -> None:
    episode = _episode(shots=1)
    right = episode["target"].numpy() == 1
    captions = [
        episode_panel(episode, pred, class_name=name)[:18]
        for pred, name in ((right, None), (right, "dog"), (~right, "dog"))
    ]
    support, prediction = slice(0, 256), slice(520, 776)  # a tile is 192 * 64 / 48 = 256 wide
    assert (captions[0][:, support] != captions[1][:, support]).any()
    assert (captions[1][:, prediction] != captions[2][:, prediction]).any()
    assert (captions[1][:, support] == captions[2][:, support]).all()


def test_a_long_caption_is_written_smaller_and_then_shortened() -> None:
    image = np.zeros((80, 120, 3), np.uint8)
    short, long, longer = (draw_tile(text, image, 80)[:18] for text in ("dog", 14 * "w", 200 * "w"))
    ink = [np.flatnonzero((caption < 128).all(axis=2).any(axis=0)) for caption in (short, long, longer)]
    assert ink[0][-1] < 40 and all(columns[-1] < 120 - 2 for columns in ink)
    assert tiles._fitting(14 * "w", 116)[0] == 14 * "w"
    text, font = tiles._fitting(200 * "w", 116)
    assert text.endswith("w...") and font.getlength(text) <= 116 < font.getlength(f"w{text}")
    assert (draw_tile("dog", image[:, :1], 80)[:18] == 255).all()


def test_query_is_shown_in_the_frame_of_its_scores() -> None:
    """Padding is cut off and the squashed query takes its own proportions again."""
    image = torch.zeros((3, 64, 64), dtype=torch.uint8)
    image[:, :32] = 200  # the lower half is padding
    target = torch.zeros((30, 90), dtype=torch.uint8)
    episode = _episode(shots=1) | {"image": image, "valid_size": (32, 64), "target": target}
    panel = episode_panel(episode | {"height": 30, "width": 90}, height=48)
    query = panel[18:, 68 : 68 + 144]
    assert (query == 200).all()
    assert panel.shape[1] == 64 + 4 + 144 + 4 + 144


def test_grid_pads_rows_with_white() -> None:
    rows = [np.full((5, 9, 3), 10, np.uint8), np.full((7, 4, 3), 20, np.uint8)]
    grid = picture_grid(rows)
    assert grid.shape == (5 + 4 + 7, 9, 3)
    assert (grid[:5] == 10).all() and (grid[9:, :4] == 20).all()
    assert (grid[5:9] == 255).all() and (grid[9:, 4:] == 255).all()
    with pytest.raises(ValueError, match="at least one row"):
        picture_grid([])


def test_saved_picture_is_the_picture(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    save_picture(tmp_path / "new" / "p.png", picture)
    assert (np.asarray(Image.open(tmp_path / "new" / "p.png")) == picture).all()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["p.png"]


def test_masks_are_drawn_and_named_below() -> None:
    labels = np.zeros((40, 300), np.uint8)
    labels[10:30, 50:100], labels[10:30, 200:250] = 1, 2
    prediction = Prediction(("a", "b"), np.ones((2, 40, 300), np.float32), labels)
    panel = prediction_panel(_WIDE, prediction.masks, prediction.confidence)
    assert panel.shape[1] == 300 and panel.shape[0] > 40
    for column, number in ((75, 0), (225, 1)):
        color = 255 * np.array(class_color(number))
        np.testing.assert_allclose(panel[20, column], (128 + color) / 2, atol=3)
    np.testing.assert_array_equal(panel[5, 5], 128)
    np.testing.assert_allclose(panel[-2, 10], 255 * np.array(class_color(0)), atol=1)  # the legend
    np.testing.assert_allclose(panel[-2, 130], 255 * np.array(class_color(1)), atol=1)


def test_class_maps_read_back_as_numbers() -> None:
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.open(io.BytesIO(class_map_png(labels)))
    assert image.mode == "P"
    np.testing.assert_array_equal(np.asarray(image), labels)
    colors = np.asarray(image.convert("RGB"))
    assert colors[0, 0].tolist() == [0, 0, 0] and colors[0, 1].max() > 128
    with pytest.raises(ValueError, match="255 classes"):
        class_map_png(labels.astype(np.uint16))


def test_attention_is_bright_where_it_is_large() -> None:
    attention = np.zeros((60, 60), np.float32)
    attention[20:40, 20:40] = 0.01
    supports = [np.zeros((60, 60, 3), np.uint8)] * 2
    panel = attention_panel(_WIDE[:, :60], (30, 20), supports, [attention, attention / 10], height=60)
    first, second = panel[18:, 94:154], panel[18:, 158:218]  # behind a query 90 wide and two gaps of 4
    assert first[30, 30].sum() > 3 * first[5, 5].sum()
    assert first[30, 30].sum() > 3 * second[30, 30].sum()  # one scale for all
    red = (panel[18:, :90, 0] > 200) & (panel[18:, :90, 1] < 120)
    y, x = red.nonzero()
    assert (y.mean(), x.mean()) == (pytest.approx(30, abs=2), pytest.approx(45, abs=2))
    with pytest.raises(ValueError, match="2 supports and 1 maps"):
        attention_panel(_WIDE, (0, 0), supports, [attention])
    assert attention_panel(_WIDE, (0, 0), supports[:1], [0 * attention]).size
