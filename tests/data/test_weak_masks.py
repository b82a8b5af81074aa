"""Boxes and scribbles: drawn by hand, and what holds for all of them."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from fss_d2.config import get_cfg
from fss_d2.data.augmentations import Squash
from fss_d2.data.episode import Episode
from fss_d2.data.mapper import EpisodeMapper
from fss_d2.data.masks import annotate, boxes_of, scribble_of, support_annotation
from fss_d2.visualization import episode_panel


def _mask(*rows: str) -> np.ndarray:
    """A mask drawn as text: "#" object, "." background, "x" ignored."""
    return np.array([[{"#": 1, ".": 0, "x": 255}[pixel] for pixel in row] for row in rows], np.uint8)


def _blobs(seed: int, size: tuple[int, int] = (90, 120)) -> np.ndarray:
    """Random ellipses on a rim of ignored pixels."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(size, np.uint8)
    for _ in range(rng.integers(1, 5)):
        centre, axes = rng.integers(0, size[::-1]).tolist(), rng.integers(1, 30, 2).tolist()
        cv2.ellipse(mask, centre, axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
    rim = cv2.dilate(mask, np.ones((3, 3), np.uint8)) - mask
    return np.where(rim == 1, 255, mask).astype(np.uint8)


def _full() -> np.ndarray:
    return np.ones((20, 30), np.uint8)


def _line() -> np.ndarray:
    mask = np.zeros((20, 30), np.uint8)
    mask[7, 3:28] = 1
    return mask


def _pixels(count: int) -> np.ndarray:
    mask = np.zeros((20, 30), np.uint8)
    mask[11, 5 : 5 + count] = 1
    return mask


SHAPES = [_full(), _line(), _line().T.copy(), _pixels(1), _pixels(2), *map(_blobs, range(12))]


def test_two_components_are_two_boxes_and_ignored_pixels_stay_outside_them() -> None:
    mask = _mask(
        "xx......",
        "x#......",
        "x##x....",
        "x#...#x#",
        "....x###",
        "xxxx....",
    )
    expected = _mask(
        "xx......",
        "x##.....",
        "x##x....",
        "x##..###",
        "....x###",
        "xxxx....",
    )
    np.testing.assert_array_equal(boxes_of(mask), expected)


def test_components_that_touch_at_a_corner_are_one() -> None:
    mask = _mask("#x...", ".#...", "...#.")
    np.testing.assert_array_equal(boxes_of(mask), _mask("##...", "##...", "...#."))


def test_a_component_in_the_box_of_another_adds_nothing() -> None:
    mask = _mask("#####", "#...#", "#.#.#", "#...#", "#####")
    np.testing.assert_array_equal(boxes_of(mask), np.ones((5, 5)))


@pytest.mark.parametrize("mask", [_full(), _line(), _pixels(1)])
def test_rectangles_are_their_own_boxes(mask: np.ndarray) -> None:
    np.testing.assert_array_equal(boxes_of(mask), mask)


@pytest.mark.parametrize("mask", SHAPES)
def test_boxes_hold_the_object_and_nothing_else_changes(mask: np.ndarray) -> None:
    before = mask.copy()
    boxed = boxes_of(mask)
    np.testing.assert_array_equal(mask, before)
    assert boxed.dtype == np.uint8 and (boxed[mask == 1] == 1).all()
    assert (boxed[boxed != 1] == mask[boxed != 1]).all()
    assert ((boxed == 1).any(0) == (mask == 1).any(0)).all() and (
        (boxed == 1).any(1) == (mask == 1).any(1)
    ).all()


@pytest.mark.parametrize("mask", SHAPES)
def test_strokes_stay_inside_what_they_mark(mask: np.ndarray) -> None:
    before = mask.copy()
    for seed in range(5):
        scribble = scribble_of(mask, seed)
        np.testing.assert_array_equal(mask, before)
        assert scribble.dtype == np.uint8 and scribble.shape == mask.shape
        for value in (0, 1):
            assert (mask[scribble == value] == value).all()
            assert (scribble == value).any() == (mask == value).any()
        assert np.isin(scribble, (0, 1, 255)).all()


def test_a_stroke_is_thin_deep_inside_and_of_random_place() -> None:
    mask = np.zeros((200, 300), np.uint8)
    cv2.circle(mask, (150, 100), 80, 1, -1)
    strokes = [scribble_of(mask, seed) == 1 for seed in range(20)]
    assert max(stroke.sum() for stroke in strokes) < 0.15 * mask.sum()
    assert min(stroke.sum() for stroke in strokes) > 100
    depth = cv2.distanceTransform(mask, cv2.DIST_L2, 5)
    assert np.mean([depth[stroke].mean() for stroke in strokes]) > depth[mask == 1].mean()
    assert np.any(strokes, axis=0).sum() > 3 * max(stroke.sum() for stroke in strokes)
    assert all(cv2.connectedComponents(stroke.astype(np.uint8), connectivity=8)[0] == 2 for stroke in strokes)


def test_the_same_seed_gives_the_same_strokes_whatever_the_global_state() -> None:
    mask = _blobs(3)
    np.random.seed(1)
    first = scribble_of(mask, (7, 1, 2))
    np.random.seed(2)
    np.testing.assert_array_equal(first, scribble_of(mask, (7, 1, 2)))
    assert (first != scribble_of(mask, (7, 2, 2))).any()


def test_every_large_component_has_a_stroke_and_small_ones_have_none() -> None:
    mask = np.zeros((60, 120), np.uint8)
    mask[5:45, 5:45] = mask[5:25, 60:100] = 1  # 1600 and 800 pixels
    mask[50:55, 60:65] = 1  # 25
    scribble = scribble_of(mask, 0)
    assert (scribble[5:45, 5:45] == 1).any() and (scribble[5:25, 60:100] == 1).any()
    assert (scribble[50:55, 60:65] == 255).all()


def test_ignored_pixels_get_no_stroke() -> None:
    mask = np.full((30, 40), 255, np.uint8)
    mask[10:20, 10:20] = 1
    scribble = scribble_of(mask, 0)
    assert (scribble == 1).any() and not (scribble == 0).any()  # there is no background


def _supports(mapper: EpisodeMapper, *images: str, seed: int = 5) -> list[np.ndarray]:
    support = mapper(Episode(0, 0, "image0", images, seed=seed))["support"]
    return [entry["mask"].numpy() for entry in support]


def test_the_mapper_annotates_supports_before_the_resize(make_records: Callable[..., list[Any]]) -> None:
    records = make_records()
    values = np.zeros((40, 56), np.uint8)
    values[2:6, 4:40], values[2:30, 4:8] = 1, 1  # an L
    Image.fromarray(values).save(records[3]["sem_seg_file_name"])
    plain = EpisodeMapper(records=records, resize=Squash((80, 112)))
    boxed = EpisodeMapper(records=records, resize=Squash((80, 112)), support_annotation="box")
    (mask,) = _supports(boxed, "image3")
    expected = np.zeros((80, 112), np.uint8)
    expected[4:60, 8:80] = 1
    np.testing.assert_array_equal(mask, expected)
    query = "sem_seg", "target", "image"
    first, second = plain(Episode(0, 0, "image0", ("image3",))), boxed(Episode(0, 0, "image0", ("image3",)))
    assert all((first[key] == second[key]).all() for key in query)  # the query keeps its mask


@pytest.mark.parametrize("is_train", [True, False])
def test_scribbles_follow_the_episode_and_the_number_of_the_support(
    make_records: Callable[..., list[Any]], is_train: bool
) -> None:
    records = make_records()
    mapper = EpisodeMapper(
        records=records, resize=Squash((80, 112)), support_annotation="scribble", is_train=is_train
    )
    first, second = _supports(mapper, "image3", "image3")
    assert (first != second).any() and set(np.unique(first)) == {0, 1, 255}
    np.random.seed(8)
    np.testing.assert_array_equal(first, _supports(mapper, "image3")[0])
    assert (first != _supports(mapper, "image3", seed=6)[0]).any()


def test_kinds_and_keys() -> None:
    mask = _blobs(0)
    assert annotate(mask, "mask", 0) is mask
    np.testing.assert_array_equal(annotate(mask, "box", 0), boxes_of(mask))
    np.testing.assert_array_equal(annotate(mask, "scribble", 4), scribble_of(mask, 4))
    with pytest.raises(ValueError, match="SUPPORT_ANNOTATION 'boxes'; choose one of mask, box, scribble"):
        annotate(mask, "boxes", 0)
    cfg = get_cfg()
    cfg.FEW_SHOT.TEST.SUPPORT_ANNOTATION = "box"
    assert (support_annotation(cfg, True), support_annotation(cfg, False)) == ("mask", "box")
    cfg.FEW_SHOT.TEST.SUPPORT_ANNOTATION = "point"
    with pytest.raises(ValueError, match=r"FEW_SHOT\.TEST\.SUPPORT_ANNOTATION 'point'"):
        support_annotation(cfg, is_train=True)  # before the training, not after it


def test_pictures_show_the_annotation(make_records: Callable[..., list[Any]], tmp_path: Path) -> None:
    mappers = [
        EpisodeMapper(records=make_records(), resize=Squash((40, 56)), support_annotation=kind)
        for kind in ("mask", "box", "scribble")
    ]
    records = make_records()
    values = np.asarray(Image.open(records[3]["sem_seg_file_name"])).copy()
    values[10:20, 12:30] = 0  # no rectangle any more
    Image.fromarray(values).save(records[3]["sem_seg_file_name"])
    panels = [episode_panel(mapper(Episode(0, 0, "image0", ("image3",)))) for mapper in mappers]
    tile = slice(0, panels[0].shape[1] // 3)  # the support; query and truth are the same
    assert all((a[:, tile] != b[:, tile]).any() for a, b in pairwise(panels))
    assert all((a[:, tile.stop :] == b[:, tile.stop :]).all() for a, b in pairwise(panels))
