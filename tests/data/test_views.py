"""Windows, views of supports, episodes at several sizes, and the frames of their scores."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from PIL import Image

from fss_d2.config import get_cfg
from fss_d2.data.augmentations import RandomObjectCrop, Squash, build_view_resizes
from fss_d2.data.episode import Episode
from fss_d2.data.mapper import EpisodeMapper
from fss_d2.data.samples import Sample, transform_sample
from fss_d2.data.views import (
    Window,
    check_support_views,
    object_window,
    random_object_window,
    shown_views,
    support_views,
)

MakeRecords = Callable[..., list[dict[str, Any]]]
EPISODE = Episode(4, 0, "image0", ("image3", "image6"), seed=5)


def _cfg(*overrides: Any) -> CfgNode:
    cfg = get_cfg()
    cfg.INPUT.FEW_SHOT_SIZE = (64, 64)
    cfg.merge_from_list(list(overrides))
    return cfg


def _mapped(records: list[dict[str, Any]], *overrides: Any, is_train: bool = False) -> dict[str, Any]:
    return EpisodeMapper(_cfg(*overrides), is_train=is_train, records=records)(EPISODE)


def test_off_by_default_and_in_training(make_records: MakeRecords) -> None:
    assert "views" not in _mapped(make_records())
    assert "views" not in _mapped(make_records(), "TEST.SCALES", (32, 48), is_train=True)


@pytest.mark.parametrize("resize", ["squash", "letterbox", "shortest_edge"])
def test_a_view_is_the_episode_mapped_at_its_size(make_records: MakeRecords, resize: str) -> None:
    records = make_records()
    both = ("INPUT.TEST_RESIZE", resize, "FEW_SHOT.TEST.SUPPORT_ANNOTATION", "scribble")
    mapped = _mapped(records, *both, "TEST.SCALES", (64, (48, 80)))
    assert len(mapped["views"]) == 2
    for view, size in zip(mapped["views"], [(64, 64), (48, 80)], strict=True):
        alone = _mapped(records, *both, "INPUT.FEW_SHOT_SIZE", size)
        assert torch.equal(view["image"], alone["image"])
        assert (view["height"], view["width"], view.get("valid_size")) == (
            *(mapped[key] for key in ("height", "width")),
            alone.get("valid_size"),
        )
        assert (view["image_id"], view["episode_index"]) == ("image0", 4)
        for support, expected in zip(view["support"], alone["support"], strict=True):
            assert support["image_id"] == expected["image_id"]
            assert torch.equal(support["image"], expected["image"])
            assert torch.equal(support["mask"], expected["mask"])  # one scribble, at several sizes
    plain = _mapped(records, *both)
    assert torch.equal(mapped["image"], plain["image"]) and torch.equal(mapped["target"], plain["target"])


def _frame(records: list[dict[str, Any]], frame: str, resize: str) -> tuple[Any, ...]:
    mapped = _mapped(records, "TEST.FRAME", frame, "INPUT.TEST_RESIZE", resize, "TEST.SCALES", (96,))
    (view,) = mapped["views"]
    return (mapped["height"], mapped["width"]), (view["height"], view["width"]), view.get("valid_size")


def test_frames_of_images_of_40_by_56_pixels(make_records: MakeRecords) -> None:
    records = make_records()
    # 56 -> 64 and 40 -> 45 -> 40 at 64; 56 -> 96 and 40 -> 68 -> 64 at 96.
    assert _frame(records, "original", "letterbox") == ((40, 56), (40, 56), (64, 96))
    assert _frame(records, "pfenet_square", "letterbox") == ((56, 56), (56, 56), None)
    assert _frame(records, "network", "letterbox") == ((64, 64), (40, 64), (64, 96))
    assert _frame(records, "network", "squash") == ((64, 64), (64, 64), None)
    assert _frame(records, "network", "shortest_edge") == ((64, 90), (64, 90), None)


@pytest.mark.parametrize(
    "wrong", [(0,), (-3, 473), (473.5,), ((473,),), ((1, 2, 3),), ("a",), (True,), ((),)]
)
def test_wrong_sizes_are_named(wrong: tuple[Any, ...]) -> None:
    cfg = _cfg()
    cfg.TEST.SCALES = wrong
    with pytest.raises(ValueError, match=r"TEST\.SCALES has .*give sides in pixels"):
        build_view_resizes(cfg)


def test_a_size_twice_is_refused_before_any_training(make_records: MakeRecords) -> None:
    with pytest.raises(ValueError, match=r"TEST\.SCALES \(48, \(48, 48\)\) has a size twice"):
        _mapped(make_records(), "TEST.SCALES", (48, (48, 48)), is_train=True)


def test_sizes_from_yaml_are_lists(make_records: MakeRecords) -> None:
    views = _mapped(make_records(), "TEST.SCALES", [32, [40, 48]])["views"]
    assert [tuple(view["image"].shape[1:]) for view in views] == [(32, 32), (40, 48)]


def test_what_each_view_shows() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (300, 400, 3), np.uint8)
    mask = np.zeros((300, 400), np.uint8)
    mask[110:190, 150:250], mask[0] = 1, 255
    whole, flip, cut, cut_flip = support_views(("whole", "flip", "cut", "cut_flip"), image, mask)
    assert np.array_equal(whole.image, image) and np.array_equal(whole.mask, mask)
    assert np.array_equal(flip.image, image[:, ::-1]) and np.array_equal(flip.mask, mask[:, ::-1])
    assert np.array_equal(cut.image, image[90:210, 125:275]) and cut.mask.sum() == 8000
    assert np.array_equal(cut_flip.image, cut.image[:, ::-1]) and cut_flip.window == cut.window
    assert [view.mirrored for view in (whole, flip, cut, cut_flip)] == [False, True, False, True]


@pytest.mark.parametrize("kinds", [(), ("whole", "whole"), ("zoom",)])
def test_wrong_views_are_named(kinds: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"SUPPORT_VIEWS .*: give one or more of whole, flip"):
        check_support_views(kinds)


def _viewed(records: list[dict[str, Any]], *kinds: str, is_train: bool = False) -> dict[str, Any]:
    views = ("FEW_SHOT.TEST.SUPPORT_VIEWS", kinds, "TEST.SCALES", (32,))
    return _mapped(records, *views, is_train=is_train)


def test_views_are_shots_of_an_evaluation_at_every_size(make_records: MakeRecords) -> None:
    records = make_records()
    plain, viewed = (_viewed(records, *kinds) for kinds in (("whole",), ("whole", "flip")))
    assert [shot["image_id"] for shot in viewed["support"]] == ["image3", "image3", "image6", "image6"]
    assert torch.equal(viewed["image"], plain["image"]) and torch.equal(viewed["target"], plain["target"])
    for before, after in ((plain, viewed), (plain["views"][0], viewed["views"][0])):
        assert torch.equal(after["support"][2]["image"], before["support"][1]["image"])
        mirrored, image = after["support"][3]["image"], before["support"][1]["image"]
        assert (mirrored.int() - image.flip(-1).int()).abs().max() <= 1  # rounding of the resize


@pytest.mark.parametrize("kinds", [("whole",), ("whole", "flip"), ("whole", "cut"), ("cut", "cut_flip")])
def test_the_supports_are_those_of_the_episode_whatever_their_views(
    make_records: MakeRecords, kinds: tuple[str, ...]
) -> None:
    mapped = _viewed(make_records(), *kinds)
    assert mapped["support_ids"] == ("image3", "image6")
    assert len(mapped["support"]) == 2 * len(kinds)


def test_a_view_that_loses_the_object_is_dropped_and_the_supports_stay(make_records: MakeRecords) -> None:
    """At 16 pixels a support of 400 pixels loses its object of two pixels, unless it is cut out."""
    records = make_records()
    tiny = np.zeros((400, 400), np.uint8)
    tiny[201:203, 201:203] = 1  # class 0; "nearest" looks at rows and columns 0, 25, ..., 200, ...
    Image.fromarray(tiny).save(records[3]["sem_seg_file_name"])
    Image.new("RGB", (400, 400)).save(records[3]["file_name"])
    small = ("INPUT.FEW_SHOT_SIZE", (16, 16), "FEW_SHOT.TEST.SUPPORT_VIEWS")
    mapped = _mapped(records, *small, ("whole", "cut"))
    assert [shot["image_id"] for shot in mapped["support"]] == ["image3", "image6", "image6"]
    assert mapped["support_ids"] == ("image3", "image6")
    lost = _mapped(records, *small, ("whole", "flip"))  # the first view stays if all of them lose it
    assert [shot["image_id"] for shot in lost["support"]] == ["image3", "image6", "image6"]
    assert not (lost["support"][0]["mask"] == 1).any() and lost["support_ids"] == ("image3", "image6")


def test_only_views_that_show_the_object_at_every_size_are_returned() -> None:
    image, mask = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
    mask[32, 32] = 1  # mirrored, it lies at column 31, where "nearest" does not look

    def prepare(image: np.ndarray, mask: np.ndarray) -> list[Sample]:
        return [transform_sample(Squash((side, side)), image, mask) for side in (64, 8)]

    ((view, samples),) = shown_views(("flip", "whole"), image, mask, prepare)
    assert not view.mirrored and [sample.shows(1) for sample in samples] == [True, True]
    ((view, samples),) = shown_views(("flip",), image, mask, prepare)
    assert view.mirrored and [sample.shows(1) for sample in samples] == [True, False]


def test_training_has_none(make_records: MakeRecords) -> None:
    assert len(_viewed(make_records(), "whole", "flip", is_train=True)["support"]) == 2


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
