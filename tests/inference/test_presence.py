"""Classes that are judged absent: in predictions, at other limits, and by the predictor."""

import numpy as np
import pytest
import torch

from fss_d2.inference.prediction import Prediction
from fss_d2.inference.predictor import FewShotPredictor
from tests.inference.predictors import METHODS, glyph, make_predictor, square, three_colors


def two_classes(present_above: float = 0.0) -> Prediction:
    """Cat claims the first three pixels, dog the third and fourth; cat has more evidence."""
    probability = np.float32([[[0.9, 0.8, 0.7, 0.2, 0.1]], [[0.1, 0.2, 0.6, 0.9, 0.1]]])
    labels, evidence = np.uint8([[1, 1, 1, 2, 0]]), np.float32([[[2.0]], [[1.0]]])
    estimates = {"cat": 0.8, "dog": 0.5}, {"cat": 0.25, "dog": 0.75}
    whole = Prediction(("cat", "dog"), probability, labels, *estimates, evidence=evidence)
    return whole.at(present_above=present_above)


def test_a_class_below_the_limit_is_absent() -> None:
    prediction = two_classes(0.5)
    assert prediction.present == {"cat": False, "dog": True}
    np.testing.assert_array_equal(prediction.labels, [[0, 0, 2, 2, 0]])  # what both claimed is the dog's
    assert not prediction.masks["cat"].any()
    assert [instance.name for instance in prediction.instances(1)] == ["dog"]
    assert two_classes(0.25).present["cat"] and not two_classes(0.26).present["cat"]
    assert two_classes(0.9).labels.sum() == 0


def test_other_thresholds_keep_what_is_absent() -> None:
    prediction = two_classes(0.5).at(0.15)
    np.testing.assert_array_equal(prediction.labels, [[0, 2, 2, 2, 0]])
    np.testing.assert_array_equal(two_classes().at(0.15).labels, [[1, 1, 1, 1, 0]])
    np.testing.assert_array_equal(two_classes().at(0.15, 0.5).labels, prediction.labels)
    np.testing.assert_array_equal(prediction.at(0.15, 0).labels, [[1, 1, 1, 1, 0]])
    for limit in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"present_above .*: give a number from 0 to below 1"):
            prediction.at(present_above=limit)


def test_the_expected_iou_counts_the_presence() -> None:
    """A mask is right if the object is there; none, if it is not."""
    assert two_classes().expected_iou == {"cat": 0.25 * 0.8, "dog": 0.75 * 0.5}
    assert two_classes(0.5).expected_iou == {"cat": 0.75, "dog": 0.75 * 0.5}
    assert two_classes(0.5).lowest_iou == 0.75 * 0.5 and two_classes().lowest_iou == 0.2
    assert two_classes(0.9).expected_iou == {"cat": 0.75, "dog": 0.25}
    # A smaller mask is less like the one that was judged: half of the dog's is gone.
    at = two_classes(0.5).at(0.7)
    np.testing.assert_array_equal(at.labels, [[0, 0, 0, 2, 0]])
    assert at.expected_iou == {"cat": 0.75, "dog": pytest.approx(0.75 * 0.5 / 2)}


def test_a_class_without_presence_counts_as_there() -> None:
    prediction = two_classes()
    bare = Prediction(prediction.names, prediction.probability, prediction.labels, {"cat": 0.8, "dog": 0.5})
    assert bare.at(present_above=0.9).present == {"cat": True, "dog": True}
    assert bare.expected_iou == {"cat": 0.8, "dog": 0.5}
    empty = Prediction(("cat",), np.zeros((1, 2, 2), np.float32), np.zeros((2, 2), np.uint8))
    assert empty.expected_iou == {"cat": 0.0}


@METHODS
def test_the_predictor_leaves_out_what_is_absent(method: str) -> None:
    """At another limit, a prediction is that of a predictor with this limit."""
    predictor = make_predictor(method, "TEST.REFINEMENT", "grabcut")
    image, masks = three_colors()
    predictor.set_support_classes({name: (image, mask) for name, mask in masks.items()})
    every = predictor.predict(image)
    assert all(0 <= value <= 1 for value in every.presence.values())
    assert every.present == dict.fromkeys(masks, True) and every.present_above == 0
    middle = sorted(every.presence.values())[1]
    predictor.present_above = middle + 1e-9 if middle < 1 else 0.5
    some = predictor.predict(image)
    assert some.presence == every.presence
    np.testing.assert_array_equal(some.probability, every.probability)
    for name, present in some.present.items():
        assert present == (every.presence[name] >= predictor.present_above)
        assert present or not some.masks[name].any()
    np.testing.assert_array_equal(some.labels, every.at(present_above=predictor.present_above).labels)
    np.testing.assert_array_equal(some.at(present_above=0).labels, every.labels)
    batched = predictor.predict_batch([image, image])[1]
    assert batched.presence == pytest.approx(every.presence, abs=1e-4)


def test_the_usual_limit_is_that_of_fitted_numbers() -> None:
    """Numbers that nobody fitted to the weights judge nothing absent."""
    predictor = make_predictor()
    assert predictor.present_above == 0
    predictor.model.presence.fill(torch.zeros(1), torch.ones(1))
    fitted = FewShotPredictor(predictor.model, predictor._resizes)
    assert fitted.present_above == 0.5 and fitted.another().present_above == 0.5
    assert FewShotPredictor(predictor.model, predictor._resizes, present_above=0.2).present_above == 0.2
    assert FewShotPredictor(predictor.model, predictor._resizes, present_above=0).present_above == 0
    with pytest.raises(ValueError, match=r"present_above 1\.5: give a number from 0 to below 1"):
        FewShotPredictor(predictor.model, predictor._resizes, present_above=1.5)


def test_left_out_supports_are_judged_as_well() -> None:
    images, masks = zip(*(glyph(i, 40, 50) for i in range(3)), strict=True)
    predictor = make_predictor()
    predictor.present_above = 0.999999
    ((found,),) = predictor.leave_out(images, [m.astype(np.uint8) for m in masks], [(0,)])
    assert found.present["object"] == (found.presence["object"] >= 0.999999)
    predictor.set_support(*square())
    assert predictor.another().present_above == 0.999999
