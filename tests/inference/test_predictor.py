"""The predictor: an evaluation's masks, supports encoded once, classes that compete, attention."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from PIL import Image

from fss_d2.data import Episode, EpisodeMapper
from fss_d2.modeling import SupportSet
from fss_d2.modeling.fusion import MultiScaleSegmentor
from tests.inference.predictors import (
    METHODS,
    SMALL,
    count_backbone_passes,
    glyph,
    make_predictor,
    overlap,
    square,
    three_colors,
)
from tests.modeling.episodes import make_cfg

# -- the same as an evaluation -----------------------------------------------------------------------------


def evaluated(cfg: CfgNode, model: torch.nn.Module, folder: Path) -> tuple[list[Path], torch.Tensor]:
    """Query and two supports of different sizes as files, and their episode's scores in an evaluation."""
    records, files = [], []
    for index, size in ((5, (90, 70)), (85, (60, 110)), (165, (100, 50))):
        image, mask = glyph(index, *size)
        files += [folder / f"{index}.png", folder / f"{index}_mask.png"]
        Image.fromarray(image).save(files[-2])
        Image.fromarray(mask).save(files[-1])
        names = {"file_name": str(files[-2]), "sem_seg_file_name": str(files[-1]), "image_id": index}
        records.append(
            {**names, "mask_encoding": "binary", "height": size[0], "width": size[1], "classes": [5]}
        )
    mapper = EpisodeMapper(cfg, False, records)
    with torch.no_grad():
        return files, model([mapper(Episode(0, 5, 5, (85, 165)))])[0]["sem_seg"]


@METHODS
@pytest.mark.parametrize("kind", ["squash", "letterbox", "shortest_edge"])
def test_masks_are_those_of_an_evaluation(method: str, kind: str, tmp_path: Path) -> None:
    predictor = make_predictor(method, "INPUT.TEST_RESIZE", kind)
    cfg = make_cfg(method, *SMALL, "INPUT.TEST_RESIZE", kind)
    files, scores = evaluated(cfg, predictor.model, tmp_path)
    predictor.set_support([files[2], files[4]], [files[3], files[5]])
    prediction = predictor.predict(files[0])
    np.testing.assert_array_equal(prediction.labels == 1, (scores[1] > scores[0]).numpy())
    np.testing.assert_array_equal(prediction.probability[0], (scores[1] - scores[0]).sigmoid().numpy())
    assert prediction.labels.shape == (90, 70)


def test_masks_are_those_of_a_multi_scale_evaluation(tmp_path: Path) -> None:
    scales = ("TEST.SCALES", (48, 80), "INPUT.TEST_RESIZE", "letterbox")
    predictor = make_predictor("Prototype", *scales)
    cfg = make_cfg("Prototype", *SMALL, *scales)
    files, scores = evaluated(cfg, MultiScaleSegmentor(predictor.model), tmp_path)
    predictor.set_support([files[2], files[4]], [files[3], files[5]])
    prediction = predictor.predict(files[0])
    assert 0 < prediction.labels.mean() < 1
    np.testing.assert_array_equal(prediction.labels == 1, (scores[1] > scores[0]).numpy())


@pytest.mark.parametrize("method", ["Prototype", "DCAMA"])
def test_masks_with_views_of_the_supports_are_those_of_an_evaluation(method: str, tmp_path: Path) -> None:
    views = ("FEW_SHOT.TEST.SUPPORT_VIEWS", ("whole", "flip", "cut", "cut_flip"))
    predictor = make_predictor(method, *views)
    files, scores = evaluated(make_cfg(method, *SMALL, *views), predictor.model, tmp_path)
    predictor.set_support([files[2], files[4]], [files[3], files[5]])
    assert predictor.supports["object"].sets[0].shots == 8
    probability = predictor.predict(files[0]).probability[0]
    np.testing.assert_array_equal(probability, (scores[1] - scores[0]).sigmoid().numpy())
    plain = make_predictor(method)
    plain.set_support([files[2], files[4]], [files[3], files[5]])
    assert not np.array_equal(probability, plain.predict(files[0]).probability[0])


def test_a_cut_shows_an_object_that_is_lost_in_the_whole() -> None:
    image, mask = np.zeros((600, 900, 3), np.uint8), np.zeros((600, 900), bool)
    mask[301:304, 401:404], image[301:304, 401:404] = True, 255
    with pytest.raises(ValueError, match="is lost when the image of 900x600 is resized"):
        make_predictor().set_support(image, mask)
    predictor = make_predictor("Prototype", "FEW_SHOT.TEST.SUPPORT_VIEWS", ("whole", "cut"))
    predictor.set_support(image, mask)
    (frames,) = predictor.supports["object"].frames
    assert len(frames) == 1 and frames[0].window.of(mask).sum() == 9


def test_a_prediction_finds_the_object() -> None:
    predictor = make_predictor()
    image, mask = square()
    predictor.set_support(image, mask, name="square")
    prediction = predictor.predict(image[:, ::-1])
    assert overlap(prediction.masks["square"], mask[:, ::-1]) > 0.7
    assert prediction.confidence["square"] > 0.5
    (instance,) = prediction.instances()
    assert instance.name == "square" and 0.5 < instance.score <= 1
    np.testing.assert_array_equal(instance.mask, prediction.labels == 1)


# -- encoded once ------------------------------------------------------------------------------------------


@METHODS
def test_supports_pass_the_backbone_once(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = make_predictor(method)
    calls = count_backbone_passes(predictor, monkeypatch)
    image, mask = square()
    predictor.set_support([image] * 3, [mask] * 3)
    assert calls() == 3
    for _ in range(3):
        predictor.predict(image)
        assert calls() == 1  # of the query


@METHODS
def test_a_query_passes_the_backbone_once_for_all_classes(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = make_predictor(method)
    image, mask = square()
    predictor.set_support_classes(dict.fromkeys("abcde", (image, mask)))
    calls = count_backbone_passes(predictor, monkeypatch)
    predictor.predict(image)
    assert calls() == 1


def test_a_query_leaves_no_trace() -> None:
    predictor = make_predictor()
    predictor.set_support(*square())
    first = predictor.predict(glyph(1, 60, 70)[0])
    predictor.predict(glyph(2, 50, 50)[0])
    again = predictor.predict(glyph(1, 60, 70)[0])
    np.testing.assert_array_equal(first.probability, again.probability)


# -- several classes ---------------------------------------------------------------------------------------


def test_three_classes_compete() -> None:
    predictor = make_predictor("Prototype", "INPUT.FEW_SHOT_SIZE", (64, 64))
    image, masks = three_colors()
    predictor.set_support_classes({name: (image, mask) for name, mask in masks.items()})
    assert predictor.names == ("red", "green", "blue")
    prediction = predictor.predict(image)
    assert prediction.probability.shape == (3, 64, 64) and prediction.probability.dtype == np.float32
    assert set(np.unique(prediction.labels)) == {0, 1, 2, 3}
    for i, (name, mask) in enumerate(masks.items(), start=1):
        assert (prediction.labels[mask] == i).mean() > 0.7, name
    claimed = prediction.probability > 0.5
    winner = np.where(claimed, prediction.evidence, -np.inf).argmax(axis=0) + 1
    expected = np.where(claimed.any(axis=0), winner, 0)
    np.testing.assert_array_equal(prediction.labels, expected)
    assert sum(mask.sum() for mask in prediction.masks.values()) == (prediction.labels > 0).sum()


def test_a_class_alone_has_the_same_probability() -> None:
    predictor = make_predictor()
    image, masks = three_colors()
    predictor.set_support_classes({name: (image, mask) for name, mask in masks.items()})
    together = predictor.predict(image).probability
    for i, (name, mask) in enumerate(masks.items()):
        predictor.set_support(image, mask, name=name)
        np.testing.assert_array_equal(predictor.predict(image).probability[0], together[i])


# -- attention ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["squash", "letterbox"])
def test_attention_comes_at_the_supports_own_sizes(kind: str, tmp_path: Path) -> None:
    predictor = make_predictor("DCAMA", "INPUT.TEST_RESIZE", kind, "INPUT.FEW_SHOT_SIZE", (64, 64))
    images, masks = zip(square(40, 50), square(90, 30), strict=True)
    predictor.set_support_classes({"a": (images, masks), "b": (images[0], masks[0])})
    maps = predictor.attention(images[1], (10, 80))
    assert [m.shape for m in maps] == [(40, 50), (90, 30)]
    assert all((m >= 0).all() and m.max() > 0 for m in maps)
    assert [m.shape for m in predictor.attention(images[1], (10, 80), name="b")] == [(40, 50)]
    predictor.save_support(tmp_path / "s.pt")
    predictor.load_support(tmp_path / "s.pt")
    for loaded, expected in zip(predictor.attention(images[1], (10, 80)), maps, strict=True):
        np.testing.assert_array_equal(loaded, expected)


def test_padding_takes_no_part_in_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = make_predictor("DCAMA", "INPUT.TEST_RESIZE", "letterbox", "INPUT.FEW_SHOT_SIZE", (64, 64))
    image, mask = square(80, 40)  # 64x32 of the 64x64
    predictor.set_support(image, mask)
    points = []

    def ramp(images: torch.Tensor, support: SupportSet, point: tuple[float, float]) -> torch.Tensor:
        points.append(point)
        return torch.arange(64.0).expand(1, support.shots, 64, 64)

    monkeypatch.setattr(predictor.model, "attention_map", ramp)
    (found,) = predictor.attention(image, (30, 60))
    assert points == [(60 / 80, 30 / 40 * 32 / 64)]
    assert found.shape == (80, 40) and found.min() == 0 and found.max() == pytest.approx(31)  # the left half


def test_attention_of_views_adds_up_where_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    image, mask = square(80, 100)  # its object is (0..49, 0..39), a cut of it ends at 62 and 51
    predictor = make_predictor("DCAMA", "FEW_SHOT.TEST.SUPPORT_VIEWS", ("whole", "flip", "cut"))
    predictor.set_support(image, mask)

    def halves(images: torch.Tensor, support: SupportSet, point: tuple[float, float]) -> torch.Tensor:
        left = torch.zeros(1, 3, *support.size)
        left[0, :, :, : support.size[1] // 2] = torch.tensor([1.0, 10.0, 100.0])[:, None, None]
        return left

    monkeypatch.setattr(predictor.model, "attention_map", halves)
    (found,) = predictor.attention(image, (5, 5))
    assert found.shape == (80, 100)
    # The left half of the whole; mirrored, the right half; the left half of the cut.
    corners = [found[5, 5], found[5, 45], found[5, 90], found[75, 5]]
    assert corners == pytest.approx([101, 1, 10, 1])


def test_attention_that_there_is_not() -> None:
    predictor = make_predictor()
    predictor.set_support(*square())
    with pytest.raises(ValueError, match="Prototype has no attention maps"):
        predictor.attention(square()[0], (1, 1))
    predictor = make_predictor("DCAMA")
    predictor.set_support(*square())
    with pytest.raises(KeyError, match="no supports of class 'cat'"):
        predictor.attention(square()[0], (1, 1), name="cat")
    for point in ((50, 1), (1, 40), (-1, 1)):
        with pytest.raises(ValueError, match="outside the image of 50x40 pixels"):
            predictor.attention(square()[0], point)
