"""Pictures of predictions and attention."""

import io

import numpy as np
import pytest
from PIL import Image

from fss_d2.inference.prediction import Prediction
from fss_d2.visualization.panels import attention_panel, class_color, class_map_png, prediction_panel

IMAGE = np.full((40, 300, 3), 128, np.uint8)


def test_masks_are_drawn_and_named_below() -> None:
    labels = np.zeros((40, 300), np.uint8)
    labels[10:30, 50:100], labels[10:30, 200:250] = 1, 2
    prediction = Prediction(("a", "b"), np.ones((2, 40, 300), np.float32), labels)
    panel = prediction_panel(IMAGE, prediction.masks, prediction.confidence)
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
    panel = attention_panel(IMAGE[:, :60], (30, 20), supports, [attention, attention / 10], height=60)
    first, second = panel[18:, 94:154], panel[18:, 158:218]  # behind a query 90 wide and two gaps of 4
    assert first[30, 30].sum() > 3 * first[5, 5].sum()
    assert first[30, 30].sum() > 3 * second[30, 30].sum()  # one scale for all
    red = (panel[18:, :90, 0] > 200) & (panel[18:, :90, 1] < 120)
    y, x = red.nonzero()
    assert (y.mean(), x.mean()) == (pytest.approx(30, abs=2), pytest.approx(45, abs=2))
    with pytest.raises(ValueError, match="2 supports and 1 maps"):
        attention_panel(IMAGE, (0, 0), supports, [attention])
    assert attention_panel(IMAGE, (0, 0), supports[:1], [0 * attention]).size
