"""How classes share the pixels of an image."""

import numpy as np
import torch

from fss_d2.inference.competition import Contest, without_specks


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


def enter(contest: Contest, index: int, lead: list[float], own: list[float] | None = None) -> None:
    unrefined = None if own is None else torch.tensor([own])
    contest.enter(index, torch.tensor([lead]), unrefined)


def test_a_class_alone_has_what_it_leads() -> None:
    contest = Contest((1, 4), 1)
    enter(contest, 0, [-1.0, 0.0, 1e-6, 3.0])
    np.testing.assert_array_equal(contest.labels(), [[0, 0, 1, 1]])
    expected = torch.tensor([-1.0, 0.0, 1e-6, 3.0]).sigmoid().numpy()
    np.testing.assert_array_equal(contest.probability[0, 0], expected)


def test_of_several_the_lead_before_refinement_decides() -> None:
    """Refinement gave the second class pixel 0 with a lead of 0.04, and took pixel 1 from the first."""
    contest = Contest((1, 3), 2)
    enter(contest, 0, [0.5, -0.04, 2.0], [0.5, 3.0, 2.0])
    enter(contest, 1, [0.6, 0.04, -1.0], [-0.3, -0.2, -1.0])
    np.testing.assert_array_equal(contest.labels(), [[1, 2, 1]])


def test_the_first_of_two_equal_classes_wins() -> None:
    contest = Contest((1, 2), 2)
    enter(contest, 0, [1.0, -1.0])
    enter(contest, 1, [1.0, -1.0])
    np.testing.assert_array_equal(contest.labels(), [[1, 0]])
