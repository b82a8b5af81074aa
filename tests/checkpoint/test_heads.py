"""Checkpoints of a head: small, and on top of the backbone's own weights."""

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from fss_d2.checkpoint.checkpointer import FewShotCheckpointer, load_model
from fss_d2.config import get_cfg
from fss_d2.io.state_dict import head_of, is_head, is_head_file
from tools.extract_head import extract, main


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = nn.Linear(2, 3), nn.Linear(3, 1)


@pytest.fixture
def trained(tmp_path: Path) -> tuple[_Model, Path]:
    """A model and its checkpoint."""
    model = _Model()
    FewShotCheckpointer(model, str(tmp_path)).save("model_final", iteration=3)
    return model, tmp_path / "model_final.pth"


def test_a_head_leaves_the_backbone_alone(
    trained: tuple[_Model, Path], caplog: pytest.LogCaptureFixture
) -> None:
    model, file = trained
    head = file.with_name("head.pth")
    assert extract(file, head) == 4
    assert set(torch.load(head, weights_only=True)["model"]) == {"head.weight", "head.bias"}
    other = _Model()
    kept = other.backbone.weight.clone()
    with caplog.at_level(logging.WARNING):
        FewShotCheckpointer(other).load(str(head))
    assert torch.equal(other.backbone.weight, kept) and not caplog.records
    assert torch.equal(other.head.weight, model.head.weight)


def test_what_is_a_head(trained: tuple[_Model, Path]) -> None:
    _, file = trained
    head = file.with_name("head.pth")
    extract(file, head)
    assert is_head_file(str(head)) and not is_head_file(str(file))
    assert not is_head_file("") and not is_head_file(str(file.with_name("absent.pth")))
    broken = file.with_name("broken.pth")
    broken.write_bytes(b"no checkpoint")
    assert not is_head_file(str(broken))
    assert not is_head({})
    with pytest.raises(ValueError, match="a backbone only"):
        head_of({"backbone.weight": torch.zeros(1)})


def test_a_model_with_a_head_has_its_backbones_weights(tmp_path: Path) -> None:
    cfg = get_cfg()
    cfg.merge_from_list(
        [
            *("MODEL.META_ARCHITECTURE", "DCAMA", "MODEL.DEVICE", "cpu", "MODEL.DCAMA.PROJECTION", "cosine"),
            *("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "test_resnet"),
            *("MODEL.BACKBONE.WEIGHTS", ""),
        ]
    )
    whole = load_model(cfg)
    torch.save({"model": head_of(whole.state_dict())}, tmp_path / "head.pth")
    torch.save(whole.backbone.state_dict(), tmp_path / "backbone.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "head.pth")
    cfg.MODEL.BACKBONE.WEIGHTS = str(tmp_path / "backbone.pth")
    again = load_model(cfg)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_the_tool_overwrites_nothing_and_names_what_is_wrong(trained: tuple[_Model, Path]) -> None:
    _, file = trained
    head, again = file.with_name("head.pth"), file.with_name("again.pth")
    main([str(file), str(head)])
    with pytest.raises(FileExistsError, match="--force"):
        main([str(file), str(head)])
    main(["--force", str(file), str(head)])
    with pytest.raises(ValueError, match="is a head already"):
        main([str(head), str(again)])
    with pytest.raises(FileNotFoundError, match=r"checkpoint .* does not exist"):
        main([str(file.with_name("absent.pth")), str(again)])
    assert not again.exists()
