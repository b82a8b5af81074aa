"""Objects pasted into a query: pixels, target, sizes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fss_d2.config import get_cfg
from fss_d2.data.augmentations import RandomObjectCrop, Squash
from fss_d2.data.episode import Episode
from fss_d2.data.mapper import EpisodeMapper
from fss_d2.data.pasting import CutOut, PasteOptions, cut_object, paste_copies, paste_other

MakeRecords = Callable[..., list[dict[str, Any]]]


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def _red(height: int = 8, width: int = 4) -> CutOut:
    coverage = np.ones((height, width), np.float32)
    return CutOut(coverage[..., None] * np.float32([200, 0, 0]), coverage)


def _query(side: int = 40) -> tuple[np.ndarray, np.ndarray]:
    return np.full((side, side, 3), 50, np.uint8), np.zeros((side, side), np.uint8)


def test_one_object_is_cut_out_of_a_mask() -> None:
    mask = np.zeros((20, 20), np.uint8)
    mask[2:8, 2:6], mask[12:18, 3:13], mask[0, 19], mask[9, 9] = 1, 1, 1, 255
    image = np.arange(1200, dtype=np.int64).reshape(20, 20, 3).astype(np.uint8)
    shapes = {cut_object(image, mask, _rng(seed)).coverage.shape for seed in range(20)}
    assert shapes == {(6, 10), (6, 4)}  # the single pixel is no object
    cut = next(c for c in (cut_object(image, mask, _rng(s)) for s in range(20)) if c.coverage.shape == (6, 4))
    assert (cut.color == image[2:8, 2:6]).all() and (cut.coverage == 1).all()


def test_another_object_hides_what_it_covers() -> None:
    image, mask = _query()
    mask[10:30], mask[0] = 1, 255
    before = mask.copy()
    paste_other(image, mask, _red(), (0.5, 0.5), _rng())
    red = (image == [200, 0, 0]).all(axis=2)
    assert (image[~red] == 50).all() and red.sum() == 16 * 8  # twice as large at most
    assert (mask[red] == 0).all() and (mask[~red] == before[~red]).all()


def test_another_object_leaves_half_of_the_object() -> None:
    image, mask = _query()
    mask[18:22, 18:22] = 1
    for seed in range(40):
        tried, target = image.copy(), mask.copy()
        paste_other(tried, target, _red(20, 20), (1.0, 1.0), _rng(seed))  # fills the query
        assert (tried == image).all() and (target == mask).all()
        paste_other(tried, target, _red(20, 20), (0.5, 0.5), _rng(seed))
        assert (target == 1).sum() >= 8


def test_copies_are_the_object_and_lie_apart() -> None:
    image, mask = _query()
    mask[:20, :20] = 1
    paste_copies(image, mask, _red(), (0.1, 0.1), (5, 5), _rng())
    red = (image[..., 0] > 125) & (image[..., 1] < 25)
    assert (mask[20:] == 1).sum() + (mask[:20, 20:] == 1).sum() == red.sum() > 0
    assert not red[:20, :20].any()


def test_an_object_that_is_too_thin_to_be_seen_is_left_out() -> None:
    coverage = np.zeros((40, 40), np.float32)
    coverage[:, 20] = 1
    image, mask = _query()
    paste_copies(image, mask, CutOut(coverage[..., None] * 200, coverage), (0.05, 0.05), (3, 3), _rng())
    assert (image == 50).all() and not mask.any()


def test_the_edges_have_no_colour_of_the_picture_that_the_object_comes_from() -> None:
    """A white picture with a black object, shrunk and pasted on black: nothing gets brighter."""
    white, object_mask = np.full((33, 33, 3), 255, np.uint8), np.zeros((33, 33), np.uint8)
    object_mask[5:28, 9:24] = 1
    white[object_mask == 1] = 0
    image, mask = np.zeros((40, 40, 3), np.uint8), np.zeros((40, 40), np.uint8)
    paste_copies(image, mask, cut_object(white, object_mask, _rng()), (0.2, 0.2), (2, 2), _rng(1))
    assert mask.any() and image.max() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"paste_size": (0.5, 0.2)}, r"INPUT\.AUG\.PASTE_SIZE \(0\.5, 0\.2\): give two rising shares"),
        ({"paste_copy_size": (0.0, 0.2)}, r"INPUT\.AUG\.PASTE_COPY_SIZE \(0\.0, 0\.2\)"),
        ({"paste_copy_count": (0, 2)}, r"INPUT\.AUG\.PASTE_COPY_COUNT \(0, 2\): give two rising numbers"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PasteOptions(**options)
    cfg = get_cfg()
    cfg.INPUT.AUG.update({key.upper(): value for key, value in options.items()})
    with pytest.raises(ValueError, match=message):
        PasteOptions.from_config(cfg)


# -- in the mapper: image0 shows classes 0 and 1, image1 class 1, image2 class 2, image5 class 2 ------------

NEGATIVE = Episode(0, 0, "image1", ("image0",), seed=7, absent=True)


@pytest.fixture
def mapper(make_records: MakeRecords) -> EpisodeMapper:
    crop = RandomObjectCrop((1.0, 1.2))
    records = make_records(classes=3, size=(120, 160))
    return EpisodeMapper(
        records=records, resize=Squash((32, 32)), augmentations=[crop, Squash((32, 32))], is_train=True
    )


def test_the_target_of_a_negative_query_is_background(mapper: EpisodeMapper) -> None:
    """The crop is round another object, as that of a query of that object's class."""
    mapped, positive = mapper(NEGATIVE), mapper(replace(NEGATIVE, class_id=1, absent=False))
    assert not (mapped["sem_seg"] == 1).any()
    assert (mapped["image"] == positive["image"]).all()
    assert (positive["sem_seg"] == 1).sum() > 80  # of 1024; uncropped 22


def test_ignored_pixels_of_a_negative_query_stay(make_records: MakeRecords) -> None:
    plain = EpisodeMapper(records=make_records(classes=3), resize=Squash((40, 56)), is_train=True)
    target = plain(NEGATIVE)["sem_seg"]
    assert (target[0] == 255).all() and not target[1:].any()


def test_a_query_that_must_show_the_class(mapper: EpisodeMapper) -> None:
    with pytest.raises(ValueError, match="no pixel shows class 0"):
        mapper(replace(NEGATIVE, absent=False))


def test_pasted_queries_are_repeatable(mapper: EpisodeMapper) -> None:
    copies = replace(NEGATIVE, pasted=(("image3", 0),))
    mapped, again = mapper(copies), mapper(copies)
    assert (mapped["sem_seg"] == 1).any()
    assert (mapped["image"] == again["image"]).all() and (mapped["sem_seg"] == again["sem_seg"]).all()
    others = mapper(replace(NEGATIVE, pasted=(("image2", 2),)))
    assert not (others["sem_seg"] == 1).any()
    assert (others["support"][0]["image"] == mapper(NEGATIVE)["support"][0]["image"]).all()
