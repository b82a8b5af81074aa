"""Windows round an object."""

import numpy as np
import pytest

from fss_d2.data.augmentations import RandomObjectCrop
from fss_d2.data.windows import Window, object_window, random_object_window


def _mask(height: int, width: int, box: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    left, top, right, bottom = box
    mask[top:bottom, left:right] = 1
    return mask


def test_a_window_by_hand() -> None:
    # A box of 100 x 80 in the middle of 400 x 300: 1.5 times that is 150 x 120, of 0.7 or more in aspect.
    assert object_window(_mask(300, 400, (150, 110, 250, 190)), 1.5) == Window(125, 90, 275, 210)
    # 100 x 20: the height is raised to 0.7 of the width, 105.
    assert object_window(_mask(300, 400, (150, 140, 250, 160)), 1.5) == Window(125, 97, 275, 203)


def test_no_window_is_tiny_or_beyond_the_image() -> None:
    assert object_window(_mask(300, 400, (200, 150, 202, 152)), 1.5) == Window(169, 119, 233, 183)
    assert object_window(_mask(300, 400, (0, 0, 100, 80)), 1.5) == Window(0, 0, 125, 100)
    assert object_window(_mask(9, 5, (1, 1, 2, 2)), 3.0) == Window(0, 0, 5, 9)


def test_255_is_no_object_and_without_one_there_is_the_whole_image() -> None:
    assert object_window(np.full((30, 40), 255, np.uint8), 1.5) == Window(0, 0, 40, 30)


@pytest.mark.parametrize(
    "box", [(0, 0, 30, 20), (150, 110, 250, 190), (370, 299, 400, 300), (0, 0, 400, 300)]
)
def test_a_random_window_keeps_the_object(box: tuple[int, int, int, int]) -> None:
    np.random.seed(0)
    mask = _mask(300, 400, box)
    windows = {random_object_window(mask, context) for context in np.linspace(1.0, 3.0, 40)}
    for window in windows:
        assert 0 <= window.left < window.right <= 400 and 0 <= window.top < window.bottom <= 300
        assert window.of(mask).sum() == mask.sum()
    assert len(windows) > 10 or box == (0, 0, 400, 300)


def test_the_augmentation_cuts_image_and_mask_alike() -> None:
    np.random.seed(1)
    mask = _mask(300, 400, (150, 110, 250, 190))
    image = np.repeat(mask[:, :, None] * 200, 3, axis=2)
    transform = RandomObjectCrop((1.05, 2.0)).get_transform(image, mask)
    cut, cut_mask = transform.apply_image(image), transform.apply_segmentation(mask)
    assert cut.shape[:2] == cut_mask.shape < (300, 400)
    assert cut_mask.sum() == mask.sum() and np.array_equal(cut[..., 0] == 200, cut_mask == 1)
