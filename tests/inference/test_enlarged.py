"""Many small objects: seen enlarged by the predictor as in an evaluation; all else as without it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fss_d2.data import Episode, EpisodeMapper
from fss_d2.data.augmentations import build_resize, build_view_resizes
from fss_d2.data.mapper import ForeignSupportMapper
from fss_d2.inference.prediction import Prediction
from fss_d2.inference.predictor import FewShotPredictor
from fss_d2.modeling.enlarged import EnlargingSegmentor
from tests.inference.predictors import METHODS, SMALL, make_predictor, overlap, square
from tests.modeling.episodes import make_cfg

ZOOM = ("TEST.ZOOM_TILES", 9)
Annotated = tuple[np.ndarray, np.ndarray]


def dots(seed: int, side: int = 8, size: tuple[int, int] = (120, 150)) -> Annotated:
    """Bright squares on a dark ground, with their mask (H, W) bool."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(size, bool)
    for y in range(10, size[0] - side, 28):
        for x in range(6, size[1] - side, 28):
            top, left = y + rng.integers(8), x + rng.integers(12)
            mask[top : top + side, left : left + side] = True
    image = np.full((*size, 3), 20, np.uint8)
    image[mask] = (230, 220, 40)
    return image, mask


def write_records(folder: Path, pictures: list[Annotated]) -> list[dict[str, Any]]:
    """Write pictures and their masks; return their records, of class 5."""
    records = []
    for i, (image, mask) in enumerate(pictures):
        names = {key: str(folder / f"{i}{end}.png") for key, end in (("file_name", ""), ("mask", "_mask"))}
        Image.fromarray(image).save(names["file_name"])
        Image.fromarray(mask).save(names["mask"])
        size = {"height": mask.shape[0], "width": mask.shape[1], "image_id": i, "classes": [5]}
        files = {"file_name": names["file_name"], "sem_seg_file_name": names["mask"]}
        records.append({**files, **size, "mask_encoding": "binary"})
    return records


def predictor_of(method: str, pictures: list[Annotated], *settings: Any) -> FewShotPredictor:
    """A predictor with these supports."""
    predictor = make_predictor(method, *settings)
    predictor.set_support(*map(list, zip(*pictures, strict=True)))
    return predictor


MANY, FEW = [dots(1, size=(150, 100)), dots(2, side=10)], [dots(1, size=(40, 64)), dots(2, 6, size=(60, 40))]
SCALES = ("TEST.SCALES", (48, 80))


@METHODS
@pytest.mark.parametrize("kind", ["squash", "letterbox", "shortest_edge"])
@pytest.mark.parametrize(
    ("supports", "more"), [(MANY, ()), (FEW, ()), (FEW, SCALES)], ids=["many", "few", "scales"]
)
def test_masks_are_those_of_an_evaluation(
    method: str, kind: str, supports: list[Annotated], more: tuple[Any, ...], tmp_path: Path
) -> None:
    pictures = [dots(0), *supports]
    settings = ("INPUT.TEST_RESIZE", kind, "TEST.REFINEMENT", "grabcut", *ZOOM, *more)
    cfg = make_cfg(method, *SMALL, *settings)
    predictor = predictor_of(method, pictures[1:], *settings)
    mapper = EpisodeMapper(cfg, False, write_records(tmp_path, pictures))
    first = [*build_view_resizes(cfg), build_resize(cfg)][0]
    model = EnlargingSegmentor(predictor.model, predictor.model, first, 9).eval()
    with torch.no_grad():
        scores = model([mapper(Episode(0, 5, 0, (1, 2)))])[0]["sem_seg"]
    assert predictor.supports["object"].enlarged.zoom.many == (supports is MANY)
    prediction = predictor.predict(pictures[0][0])
    np.testing.assert_array_equal(prediction.labels == 1, (scores[1] > scores[0]).numpy())
    np.testing.assert_array_equal(prediction.probability[0], (scores[1] - scores[0]).sigmoid().numpy())
    batch = predictor.predict_batch([pictures[0][0]])[0]
    np.testing.assert_array_equal(batch.labels, prediction.labels)


def test_small_objects_are_found_when_they_are_enlarged() -> None:
    image, mask = dots(3)
    found = {}
    for name, settings in (("plain", ()), ("enlarged", ZOOM)):
        prediction = predictor_of("Prototype", [dots(0)], *settings).predict(image)
        found[name] = overlap(prediction.labels == 1, mask)
    assert found["enlarged"] > 2 * found["plain"]


@METHODS
def test_large_objects_are_seen_as_without_it_to_the_bit(method: str) -> None:
    image = dots(3)[0]
    plain, enlarging = (predictor_of(method, [square()], *s).predict(image) for s in ((), ZOOM))
    assert enlarging.object_area == {}
    np.testing.assert_array_equal(plain.probability, enlarging.probability)
    np.testing.assert_array_equal(plain.labels, enlarging.labels)
    assert plain.expected_iou == enlarging.expected_iou


def test_half_of_the_supports_decide(tmp_path: Path) -> None:
    image = dots(3)[0]
    predictor = predictor_of("Prototype", [dots(0), square()], *ZOOM)
    alone = predictor_of("Prototype", [dots(0)], *ZOOM).predict(image)
    assert alone.object_area == {"object": pytest.approx(64 / 18000)}
    np.testing.assert_array_equal(predictor.predict(image).probability, alone.probability)
    predictor.add_support(*square(50, 60))
    assert predictor.predict(image).object_area == {}
    predictor.save_support(tmp_path / "supports.pth")
    predictor.remove_support(1)
    predictor.remove_support(1)
    np.testing.assert_array_equal(predictor.predict(image).probability, alone.probability)
    predictor.load_support(tmp_path / "supports.pth")
    assert predictor.predict(image).object_area == {}
    predictor.remove_support(2)
    np.testing.assert_array_equal(predictor.predict(image).probability, alone.probability)


def test_supports_of_another_class_choose_the_windows(tmp_path: Path) -> None:
    pictures = [dots(0), dots(1), square(), square(60, 70)]
    records = write_records(tmp_path, pictures)
    for record in records[2:]:
        record["classes"] = [6]
    episodes = [Episode(0, 5, 0, (1,)), Episode(1, 6, 2, (3,))]
    mapper = EpisodeMapper(make_cfg("Prototype", *SMALL, *ZOOM), False, records)
    foreign = ForeignSupportMapper(mapper, episodes)(episodes[0])
    (_, mask), *_ = foreign["whole"]["support"]
    np.testing.assert_array_equal(mask.numpy(), pictures[3][1])
    np.testing.assert_array_equal(foreign["whole"]["image"].numpy(), pictures[0][0])
    assert "whole" not in EpisodeMapper(make_cfg("Prototype", *SMALL), False, records)(episodes[0])


def test_small_instances_are_kept() -> None:
    labels = np.zeros((100, 200), np.uint8)
    labels[10:12, 10:12] = labels[50:51, 50:52] = 1
    whole = Prediction(("a",), labels[None].astype(np.float32), labels)
    small = Prediction(("a",), whole.probability, labels, object_area={"a": 40 / 20000})
    assert whole.instances() == []
    assert [int(one.mask.sum()) for one in small.instances()] == [4]
    assert [int(one.mask.sum()) for one in small.instances(min_area=2)] == [4, 2]


def test_a_small_object_inside_another_class_is_no_speck() -> None:
    labels = np.ones((100, 100), np.uint8)
    labels[10:15, 10:15], labels[40:44, 40:44], labels[80:83, 80:83] = 2, 2, 2
    probability = np.stack([labels == 1, labels == 2]).astype(np.float32)
    for area, kept in (({}, [25]), ({"b": 64 / 10000}, [25, 16])):
        at = Prediction(("a", "b"), probability, labels, object_area=area).at(0.4)
        assert [int(one.mask.sum()) for one in at.instances(1) if one.name == "b"] == kept
