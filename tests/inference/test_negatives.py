"""Pictures and regions that do not show the object, given to the predictor."""

from pathlib import Path

import numpy as np
import pytest

from fss_d2.inference.annotations import Box
from fss_d2.inference.negatives import read_negatives
from fss_d2.inference.predictor import FewShotPredictor
from tests.inference.predictors import METHODS, glyph, make_predictor, square

GREY = np.full((40, 50, 3), 90, np.uint8)


def stripes(height: int = 40, width: int = 50) -> np.ndarray:
    """A picture without the object: blue and black."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, ::8, 2] = image[:, 1::8, 2] = 200
    return image


def state(predictor: FewShotPredictor, query: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    prediction = predictor.predict(query)
    return prediction.probability, prediction.presence


def test_regions_are_read() -> None:
    box = Box(10, 5, 20, 15)
    (whole, region), (part, marked) = read_negatives([(GREY, None), (GREY, box)])
    np.testing.assert_array_equal(whole, GREY)
    np.testing.assert_array_equal(part, GREY)
    assert region.shape == (40, 50) and not region.any()
    np.testing.assert_array_equal(marked, np.where(box.mask(40, 50) == 1, 0, 255))
    with pytest.raises(ValueError, match="mask file of dog, negative 2: the mask is 5x5"):
        read_negatives([(GREY, None), (GREY, np.ones((5, 5), bool))], "dog")
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        read_negatives([("gone.jpg", None)])


@METHODS
def test_a_negative_changes_its_class_only_and_can_be_removed(method: str, tmp_path: Path) -> None:
    predictor = make_predictor(method)
    (first, mask), (second, other) = glyph(0, 40, 50), glyph(1, 40, 50)
    predictor.set_support_classes({"a": (first, mask), "b": (second, other)})
    query = glyph(5, 40, 50)[0]
    before = state(predictor, query)
    predictor.add_negative(query, name="a")  # the query itself: nothing resembles it more
    after = state(predictor, query)
    assert [s.negatives for s in predictor.supports.values()] == [1, 0]
    assert after[1]["a"] < before[1]["a"] and after[1]["b"] == before[1]["b"]
    np.testing.assert_array_equal(after[0][1], before[0][1])
    predictor.save_support(tmp_path / "s.pt")
    again = make_predictor(method)
    again.load_support(tmp_path / "s.pt")
    assert state(again, query)[1] == after[1]
    np.testing.assert_array_equal(state(again, query)[0], after[0])
    predictor.remove_negative(0, name="a")
    assert state(predictor, query)[1] == before[1]
    np.testing.assert_array_equal(state(predictor, query)[0], before[0])


def test_a_region_counts_alone() -> None:
    """The half of the picture that shows the object is no negative."""
    image, mask = square(40, 50)
    predictor = make_predictor()
    predictor.set_support(image, mask)
    before = predictor.predict(image).presence["object"]
    predictor.add_negative(image, Box(0, 22, 50, 40))
    ground = predictor.predict(image).presence["object"]
    predictor.add_negative(image, mask)
    assert predictor.predict(image).presence["object"] < min(before, ground)
    predictor.remove_negative(1)
    assert predictor.predict(image).presence["object"] == ground


def test_negatives_of_all_classes_hold_for_classes_that_come_later() -> None:
    (first, mask), (second, other) = glyph(0, 40, 50), glyph(1, 40, 50)
    at_once = make_predictor()
    at_once.set_support_classes(
        {"a": (first, mask), "b": (second, other)}, negatives={"": [(GREY, None)], "b": [(stripes(), None)]}
    )
    assert [s.negatives for s in at_once.supports.values()] == [1, 2]
    steps = make_predictor()
    steps.set_support(first, mask, name="a")
    steps.add_negative(GREY)
    steps.add_support(second, other, name="b")
    steps.add_negative(stripes(), name="b")
    query = glyph(5, 40, 50)[0]
    assert state(steps, query)[1] == state(at_once, query)[1]
    steps.add_support(first, mask, name="b")  # keeps those that it has
    assert steps.supports["b"].negatives == 2
    steps.remove_support(0, name="b")
    assert steps.supports["b"].negatives == 2
    steps.set_support(first, mask)
    steps.add_support(first, mask, name="c")
    assert all(s.negatives == 0 for s in steps.supports.values())  # all earlier ones are gone


def test_the_negatives_of_left_out_supports() -> None:
    pairs = [glyph(i, 40, 50) for i in range(3)]
    images, masks = [image for image, _ in pairs], [mask.astype(np.uint8) for _, mask in pairs]
    predictor = make_predictor()
    (left_out,) = next(iter(predictor.leave_out(images, masks, [(0,)], [(GREY, None)])))
    predictor.set_support_classes({"object": (images[1:], masks[1:])}, negatives={"object": [(GREY, None)]})
    assert predictor.predict(images[0]).presence == pytest.approx(left_out.presence, abs=1e-6)


def test_errors_leave_everything_as_it_was() -> None:
    predictor = make_predictor()
    with pytest.raises(RuntimeError, match="no supports yet"):
        predictor.add_negative(GREY)
    image, mask = square()
    with pytest.raises(ValueError, match="negatives of 'b': the classes are a"):
        predictor.set_support_classes({"a": (image, mask)}, negatives={"b": [(GREY, None)]})
    assert predictor.names == ()
    predictor.set_support(image, mask)
    with pytest.raises(KeyError, match="no supports of class 'b'"):
        predictor.add_negative(GREY, name="b")
    huge = np.zeros((4000, 5000, 3), np.uint8)
    with pytest.raises(ValueError, match="the region of a negative is lost when its image is resized to"):
        predictor.add_negative(huge, Box(1, 1, 2, 2))
    with pytest.raises(IndexError, match="there are 0 negatives, none with index 0"):
        predictor.remove_negative(0)
    assert predictor.supports["object"].negatives == 0
