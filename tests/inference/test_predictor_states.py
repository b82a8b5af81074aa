"""The predictor's states, and pictures and supports of every kind."""

import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fss_d2.data.augmentations import build_resize
from fss_d2.inference.annotations import Box, Scribble
from fss_d2.inference.predictor import FewShotPredictor
from tests.inference.predictors import METHODS, glyph, make_predictor, overlap, square
from tests.modeling.episodes import make_cfg, make_model
from tests.modeling.fake_backbone import register_fake_backbone

ROOT = Path(__file__).parents[2]
PROTOTYPE = ROOT / "configs" / "prototype" / "glyphs_efficientnet_lite0.yaml"


# -- kinds of support --------------------------------------------------------------------------------------


def test_a_box_is_its_filled_mask() -> None:
    predictor = make_predictor()
    image, mask = square()
    predictor.set_support(image, mask)
    expected = predictor.predict(image)
    predictor.set_support(image, Box(0, 0, 25, 20))
    np.testing.assert_array_equal(predictor.predict(image).probability, expected.probability)


def test_a_scribble_finds_the_object() -> None:
    predictor = make_predictor()
    image, mask = square()
    predictor.set_support(image, Scribble([(3, 3), (20, 16)], background=[(30, 35), (45, 35)]))
    found = predictor.predict(image).labels == 1
    assert overlap(found, mask) > 0.6


def test_mask_values_say_what_the_object_is(tmp_path: Path) -> None:
    predictor = make_predictor()
    image, mask = square()
    predictor.set_support(image, mask)
    expected = predictor.predict(image).probability
    numbers = mask * np.uint8(3)
    numbers[-1] = 9
    Image.fromarray(numbers).save(tmp_path / "m.png")
    calls = (
        lambda **said: predictor.set_support(image, tmp_path / "m.png", **said),
        lambda **said: predictor.set_support_classes({"object": (image, tmp_path / "m.png")}, **said),
        lambda **said: predictor.add_support(image, tmp_path / "m.png", **said),
    )
    for call in calls:
        predictor.reset()
        with pytest.raises(ValueError, match=r"m\.png holds the values 0, 3, 9: say which are the object"):
            call()
        for given in (3, "3", {"object": [3]}):
            predictor.reset()
            call(mask_values=given)
            np.testing.assert_array_equal(predictor.predict(image).probability, expected)
    with pytest.raises(ValueError, match="mask_values names the class 'cup', but the classes are object"):
        predictor.set_support(image, mask, mask_values="cup=3")


@METHODS
def test_every_method_takes_small_and_odd_pictures(method: str) -> None:
    predictor = make_predictor(method)
    dot, pixel = np.full((1, 1, 3), 200, np.uint8), np.ones((1, 1), bool)
    predictor.set_support([dot, square()[0]], [pixel, square()[1]])
    for shape in ((1, 1, 3), (1, 7, 4), (300, 2), (33, 47, 3)):
        picture = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        prediction = predictor.predict(picture)
        assert prediction.labels.shape == shape[:2]
        assert np.isfinite(prediction.probability).all()


def test_an_object_of_one_pixel() -> None:
    predictor = make_predictor()
    mask = np.zeros((24, 32), bool)
    mask[5, 7] = True  # one pixel here, four at the network's size
    predictor.set_support(glyph(0, 24, 32)[0], mask)
    assert predictor.predict(glyph(0, 24, 32)[0]).labels.shape == (24, 32)
    large = np.zeros((480, 640), bool)
    large[5, 7] = True
    with pytest.raises(ValueError, match=r"^cat, support 2: its object of 1 pixels is lost .*640x480.*64x48"):
        image = np.zeros((480, 640, 3), np.uint8)
        predictor.set_support([image] * 2, [np.ones((480, 640), bool), large], name="cat")


def test_pixels_of_any_depth_and_channels() -> None:
    predictor = make_predictor()
    image, mask = square()
    predictor.set_support(image, mask)
    expected = predictor.predict(image).probability
    opaque = np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])
    for same in (opaque, image.astype(np.uint16) * 257, Image.fromarray(image)):
        np.testing.assert_array_equal(predictor.predict(same).probability, expected)
    grey = np.asarray(Image.fromarray(image).convert("L"))
    as_color = predictor.predict(np.dstack([grey] * 3)).probability
    for same in (grey, grey.astype(np.uint16) * 257):
        np.testing.assert_array_equal(predictor.predict(same).probability, as_color)


def test_a_huge_image_takes_little_more_than_itself() -> None:
    predictor = make_predictor()
    predictor.set_support(*square())
    huge = np.zeros((4000, 6000, 3), np.uint8)  # 72 MB; its scores are 2 x 96 MB, its probability 96 MB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    prediction = predictor.predict(huge)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB
    assert prediction.labels.shape == (4000, 6000) and prediction.labels.dtype == np.uint8
    assert grown < 600 * 1024


# -- states and errors -------------------------------------------------------------------------------------


def test_nothing_before_supports(tmp_path: Path) -> None:
    predictor = make_predictor()
    image, mask = square()
    actions = (
        lambda: predictor.predict(image),
        lambda: predictor.attention(image, (1, 1)),
        lambda: predictor.save_support(tmp_path / "s.pt"),
    )
    for _ in range(2):
        assert predictor.names == ()
        for action in actions:
            with pytest.raises(RuntimeError, match="no supports yet: call set_support"):
                action()
        predictor.set_support(image, mask)
        predictor.reset()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({}, "no class"),
        ({"": square()}, "class names are"),
        ({1: square()}, "class names are"),
        ({"cat": ([], [])}, "cat: 0 support images"),
        ({"cat": (square()[0], np.zeros((40, 50), bool))}, "mask of cat, support 1: no pixel"),
        ({"dog": square(), "cat": (square()[0], np.ones((5, 5), bool))}, "cat, support 1: the mask is 5x5"),
        ({"cat": (square()[0] / 255, square()[1])}, "image of cat, support 1 holds float64"),
    ],
)
def test_wrong_supports_leave_the_old_ones(classes: dict[Any, Any], message: str) -> None:
    predictor = make_predictor()
    predictor.set_support(*square(), name="old")
    expected = predictor.predict(square()[0]).probability
    with pytest.raises(ValueError, match=message) as caught:
        predictor.set_support_classes(classes)
    assert "\n" not in str(caught.value)
    assert predictor.names == ("old",)
    np.testing.assert_array_equal(predictor.predict(square()[0]).probability, expected)


def test_another_has_supports_of_its_own(tmp_path: Path) -> None:
    one = make_predictor("Prototype", "TEST.SCALES", (48, 64))
    image, mask = square()
    one.set_support(image, mask, name="a")
    other = one.another()
    assert other.model is one.model and other.names == () and one.names == ("a",)
    other.set_support(image, mask, name="b")
    assert one.names == ("a",) and other.names == ("b",)
    np.testing.assert_array_equal(one.predict(image).probability, other.predict(image).probability)
    other.save_support(tmp_path / "b.pt")
    one.load_support(tmp_path / "b.pt")  # the same settings
    assert one.names == ("b",)


def test_wrong_queries_are_refused() -> None:
    predictor = make_predictor()
    predictor.set_support(*square())
    with pytest.raises(ValueError, match=r"shape \(3, 40, 50\).*channels last"):
        predictor.predict(square()[0].transpose(2, 0, 1))
    with pytest.raises(FileNotFoundError, match=r"none\.jpg does not exist"):
        predictor.predict("none.jpg")


def test_only_few_shot_methods() -> None:
    with pytest.raises(ValueError, match="takes no supports"):
        FewShotPredictor(torch.nn.Linear(1, 1), [build_resize(make_cfg("Prototype"))])
    with pytest.raises(ValueError, match="at least one resize"):
        FewShotPredictor(make_model("Prototype"), [])


def test_from_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opts = ["MODEL.BACKBONE.NAME", register_fake_backbone(), "MODEL.BACKBONE.WEIGHTS", ""]
    predictor = FewShotPredictor.from_config(PROTOTYPE, opts=opts, device="cpu")
    assert not predictor.model.training and predictor.model.device.type == "cpu"
    predictor.set_support(*square())
    weights = tmp_path / "other.pth"
    state = {name: torch.full_like(t, 0.5) for name, t in predictor.model.state_dict().items()}
    torch.save({"model": state}, weights)
    other = FewShotPredictor.from_config(str(PROTOTYPE), weights=weights, opts=opts)
    assert all((tensor == 0.5).all() for tensor in other.model.state_dict().values() if tensor.dim())
    with pytest.raises(FileNotFoundError):
        FewShotPredictor.from_config(PROTOTYPE, weights=tmp_path / "none.pth", opts=opts)
    with pytest.raises(FileNotFoundError, match=r"none\.yaml does not exist"):
        FewShotPredictor.from_config("none.yaml")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no usable GPU"):
        FewShotPredictor.from_config(PROTOTYPE, opts=opts, device="cuda")


@METHODS
def test_scores_that_are_nan_are_refused(method: str) -> None:
    predictor = make_predictor(method)
    image, mask = square()
    predictor.set_support(image, mask, name="cat")
    with torch.no_grad():
        for parameter in predictor.model.parameters():
            parameter.fill_(float("nan"))
    for run in (lambda: predictor.predict(image), lambda: predictor.predict_batch([image, image])):
        with pytest.raises(FloatingPointError, match=r"^the scores of class cat are NaN: check the model's"):
            run()
