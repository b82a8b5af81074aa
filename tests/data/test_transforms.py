"""Transforms of image and mask against reference numbers, hand-made cases and torch/Pillow themselves."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from PIL import Image

from fss_d2.config import get_cfg
from fss_d2.data.augmentations import (
    AUGMENTATION_REGISTRY,
    Letterbox,
    PadTo,
    RandomKeepCrop,
    RandomResizedCrop,
    RandomScale,
    ShortestEdge,
    Squash,
    build_augmentations,
    build_resize,
)
from fss_d2.data.transforms import (
    ColorTransform,
    LetterboxTransform,
    PadCrop,
    RotateTransform,
    SquashTransform,
)
from tests.golden.recipe import recipe_tensor

GOLDEN_DIR = Path(__file__).parents[1] / "golden"
GOLDEN = dict(np.load(GOLDEN_DIR / "pfenet_data_metric.npz"))
SCHEDULE = json.loads((GOLDEN_DIR / "pfenet_schedule_resize.json").read_text())
VALID_AREAS = SCHEDULE["[h,w] -> valid area of Resize(473), of test_Resize(473)"]
PFENET_IMAGE = recipe_tensor("input:resize/img", (60, 100, 3), "uniform") * np.float32(255)
PFENET_LABEL = GOLDEN["label"]
MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)
MASK = RNG.choice(np.array([0, 1, 255], np.uint8), (40, 60))


@pytest.fixture(autouse=True)
def _seed() -> None:
    np.random.seed(0)


def _apply(
    augmentation: T.Augmentation, image: np.ndarray, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    inputs = T.AugInput(image, sem_seg=mask)
    augmentation(inputs)
    return inputs.image, inputs.sem_seg


def test_letterbox_is_pfenets_resize() -> None:
    image, label = _apply(Letterbox((73, 73)), PFENET_IMAGE, PFENET_LABEL)
    np.testing.assert_allclose(image[::4, ::4], GOLDEN["resize73_image"], atol=1e-3)
    np.testing.assert_array_equal(label, GOLDEN["resize73_label"])


def test_rotation_is_pfenets() -> None:
    turn = RotateTransform(5, MEAN)
    np.testing.assert_allclose(
        turn.apply_image(PFENET_IMAGE)[::4, ::4], GOLDEN["rotate5_image_sub4"], atol=1e-3
    )
    np.testing.assert_array_equal(turn.apply_segmentation(PFENET_LABEL), GOLDEN["rotate5_label"])


def test_padding_and_crop_are_pfenets() -> None:
    crop = RandomKeepCrop((73, 73), 0.85, MEAN).get_transform(PFENET_IMAGE, PFENET_LABEL)
    assert (crop.top, crop.height, crop.width) == (-6, 73, 73)  # 13 rows lack: 6 above, 7 below
    centred = PadCrop(crop.top, (100 - 73) // 2, 73, 73, MEAN)
    np.testing.assert_allclose(
        centred.apply_image(PFENET_IMAGE)[::4, ::4], GOLDEN["crop73_center_image_sub4"], atol=1e-3
    )
    np.testing.assert_array_equal(centred.apply_segmentation(PFENET_LABEL), GOLDEN["crop73_center_label"])


@pytest.mark.parametrize(("size", "valid"), [(tuple(row[0]), tuple(row[1])) for row in VALID_AREAS])
def test_letterbox_valid_areas_of_pfenet(size: tuple[int, int], valid: tuple[int, int]) -> None:
    transform = Letterbox((473, 473)).get_transform(np.empty((*size, 3), np.uint8))
    assert isinstance(transform, LetterboxTransform)
    assert transform.valid_size == valid


def test_letterbox_into_an_oblong_canvas_and_of_a_sliver() -> None:
    assert Letterbox((64, 128)).get_transform(IMAGE).valid_size == (64, 96)  # 40x60 by 1.6
    assert Letterbox((64, 64)).get_transform(np.empty((500, 3, 3), np.uint8)).valid_size == (64, 8)
    image, mask = _apply(Letterbox((64, 128)), IMAGE, MASK)
    assert (image[:, 96:] == 0).all() and (mask[:, 96:] == 255).all()


@pytest.mark.parametrize("size", [(40, 60), (384, 384), (17, 23), (500, 375), (1, 1)])
def test_squash_is_pillows_bilinear_and_torchs_nearest(size: tuple[int, int]) -> None:
    image, mask = _apply(Squash(size), IMAGE, MASK)
    expected = Image.fromarray(IMAGE).resize(size[::-1], Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(image, np.asarray(expected))
    as_float = F.interpolate(torch.from_numpy(MASK).float()[None, None], size, mode="nearest")[0, 0]
    np.testing.assert_array_equal(mask, as_float.numpy())


def test_squash_takes_source_index_floor() -> None:
    mask = np.arange(10, dtype=np.uint8)[None]
    assert SquashTransform(1, 4).apply_segmentation(mask).tolist() == [[0, 2, 5, 7]]  # floor(i * 2.5)
    assert SquashTransform(1, 15).apply_segmentation(mask)[0, :6].tolist() == [0, 0, 1, 2, 2, 3]


def test_shortest_edge_keeps_the_aspect_and_heeds_the_longest_side() -> None:
    assert _apply(ShortestEdge(80, 1000), IMAGE, MASK)[0].shape == (80, 120, 3)
    image, mask = _apply(ShortestEdge(80, 90), IMAGE, MASK)
    assert image.shape == (60, 90, 3) and mask.shape == (60, 90)
    image, mask = _apply(ShortestEdge(80, 90), np.zeros((3, 900, 3), np.uint8), np.ones((3, 900), np.uint8))
    assert image.shape == (1, 90, 3) and mask.shape == (1, 90)


@pytest.mark.parametrize("size", [(30, 30), (50, 50), (50, 30), (40, 60)])
def test_crop_gives_the_size_and_keeps_pixel_and_label_together(size: tuple[int, int]) -> None:
    paired = np.repeat(MASK[..., None], 3, axis=2)  # an image that shows its own mask
    image, mask = _apply(RandomKeepCrop(size, 0, (255, 255, 255)), paired, MASK)
    assert mask.shape == size
    np.testing.assert_array_equal(image[..., 0], mask)


def test_crop_keeps_the_target_where_it_can() -> None:
    mask = np.zeros((40, 200), np.uint8)
    mask[10:30, 100:110] = 1
    kept = [
        (_apply(RandomKeepCrop((40, 60), 0.85, MEAN), np.zeros((40, 200, 3), np.uint8), mask)[1] == 1).sum()
        for _ in range(50)
    ]
    assert min(kept) >= 0.85 * 200  # one draw in three keeps it: 32 draws fail once in 500,000
    free = [
        (_apply(RandomKeepCrop((40, 60), 0.0, MEAN), np.zeros((40, 200, 3), np.uint8), mask)[1] == 1).sum()
        for _ in range(50)
    ]
    assert min(free) == 0


def test_crop_that_cannot_keep_the_target_stops_after_31_redraws(monkeypatch: pytest.MonkeyPatch) -> None:
    draws: list[int] = []
    monkeypatch.setattr(np.random, "randint", lambda high: draws.append(high) or 0)
    wide = np.ones((40, 400), np.uint8)
    RandomKeepCrop((40, 60), 0.85, MEAN).get_transform(np.zeros((40, 400, 3)), wide)
    assert draws == [341] * 32


def test_pad_to_pads_right_and_below_and_cuts_the_rest() -> None:
    image, mask = _apply(PadTo((50, 30), (128, 128, 128)), IMAGE, MASK)
    np.testing.assert_array_equal(image[:40], IMAGE[:, :30])
    assert (image[40:] == 128).all() and (mask[40:] == 255).all()


def test_window_beside_the_image_is_all_filling() -> None:
    beside = PadCrop(-50, 70, 10, 10, (1, 2, 3))
    assert (beside.apply_image(IMAGE) == (1, 2, 3)).all()
    assert (beside.apply_segmentation(MASK) == 255).all()


def test_random_scale_and_resized_crop_stay_in_range() -> None:
    heights = [_apply(RandomScale((0.5, 2.0)), IMAGE, MASK)[1].shape[0] for _ in range(100)]
    assert 20 <= min(heights) < 30 and 70 < max(heights) <= 80
    shapes = {_apply(RandomResizedCrop((16, 24), (0.1, 1.0)), IMAGE, MASK)[0].shape for _ in range(20)}
    assert shapes == {(16, 24, 3)}


def test_resized_crop_of_the_whole_area_is_a_squash_where_no_window_fits() -> None:
    strip = IMAGE[:4]  # 4 x 60: no window of this area with an aspect ratio below 4/3 fits
    image, _ = _apply(RandomResizedCrop((8, 8), (1.0, 1.0)), strip, MASK[:4])
    np.testing.assert_array_equal(image, SquashTransform(8, 8).apply_image(strip))


def _small_cfg(*names: str) -> CfgNode:
    cfg = get_cfg()
    cfg.INPUT.FEW_SHOT_SIZE = (32, 48)
    cfg.INPUT.TRAIN_AUGMENTATIONS = names
    cfg.INPUT.MIN_SIZE_TRAIN = (32, 64)
    return cfg


@pytest.mark.parametrize("name", [name for name, _ in AUGMENTATION_REGISTRY])
def test_every_builder_keeps_types_states_and_inputs(name: str) -> None:
    cfg = _small_cfg(name, "flip")
    cfg.INPUT.AUG.BLUR_PROB = cfg.INPUT.AUG.ROTATE_PROB = 1.0
    augmentation = T.AugmentationList([AUGMENTATION_REGISTRY.get(n)(cfg) for n in (name, "flip", name)])
    image, mask = IMAGE.copy(), MASK.copy()
    for _ in range(4):
        new_image, new_mask = _apply(augmentation, image, mask)
        assert new_image.dtype == np.uint8 and new_mask.dtype == np.uint8
        assert new_image.shape == (*new_mask.shape, 3)
        assert set(np.unique(new_mask)) <= {0, 1, 255}
    np.testing.assert_array_equal(image, IMAGE)
    np.testing.assert_array_equal(mask, MASK)


@pytest.mark.parametrize("name", ["color", "ssd_color", "blur"])
def test_colour_and_blur_leave_the_mask_alone(name: str) -> None:
    cfg = _small_cfg(name)
    cfg.INPUT.AUG.BLUR_PROB = 1.0
    image, mask = _apply(AUGMENTATION_REGISTRY.get(name)(cfg), IMAGE, MASK)
    np.testing.assert_array_equal(mask, MASK)
    assert (image != IMAGE).any()


def test_colour_factors_by_hand() -> None:
    pixel = np.array([[[100, 50, 200]]], np.uint8)
    grey = round(0.299 * 100 + 0.587 * 50 + 0.114 * 200)  # ITU-R 601: 82
    assert ColorTransform(1, 1, 1).apply_image(pixel).tolist() == pixel.tolist()
    assert ColorTransform(1.5, 1, 1).apply_image(pixel).tolist() == [[[150, 75, 255]]]
    assert ColorTransform(1, 0, 1).apply_image(pixel).tolist() == [[[grey] * 3]]
    assert ColorTransform(1, 1, 0).apply_image(pixel).tolist() == [[[grey] * 3]]
    assert ColorTransform(1, 1, 0.5).apply_image(pixel).tolist() == [[[91, 66, 141]]]


@pytest.mark.parametrize(
    "names",
    [("flip",), ("squash", "flip"), ("scale", "rotate", "blur", "flip", "crop"), ("crop", "scale"),
     ("random_shortest_edge", "random_crop", "ssd_color", "flip", "pad"), ("random_resized_crop", "color")],
)  # fmt: skip
def test_augmentations_end_at_the_networks_size(names: tuple[str, ...]) -> None:
    augmentation = T.AugmentationList(build_augmentations(_small_cfg(*names)))
    assert _apply(augmentation, IMAGE, MASK)[1].shape == (32, 48)


@pytest.mark.parametrize("kind", ["squash", "letterbox", "shortest_edge"])
def test_test_resize_kinds(kind: str) -> None:
    cfg = _small_cfg()
    cfg.INPUT.TEST_RESIZE = kind
    shape = _apply(build_resize(cfg), IMAGE, MASK)[1].shape
    assert shape == (32, 48)  # 40x60 has the aspect ratio of 32x48


def test_unknown_names_are_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"unknown 'crops' in INPUT.TRAIN_AUGMENTATIONS; choose from blur, "):
        build_augmentations(_small_cfg("crops"))
    cfg = _small_cfg()
    cfg.INPUT.TEST_RESIZE = "crop"
    with pytest.raises(ValueError, match="choose one of squash, letterbox, shortest_edge"):
        build_resize(cfg)
