"""`Prediction.expected_iou` of every method, and what happens to it at other thresholds."""

from pathlib import Path

import numpy as np
import pytest

from fss_d2.inference.prediction import Prediction
from tests.inference.predictors import METHODS, glyph, make_predictor, square, three_colors

SUPPORTS = [glyph(index, 40, 50) for index in range(3)]


@METHODS
def test_every_method_has_one_for_each_class(method: str, tmp_path: Path) -> None:
    predictor = make_predictor(method, "INPUT.TEST_RESIZE", "letterbox", "TEST.REFINEMENT", "grabcut")
    images, masks = zip(*SUPPORTS, strict=True)
    predictor.set_support_classes({"a": (images[:2], masks[:2]), "b": (images[2], masks[2])})
    queries = [images[0], glyph(5, 33, 90)[0], glyph(7, 33, 90)[0]]
    single = [predictor.predict(image) for image in queries]
    for one, batched in zip(single, predictor.predict_batch(queries), strict=True):
        assert list(one.expected_iou) == ["a", "b"]
        assert all(0 <= value <= 1 for value in one.expected_iou.values())
        assert batched.expected_iou == pytest.approx(one.expected_iou, abs=1e-3)
    predictor.save_support(tmp_path / "s.pt")
    predictor.load_support(tmp_path / "s.pt")
    assert predictor.predict(queries[0]).expected_iou == single[0].expected_iou
    predictor.remove_support(1, name="a")
    predictor.add_support(images[1], masks[1], name="a")
    assert predictor.predict(queries[0]).expected_iou == single[0].expected_iou


@METHODS
def test_supports_that_are_left_out_have_one(method: str) -> None:
    predictor = make_predictor(method)
    images, masks = zip(*SUPPORTS, strict=True)
    found = list(predictor.leave_out(images, [m.astype(np.uint8) for m in masks], [(0,), (1, 2)]))
    assert [len(predictions) for predictions in found] == [1, 2]
    predictor.set_support(images[1:], masks[1:])
    expected = predictor.predict(images[0]).expected_iou
    assert found[0][0].expected_iou == pytest.approx(expected, abs=1e-6)


def test_the_wrong_object_is_expected_to_be_worse() -> None:
    """Prototype takes what resembles the support most: the square, or else a stripe."""
    predictor = make_predictor("Prototype")
    predictor.set_support(*square())
    right = predictor.predict(square(60, 70)[0])
    wrong = predictor.predict(three_colors()[0])
    assert right.expected_iou["object"] > wrong.expected_iou["object"]


def test_a_raised_threshold_lowers_what_is_expected() -> None:
    """The mean probability rises from 0.8 to 0.9, though half of the mask is gone."""
    probability = np.float32([[[0.9, 0.9, 0.7, 0.7, 0.2]]])
    prediction = Prediction(("a",), probability, np.uint8([[1, 1, 1, 1, 0]]), {"a": 0.6})
    assert prediction.at(0.8).expected_iou == {"a": pytest.approx(0.3)}
    assert prediction.at(0.8).confidence["a"] == pytest.approx(0.9)
    assert prediction.at(0.1).expected_iou == {"a": pytest.approx(0.6 * 4 / 5)}
    assert prediction.at(0.6).expected_iou == {"a": 0.6}  # the same mask
    assert prediction.at(0.95).expected_iou == {"a": 0.0}


def test_soft_iou_by_hand() -> None:
    probability = np.float32([[[0.9, 0.7, 0.4, 0.0]], [[0.1, 0.1, 0.2, 0.2]]])
    prediction = Prediction(("a", "b"), probability, np.uint8([[1, 1, 0, 0]]))
    assert prediction.soft_iou == {"a": pytest.approx(1.6 / 2.4), "b": 0.0}


def test_classes_keep_their_pixels_at_other_thresholds() -> None:
    """A pixel keeps the class that the competition gave it, though another one is a little more probable."""
    probability = np.full((2, 10, 10), 0.1, np.float32)
    probability[0, :, :5], probability[1, :, :5] = 0.60, 0.65
    labels = np.zeros((10, 10), np.uint8)
    labels[:, :5] = 1
    lead = np.zeros((2, 5, 5), np.float32)
    lead[0] = 1
    prediction = Prediction(("a", "b"), probability, labels, evidence=lead)
    np.testing.assert_array_equal(prediction.at(0.55).labels, labels)
    np.testing.assert_array_equal(prediction.at(0.62).labels, 2 * labels)
