"""A method with its weights: which ones, in which mode, and what is said where there are none."""

import logging
from pathlib import Path

import pytest
import torch

from fss_d2.checkpoint.checkpointer import load_model
from tests.modeling.episodes import make_cfg, make_model


def test_the_weights_are_loaded_and_the_mode_is_eval(tmp_path: Path) -> None:
    saved = make_model("DCAMA")
    torch.save({"model": saved.state_dict()}, tmp_path / "w.pth")
    torch.manual_seed(7)
    model = load_model(make_cfg("DCAMA", "MODEL.WEIGHTS", str(tmp_path / "w.pth")))
    assert not any(module.training for module in model.modules())
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in saved.state_dict().items())


@pytest.mark.parametrize(("method", "warned"), [("DCAMA", True), ("Prototype", False)])
def test_an_untrained_model_is_reported(method: str, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fss_d2.checkpoint.checkpointer"):
        load_model(make_cfg(method))
    assert ("MODEL.WEIGHTS is empty: DCAMA is untrained" in caplog.text) == warned


def test_missing_prototypes_are_reported_before_the_first_image(tmp_path: Path) -> None:
    """With no weights, and with those of a model whose prototypes were never built."""
    saved, weights = make_model("JC2A"), str(tmp_path / "w.pth")
    torch.save({"model": saved.state_dict()}, weights)
    load_model(make_cfg("JC2A", "MODEL.WEIGHTS", weights))
    load_model(make_cfg("JC2A", "MODEL.JC2A.CKMM", False))
    saved.knowledge.filled.fill_(False)
    torch.save({"model": saved.state_dict()}, weights)
    for path in ("", weights):
        with pytest.raises(ValueError, match=r"base classes .* are missing: set MODEL\.WEIGHTS"):
            load_model(make_cfg("JC2A", "MODEL.WEIGHTS", path))
