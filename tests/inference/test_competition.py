"""How classes share the pixels of an image."""

import numpy as np

from fss_d2.inference.competition import share_out, without_specks


def block() -> np.ndarray:
    """20 x 20 pixels of class 1, and apart from it 8 x 8 of the classes 2 and 3, on a background."""
    labels = np.zeros((40, 40), np.uint8)
    labels[5:25, 5:25] = 1
    labels[30:38, 2:10], labels[30:38, 20:28] = 2, 3
    return labels


def test_a_small_part_inside_another_object_joins_it() -> None:
    labels = block()
    labels[10:13, 10:13] = 2
    labels[20, 20] = 3
    np.testing.assert_array_equal(without_specks(labels), block())
    assert without_specks(labels).dtype == np.uint8


def test_what_is_no_speck_stays() -> None:
    labels = block()
    labels[5:12, 5:12] = 2  # 49 of 400 pixels: more than a tenth
    labels[27:29, 2:4] = 2  # an object of its own
    labels[0, 28] = 3
    assert without_specks(labels) is labels
    rim = block()
    rim[24, 5:25] = 2  # a strip: 20 neighbours of class 1, 22 of the background
    assert without_specks(rim) is rim


def test_a_speck_of_specks_goes_in_two_rounds() -> None:
    """Class 3 in class 2 in class 1: both are small, and the inner one first becomes class 2."""
    labels = block()
    labels[10:15, 10:15], labels[12, 12] = 2, 3
    np.testing.assert_array_equal(without_specks(labels), block())


def test_a_part_joins_the_class_most_around_it() -> None:
    labels = block()
    labels[:, 15:][labels[:, 15:] == 1] = 2  # the two halves of the square
    expected = labels.copy()
    labels[10:12, 13:16] = 3  # seven neighbours on the left half, three on the right
    expected[10:12, 13:16] = 1
    np.testing.assert_array_equal(without_specks(labels), expected)


def test_the_largest_part_of_a_class_stays() -> None:
    """A small class on a large one; its other parts join what surrounds them, and so does a stray pixel."""
    labels = np.ones((100, 100), np.uint8)
    labels[40:50, 40:50], labels[70:73, 70:73], labels[10, 10] = 2, 2, 3
    expected = np.ones_like(labels)
    expected[40:50, 40:50] = 2
    np.testing.assert_array_equal(without_specks(labels), expected)


def test_one_class_and_none_are_left_alone() -> None:
    for labels in (np.eye(4, dtype=np.uint8), np.zeros((4, 4), np.uint8)):
        assert without_specks(labels) is labels


def test_a_class_alone_has_what_exceeds_the_threshold() -> None:
    probability = np.float32([[[0.2, 0.5, 0.500001, 0.9]]])
    np.testing.assert_array_equal(share_out(probability, [True]), [[0, 0, 1, 1]])
    np.testing.assert_array_equal(share_out(probability, [True], threshold=0.3), [[0, 1, 1, 1]])
    assert share_out(probability, [True]).dtype == np.uint8


def test_of_several_the_lead_before_refinement_decides() -> None:
    """Refinement gave the second class pixel 0 with a lead of 0.04, and took pixel 1 from the first."""
    probability = np.float32([[[0.62, 0.49, 0.88]], [[0.65, 0.51, 0.27]]])
    own = np.float32([[[0.5, 3.0, 2.0]], [[-0.3, -0.2, -1.0]]])
    np.testing.assert_array_equal(share_out(probability, [True, True], own), [[1, 2, 1]])


def test_the_first_of_two_equal_classes_wins() -> None:
    probability = np.float32([[[0.7, 0.2]]] * 2)
    np.testing.assert_array_equal(share_out(probability, [True, True]), [[1, 0]])


def test_a_class_that_is_absent_claims_nothing() -> None:
    """Its pixels go to the other one where that claims them, too, and are background elsewhere."""
    probability = np.float32([[[0.9, 0.9, 0.2]], [[0.6, 0.1, 0.7]]])
    np.testing.assert_array_equal(share_out(probability, [True, True]), [[1, 1, 2]])
    np.testing.assert_array_equal(share_out(probability, [False, True]), [[2, 0, 2]])
    assert not share_out(probability, [False, False]).any()


def test_evidence_may_have_a_lower_resolution() -> None:
    probability = np.full((2, 4, 8), 0.9, np.float32)
    own = np.float32([[[3, 0], [3, 0]], [[2, 2], [2, 2]]])  # equal at a third of the way
    np.testing.assert_array_equal(share_out(probability, [True, True], own), [[1, 1, 1, 2, 2, 2, 2, 2]] * 4)
