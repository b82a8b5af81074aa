"""Models are built from a config in one place."""

import logging

import pytest
import torch

from fss_d2.modeling import FEW_SHOT_META_ARCHS
from fss_d2.modeling.build import build_model, build_without_weights
from tests.modeling.episodes import make_cfg


def test_the_model_and_its_size_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="fss_d2"):
        model = build_model(make_cfg("PFENet"))
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert type(model).__name__ == "PFENet" and 0 < trained < total
    assert caplog.messages[-1] == f"PFENet: {total:,} parameters, of which {trained:,} are trained"


@pytest.mark.parametrize(
    ("name", "hint"),
    [("PFENEt", r"did you mean PFENet\?"), ("Gloop", "known are .*DCAMA, .*Prototype")],
)
def test_an_unknown_name(name: str, hint: str) -> None:
    cfg = make_cfg(name)
    for build in (build_model, build_without_weights):
        with pytest.raises(ValueError, match=f"MODEL.META_ARCHITECTURE '{name}' does not exist; {hint}"):
            build(cfg)


@pytest.mark.parametrize("name", [*FEW_SHOT_META_ARCHS, "PotentialObjectsSegmenter"])
def test_whether_there_is_anything_to_train(name: str) -> None:
    model = build_without_weights(make_cfg(name))
    assert model.trainable == model.has_weights == (name not in ("FROST", "INSID3", "Prototype"))


def test_whether_there_is_anything_to_train_is_found_without_weights() -> None:
    """Files that do not exist are not read, the config stays as it is, and so does the random state."""
    cfg = make_cfg("MMFormer", "MODEL.MM_FORMER.LEARNABLE_MATCHING", False)
    cfg.MODEL.WEIGHTS = cfg.MODEL.BACKBONE.WEIGHTS = cfg.MODEL.BACKBONE.PIXEL_DECODER_WEIGHTS = "nowhere.pth"
    cfg.MODEL.DEVICE = "cuda"
    cfg.freeze()
    before, state = cfg.clone(), torch.get_rng_state()
    assert build_without_weights(cfg).trainable
    assert cfg == before and cfg.is_frozen()
    assert torch.equal(torch.get_rng_state(), state)
    cfg.defrost()
    cfg.MODEL.MM_FORMER.CROSS_ALIGNMENT = "parameter_free"
    model = build_without_weights(cfg)
    assert model.has_weights and not model.trainable
