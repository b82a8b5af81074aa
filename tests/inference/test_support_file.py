"""Encoded supports on disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fss_d2.label.supports import read_supports
from tests.inference.predictors import METHODS, make_predictor, square, three_colors


@METHODS
def test_supports_on_disk(method: str, tmp_path: Path) -> None:
    first, second = make_predictor(method), make_predictor(method)
    image, masks = three_colors()
    first.set_support_classes({name: ([image] * 2, [mask] * 2) for name, mask in masks.items()})
    first.save_support(tmp_path / "below" / "s.pt")
    torch.load(tmp_path / "below" / "s.pt", weights_only=True)
    second.load_support(tmp_path / "below" / "s.pt")
    assert second.names == first.names
    expected, loaded = first.predict(image), second.predict(image)
    np.testing.assert_array_equal(loaded.probability, expected.probability)
    np.testing.assert_array_equal(loaded.labels, expected.labels)


@pytest.mark.parametrize(
    ("method", "overrides", "message"),
    [
        ("DCAMA", (), "is of Prototype, the model here is DCAMA"),
        ("Prototype", ("INPUT.FEW_SHOT_SIZE", (64, 64)), r"FEW_SHOT_SIZE \(48, 64\), here it is \(64, 64\)"),
        ("Prototype", ("MODEL.PROTOTYPE.IN_FEATURES", ("res4",)), "with MODEL.PROTOTYPE.IN_FEATURES"),
        ("Prototype", ("TEST.SCALES", (48, 64)), "with TEST.SCALES"),
        ("Prototype", ("MODEL.PIXEL_MEAN", [1.0, 2.0, 3.0]), "with MODEL.PIXEL_MEAN"),
    ],
)
def test_supports_of_something_else_are_refused(
    method: str, overrides: tuple[Any, ...], message: str, tmp_path: Path
) -> None:
    writer, reader = make_predictor(), make_predictor(method, *overrides)
    writer.set_support(*square())
    writer.save_support(tmp_path / "s.pt")
    reader.set_support(*square(), name="old")
    with pytest.raises(ValueError, match=message) as caught:
        reader.load_support(tmp_path / "s.pt")
    assert "\n" not in str(caught.value) and "s.pt" in str(caught.value)
    assert reader.names == ("old",)


def test_supports_of_other_weights_are_refused(tmp_path: Path) -> None:
    writer, reader = make_predictor(), make_predictor()
    writer.set_support(*square())
    writer.save_support(tmp_path / "s.pt")
    reader.load_support(tmp_path / "s.pt")
    with torch.no_grad():
        next(reader.model.backbone.parameters()).add_(1e-3)
    with pytest.raises(ValueError, match="with other weights of Prototype"):
        reader.load_support(tmp_path / "s.pt")


def test_settings_that_do_not_matter(tmp_path: Path) -> None:
    writer = make_predictor()
    others = ("MODEL.DCAMA.NUM_HEADS", 2, "MODEL.MM_FORMER.DIM", 8, "MODEL.BACKBONE.WEIGHTS", "")
    reader = make_predictor("Prototype", "MODEL.LOSS.DICE_WEIGHT", 3.0, *others)
    writer.set_support(*square())
    writer.save_support(tmp_path / "s.pt")
    reader.load_support(tmp_path / "s.pt")
    assert reader.names == ("object",)


def test_files_that_are_none(tmp_path: Path) -> None:
    predictor = make_predictor()
    with pytest.raises(FileNotFoundError, match=r"s\.pt does not exist"):
        predictor.load_support(tmp_path / "s.pt")
    contents: list[Any] = [b"text", {"model": {}}, [1, 2], {"kind": "fss_d2 encoded support", "version": 0}]
    for content in contents:
        if isinstance(content, bytes):
            (tmp_path / "s.pt").write_bytes(content)
        else:
            torch.save(content, tmp_path / "s.pt")
        with pytest.raises(ValueError, match=r"support file .*s\.pt is none") as caught:
            predictor.load_support(tmp_path / "s.pt")
        assert "\n" not in str(caught.value)


def no_frames(content: dict[str, Any]) -> None:
    del content["classes"]["object"]["frames"]


def one_frame_more(content: dict[str, Any]) -> None:
    content["classes"]["object"]["frames"] *= 2


def short_frames(content: dict[str, Any]) -> None:
    content["classes"]["object"]["frames"] = [[[1, 2]]]


def no_sets(content: dict[str, Any]) -> None:
    content["classes"]["object"]["sets"] = []


def no_tensors(content: dict[str, Any]) -> None:
    del content["classes"]["object"]["sets"][0]["encoded"]


def no_weights(content: dict[str, Any]) -> None:
    del content["weights"]


@pytest.mark.parametrize("spoil", [no_frames, one_frame_more, short_frames, no_sets, no_tensors, no_weights])
def test_damaged_files(spoil: Callable[[dict[str, Any]], None], tmp_path: Path) -> None:
    predictor = make_predictor()
    predictor.set_support(*square())
    predictor.save_support(tmp_path / "s.pt")
    content = torch.load(tmp_path / "s.pt", weights_only=True)
    spoil(content)
    torch.save(content, tmp_path / "s.pt")
    with pytest.raises(ValueError, match=r"support file .*s\.pt is damaged") as caught:
        predictor.load_support(tmp_path / "s.pt")
    assert "\n" not in str(caught.value) and predictor.names == ("object",)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite(bad: float, tmp_path: Path) -> None:
    predictor = make_predictor()
    predictor.set_support(*square())
    predictor.save_support(tmp_path / "s.pt")
    content = torch.load(tmp_path / "s.pt", weights_only=True)
    _, tensors = content["classes"]["object"]["sets"][0]["encoded"]
    name, tensor = next(iter(tensors.items()))
    tensor.view(-1)[0] = bad
    torch.save(content, tmp_path / "s.pt")
    with pytest.raises(ValueError) as caught:
        predictor.load_support(tmp_path / "s.pt")
    assert f"s.pt is damaged (ValueError('tensor object.sets.0.encoded.1.{name} holds NaN or inf" in (
        str(caught.value)
    )


def test_a_home_folder_is_expanded_wherever_a_path_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".here").mkdir()
    monkeypatch.chdir(tmp_path / ".here")
    image, mask = square()
    Image.fromarray(image).save(tmp_path / "a.png")
    Image.fromarray(mask).save(tmp_path / "a_mask.png")
    predictor = make_predictor()
    predictor.set_support("~/a.png", "~/a_mask.png")
    expected = predictor.predict(tmp_path / "a.png").probability
    predictor.add_support(Path("~/a.png"), "~/a_mask.png", name="object")
    predictor.remove_support(1)
    predictor.save_support("~/s.pt")
    predictor.load_support("~/s.pt")
    np.testing.assert_array_equal(predictor.predict("~/a.png").probability, expected)
    assert (tmp_path / "s.pt").is_file() and not list((tmp_path / ".here").iterdir())
    (support,) = read_supports("~", class_name="cup")["cup"]
    assert support.files == (tmp_path / "a.png", tmp_path / "a_mask.png")
