"""What a prediction tells: masks, confidence, connected parts."""

import numpy as np
import pytest

from fss_d2.inference.prediction import Prediction


def make_prediction() -> Prediction:
    labels = np.zeros((6, 10), np.uint8)
    labels[0:2, 0:3] = 1  # six pixels
    labels[3, 4], labels[4, 5] = 1, 1  # two, by a corner
    labels[5, 9] = 2
    probability = np.full((3, 6, 10), 0.25, np.float32)
    probability[0][0:2, 0:3] = 0.75
    probability[0][3, 4], probability[0][4, 5] = 0.875, 0.625
    probability[1][5, 9] = 1.0
    return Prediction(("cat", "dog", "cow"), probability, labels)


def test_masks_and_confidence() -> None:
    prediction = make_prediction()
    assert {name: int(mask.sum()) for name, mask in prediction.masks.items()} == {
        "cat": 8,
        "dog": 1,
        "cow": 0,
    }
    assert prediction.confidence == {"cat": 0.75, "dog": 1.0, "cow": 0.0}


def test_other_thresholds() -> None:
    probability = np.float32([[[0.2, 0.6, 0.7, 0.4]], [[0.1, 0.7, 0.3, 0.4]]])
    prediction = Prediction(("cat", "dog"), probability, np.uint8([[0, 2, 1, 0]]))
    assert prediction.at(0.5) is prediction
    np.testing.assert_array_equal(prediction.at(0.15).labels, [[1, 2, 1, 1]])  # the first of two equal ones
    np.testing.assert_array_equal(prediction.at(0.65).labels, [[0, 2, 1, 0]])
    assert not prediction.at(0.7).labels.any()  # which is not above itself
    assert prediction.at(0.15).labels.dtype == np.uint8
    assert prediction.at(0.15).confidence["cat"] == pytest.approx((0.2 + 0.7 + 0.4) / 3)
    for threshold in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"threshold .*: give a number from 0 to below 1"):
            prediction.at(threshold)


def test_instances_are_connected_parts_the_largest_first() -> None:
    prediction = make_prediction()
    found = prediction.instances(1)
    assert [(i.name, int(i.mask.sum()), i.score) for i in found] == [
        ("cat", 6, 0.75),
        ("cat", 2, 0.75),
        ("dog", 1, 1.0),
    ]
    union = np.logical_or(found[0].mask, found[1].mask)
    np.testing.assert_array_equal(union, prediction.masks["cat"])
    assert [int(i.mask.sum()) for i in prediction.instances(2)] == [6, 2]
    assert len(prediction.instances()) == 3  # a two-thousandth of 60 pixels is less than one
    with pytest.raises(ValueError, match="below 0"):
        prediction.instances(-1)


def test_specks_are_no_instances_by_default() -> None:
    labels = np.zeros((100, 100), np.uint8)
    labels[::9, ::9] = 1
    labels[1:4, 1:4] = 1
    found = Prediction(("cat",), labels[None].astype(np.float32), labels).instances()
    assert [int(i.mask.sum()) for i in found] == [10]  # 9 pixels and a speck at their corner
