"""What a predictor reuses: encoded images, single supports, one model in several threads."""

import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from fss_d2.inference.predictor import FewShotPredictor
from tests.inference.predictors import METHODS, count_backbone_passes, glyph, make_predictor, square

ROOT = Path(__file__).parents[2]
IMAGES, MASKS = zip(*(glyph(index, 60, 70) for index in range(4)), strict=True)


def probability(predictor: FewShotPredictor, image: np.ndarray) -> np.ndarray:
    return predictor.predict(image).probability


@METHODS
def test_supports_are_added_and_removed_one_by_one(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor, whole = make_predictor(method), make_predictor(method)
    query = glyph(7, 60, 70)[0]
    whole.set_support(IMAGES[:3], MASKS[:3])
    expected = probability(whole, query)
    calls = count_backbone_passes(predictor, monkeypatch)
    for image, mask in zip(IMAGES[:3], MASKS[:3], strict=True):
        predictor.add_support(image, mask)
        assert calls() == 1
    np.testing.assert_array_equal(probability(predictor, query), expected)
    predictor.add_support(IMAGES[3], MASKS[3])
    calls()
    predictor.remove_support(3)
    assert calls() == 0
    np.testing.assert_array_equal(probability(predictor, query), expected)
    predictor.remove_support(0)
    whole.set_support(IMAGES[1:3], MASKS[1:3])
    np.testing.assert_array_equal(probability(predictor, query), probability(whole, query))


def test_views_go_with_their_support() -> None:
    views = ("FEW_SHOT.TEST.SUPPORT_VIEWS", ("whole", "flip", "cut"), "TEST.SCALES", (48, 64))
    predictor, whole = make_predictor("DCAMA", *views), make_predictor("DCAMA", *views)
    for image, mask in zip(IMAGES, MASKS, strict=True):
        predictor.add_support(image, mask, name="glyph")
    predictor.remove_support(1, name="glyph")
    kept = [0, 2, 3]
    whole.set_support([IMAGES[i] for i in kept], [MASKS[i] for i in kept], name="glyph")
    np.testing.assert_array_equal(probability(predictor, IMAGES[1]), probability(whole, IMAGES[1]))
    assert predictor.supports["glyph"].frames == whole.supports["glyph"].frames


def test_classes_come_and_go_with_their_supports() -> None:
    predictor = make_predictor()
    predictor.add_support(*square(), name="a")
    predictor.add_support(*square(), name="b")
    predictor.remove_support(0, name="a")
    assert predictor.names == ("b",)
    with pytest.raises(KeyError, match="no supports of class 'a': choose from b"):
        predictor.remove_support(0, name="a")
    with pytest.raises(IndexError, match="b has 1 supports, none with index 1"):
        predictor.remove_support(1, name="b")
    predictor.remove_support(0, name="b")
    with pytest.raises(RuntimeError, match="no supports yet"):
        predictor.predict(square()[0])


def test_a_wrong_support_is_not_added() -> None:
    predictor = make_predictor()
    predictor.add_support(*square())
    expected = probability(predictor, IMAGES[0])
    with pytest.raises(ValueError, match="object, support 2: the mask is 5x5"):
        predictor.add_support(square()[0], np.ones((5, 5), bool))
    np.testing.assert_array_equal(probability(predictor, IMAGES[0]), expected)


def test_supports_of_other_shapes_run_at_the_first_ones_size() -> None:
    options = ("INPUT.TEST_RESIZE", "shortest_edge")
    predictor, whole = make_predictor("DCAMA", *options), make_predictor("DCAMA", *options)
    supports = [square(40, 50), square(50, 40)]
    whole.set_support(*zip(*supports, strict=True))
    for support in supports:
        predictor.add_support(*support)
    np.testing.assert_array_equal(probability(predictor, IMAGES[0]), probability(whole, IMAGES[0]))


@METHODS
def test_an_encoded_image_serves_many_supports(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = make_predictor(method)
    query = predictor.encode_image(IMAGES[3])
    for image, mask in zip(IMAGES[:2], MASKS[:2], strict=True):
        predictor.set_support(image, mask)
        expected = predictor.predict(IMAGES[3])
        calls = count_backbone_passes(predictor, monkeypatch)
        found = predictor.predict(query)
        assert calls() == 0
        np.testing.assert_array_equal(found.probability, expected.probability)
        np.testing.assert_array_equal(found.labels, expected.labels)


@METHODS
def test_a_batch_gives_what_single_images_give(method: str) -> None:
    predictor = make_predictor(method, "TEST.SCALES", (48, 64), "INPUT.TEST_RESIZE", "letterbox")
    predictor.set_support_classes({name: square() for name in ("a", "b")})
    images = [*IMAGES, glyph(5, 33, 90)[0], IMAGES[0]]
    batch = predictor.predict_batch(images)
    for image, found in zip(images, batch, strict=True):
        expected = predictor.predict(image)
        assert found.names == ("a", "b") and found.labels.shape == image.shape[:2]
        np.testing.assert_allclose(found.probability, expected.probability, atol=1e-4)
    assert predictor.predict_batch([]) == []


@METHODS
def test_each_support_left_out_costs_one_pass(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = make_predictor(method)
    groups = [*((i,) for i in range(4)), *itertools.combinations(range(4), 2)]
    calls = count_backbone_passes(predictor, monkeypatch)
    masks = [mask.astype(np.uint8) for mask in MASKS]
    found = list(predictor.leave_out(IMAGES, masks, groups))
    assert calls() == 4
    assert predictor.names == ()
    for group, predicted in zip(groups, found, strict=True):
        rest = [i for i in range(4) if i not in group]
        predictor.set_support([IMAGES[i] for i in rest], [MASKS[i] for i in rest])
        for i, prediction in zip(group, predicted, strict=True):
            np.testing.assert_array_equal(prediction.labels, predictor.predict(IMAGES[i]).labels)


def test_views_cost_their_own_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = make_predictor("DCAMA", "FEW_SHOT.TEST.SUPPORT_VIEWS", ("flip", "whole"))
    calls = count_backbone_passes(predictor, monkeypatch)
    masks = [mask.astype(np.uint8) for mask in MASKS]
    (found,) = predictor.leave_out(IMAGES, masks, [(1, 2)])
    assert calls() == 4 * 2 + 2  # mirrored and whole; the two left out also as queries
    predictor.set_support([IMAGES[0], IMAGES[3]], [MASKS[0], MASKS[3]])
    np.testing.assert_array_equal(found[1].labels, predictor.predict(IMAGES[2]).labels)


@METHODS
def test_threads_do_not_disturb_each_other(method: str) -> None:
    """Predictions, supports of other predictors over the same model, and images of many sizes at once."""
    predictor = make_predictor(method, "INPUT.TEST_RESIZE", "shortest_edge")
    predictor.set_support_classes({"a": (IMAGES[0], MASKS[0]), "b": (IMAGES[1], MASKS[1])})
    images = [glyph(index, *size)[0] for index, size in enumerate([(40, 50), (60, 40), (33, 70), (90, 90)])]
    expected = [probability(predictor, image) for image in images]

    def job(number: int) -> np.ndarray:
        if number % 5 == 4:
            predictor.another().set_support(IMAGES[2], MASKS[2])
        return probability(predictor, images[number % 4])

    with ThreadPoolExecutor(4) as pool:
        for number, found in enumerate(pool.map(job, range(40))):
            np.testing.assert_array_equal(found, expected[number % 4])


def test_supports_that_threads_add_are_all_there() -> None:
    predictor, pairs = make_predictor(), list(zip(IMAGES, MASKS, strict=True)) * 6
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda pair: predictor.add_support(*pair), pairs))
    assert len(predictor.supports["object"].frames) == len(pairs)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: predictor.remove_support(0), pairs[1:]))
    assert len(predictor.supports["object"].frames) == 1


def test_threads_share_the_shipped_kind_of_backbone() -> None:
    """Four threads on one predictor over timm's EfficientNet-Lite0 give the serial results to the bit."""
    torch.manual_seed(0)
    options = ["MODEL.WEIGHTS", "", "INPUT.TEST_RESIZE", "shortest_edge", "INPUT.MAX_SIZE_TEST", 128]
    predictor = FewShotPredictor.from_config(opts=[*options, "INPUT.FEW_SHOT_SIZE", (64, 64)], device="cpu")
    predictor.set_support(IMAGES[0], MASKS[0])
    sizes = [(64, 64), (64, 96), (100, 70), (50, 90)]
    images = [glyph(index, *size)[0] for index, size in enumerate(sizes)]
    expected = [probability(predictor, image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        for number, found in enumerate(pool.map(lambda n: probability(predictor, images[n % 4]), range(48))):
            np.testing.assert_array_equal(found, expected[number % 4])


def test_the_predictor_loads_no_trainer_evaluation_or_figures() -> None:
    code = (
        "import sys, fss_d2.inference.predictor; print(*sorted(m for m in sys.modules if m[:6] == 'fss_d2'))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = result.stdout.split()
    assert "fss_d2.inference.predictor" in loaded
    rooms = ("engine", "evaluation", "visualization", "label", "app")
    assert [name for name in loaded if name.split(".")[1:2] and name.split(".")[1] in rooms] == []
