"""The tool that draws proposals: what it runs on, what it draws, what it refuses."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fss_d2.config import load_config
from fss_d2.engine.trainer import Trainer
from tests.modeling.fake_backbone import register_fake_backbone

ROOT = Path(__file__).resolve().parents[2]
_tool = runpy.run_path(str(ROOT / "tools" / "visualize_proposals.py"))
_TINY = [
    *("MODEL.BACKBONE.NAME", register_fake_backbone()),
    *("MODEL.DEVICE", "cpu"),
    *("MODEL.PROPOSALS.NUM_QUERIES", "7"),
    *("MODEL.PROPOSALS.DIM", "32"),
    *("MODEL.PROPOSALS.ENCODER_LAYERS", "1"),
    *("MODEL.PROPOSALS.ENCODER_FEEDFORWARD", "16"),
    *("MODEL.PROPOSALS.DECODER_LAYERS", "1"),
    *("MODEL.PROPOSALS.DECODER_FEEDFORWARD", "16"),
    *("MODEL.MM_FORMER.DIM", "16"),
    *("MODEL.MM_FORMER.NUM_LAYERS", "1"),
    *("INPUT.FEW_SHOT_SIZE", "(64, 64)"),
    *("DATALOADER.NUM_WORKERS", "0"),
]
_TILE = (80, 64)  # (width, height): the query is 50 x 40
_CAPTION, _GAP = 18, 4


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text("VERSION: 2\n")
    return path


def _draw(method: str, config: Path, dataset: str, *words: str) -> Path:
    out = config.parent / "pictures"
    argv = [
        "--config-file",
        str(config),
        "--dataset",
        dataset,
        "--output",
        str(out),
        "--height",
        "64",
        *words,
    ]
    torch.manual_seed(0)
    _tool["main"]([*argv, *_TINY, "MODEL.META_ARCHITECTURE", method])
    return out


@pytest.mark.parametrize("method", ["MMFormer", "PotentialObjectsSegmenter"])
def test_draws_as_many_episodes_and_proposals_as_asked_for(method: str, config: Path, dataset: str) -> None:
    """First row: support, query, truth, and the fused mask or the overview. Then rows of three proposals."""
    out = _draw(method, config, dataset, "--num", "2", "--proposals", "3")
    assert sorted(path.name for path in out.iterdir()) == ["0000.png", "0001.png", "grid.png"]
    picture = Image.open(out / "0000.png")
    width, height = _TILE
    assert picture.width == 64 + 3 * width + 3 * _GAP  # the support is squashed to a square
    row = height + _CAPTION + _GAP
    assert picture.height + _GAP in (2 * row, 3 * row)  # an oracle beyond the three takes another row


def test_the_weights_given_are_those_drawn(config: Path, dataset: str) -> None:
    first = np.asarray(Image.open(_draw("MMFormer", config, dataset, "--num", "1") / "0000.png"))
    cfg = load_config(str(config), [*_TINY, "MODEL.META_ARCHITECTURE", "MMFormer"])
    torch.manual_seed(5)
    weights = config.parent / "weights.pth"
    torch.save({"model": Trainer.build_model(cfg).state_dict()}, weights)
    words = ("--num", "1", "MODEL.WEIGHTS", str(weights))
    other = np.asarray(Image.open(_draw("MMFormer", config, dataset, *words) / "0000.png"))
    assert first.shape != other.shape or (first != other).any()
    torch.manual_seed(7)
    again = np.asarray(Image.open(_draw("MMFormer", config, dataset, *words) / "0000.png"))
    assert np.array_equal(other, again)


def test_a_method_without_proposals_is_refused_before_anything_is_drawn(config: Path, dataset: str) -> None:
    with pytest.raises(ValueError, match="Prototype makes no proposals; choose a config of MMFormer or"):
        _draw("Prototype", config, dataset)
    assert not (config.parent / "pictures").exists()


@pytest.mark.parametrize("name", ["proposals", "num", "shots", "height"])
def test_numbers_below_one_are_one_line(
    name: str, config: Path, dataset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        _draw("MMFormer", config, dataset, f"--{name}", "0")
    assert f"error: --{name} must be at least 1" in capsys.readouterr().err


def test_missing_weights_are_named(config: Path, dataset: str) -> None:
    with pytest.raises((FileNotFoundError, ValueError), match=r"none\.pth"):
        _draw("MMFormer", config, dataset, "MODEL.WEIGHTS", "none.pth")
