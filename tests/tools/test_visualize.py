"""The tool that draws: episodes, proposals and the papers' figures; which method has which."""

import importlib.util
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from PIL import Image

from fss_d2.config import load_config
from fss_d2.engine.drawing import FIGURES, object_features
from fss_d2.engine.trainer import Trainer
from tests.modeling.episodes import TINY
from tests.modeling.fake_backbone import register_fake_backbone

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "visualize.py"
_tool = runpy.run_path(str(TOOL))
_TINY = [
    *map(str, TINY),
    *("MODEL.BACKBONE.NAME", register_fake_backbone()),
    *("MODEL.DEVICE", "cpu"),
    *("MODEL.JC2A.CKMM", "False"),
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
_TILE, _CAPTION, _GAP = (80, 64), 18, 4  # (width, height): the query is 50 x 40
_ONE_PICTURE_EACH = ["0000.png", "0001.png", "grid.png"]


def _draw(figure: str, method: str, folder: Path, dataset: str, *words: str) -> Path:
    (folder / "config.yaml").write_text("VERSION: 2\n")
    argv = ["--config-file", str(folder / "config.yaml"), "--dataset", dataset, "--height", "64"]
    argv += ["--output", str(folder / "out"), "--figure", figure, "--num", "2", *words]
    torch.manual_seed(0)
    _tool["main"]([*argv, *_TINY, "MODEL.META_ARCHITECTURE", method])
    return folder / "out"


def _config(method: str, *words: str) -> CfgNode:
    base = str(ROOT / "configs" / "Base-FewShot.yaml")
    return load_config(base, [*_TINY, "MODEL.META_ARCHITECTURE", method, *words])


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_draws_as_many_episodes_as_asked_for(dataset: str, tmp_path: Path) -> None:
    out = tmp_path / "pictures"
    argv = ["--dataset", dataset, "--shots", "2", "--num", "3", "--output", str(out), "--height", "64"]
    _tool["main"]([*argv, "DATALOADER.NUM_WORKERS", "0"])
    assert _files(out) == ["0000.png", "0001.png", "0002.png", "grid.png"]
    rows = [Image.open(out / f"000{i}.png") for i in range(3)]
    # Two squashed (square) supports; query and truth in the query's own proportions.
    assert rows[0].size == (2 * 64 + 2 * 80 + 3 * 4, 64 + 18)
    assert Image.open(out / "grid.png").size == (rows[0].width, 3 * rows[0].height + 2 * 4)


def test_bad_arguments_are_one_line(dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("proposals", "num", "shots", "height"):
        with pytest.raises(SystemExit):
            _tool["main"](["--dataset", dataset, f"--{name}", "0", "--output", str(tmp_path)])
        assert f"error: --{name} must be at least 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        _tool["main"](["--dataset", dataset, "--figure", "tsne", "--output", str(tmp_path)])
    assert "--figure tsne needs --config-file" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write to the output folder"):
        _tool["main"](["--dataset", dataset, "--output", str(tmp_path / "file" / "x")])


def test_an_unknown_dataset_is_one_line_and_exit_code_one(tmp_path: Path) -> None:
    argv = [sys.executable, str(TOOL), "--dataset", "coco20i_fold9_val", "--output", str(tmp_path)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: dataset 'coco20i_fold9_val': there is no fold 9")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_tool_knows_all_figures() -> None:
    assert _tool["FIGURES"] == FIGURES


@pytest.mark.parametrize(
    ("figure", "method", "columns", "rows"),
    [
        ("aggregated", "DCAMA", 4, 3),  # support, query, prediction, truth; three levels, twice
        ("activation", "DPCN", 5, 3),  # three activations, two masks; the way back with its mask
        ("activation", "PFENet", 4, 3),
    ],
)
def test_draws_a_picture_per_episode_and_a_grid(
    figure: str, method: str, columns: int, rows: int, tmp_path: Path, dataset: str
) -> None:
    out = _draw(figure, method, tmp_path, dataset)
    assert _files(out) == _ONE_PICTURE_EACH
    picture = Image.open(out / "0000.png")
    width, height = _TILE
    assert picture.height == rows * (height + _CAPTION) + (rows - 1) * _GAP
    assert (columns - 1) * width < picture.width <= (columns + 1) * (width + _GAP)


def test_attention_has_a_row_for_object_and_background(tmp_path: Path, dataset: str) -> None:
    out = _draw("attention", "DCAMA", tmp_path, dataset, "--shots", "2")
    picture = np.asarray(Image.open(out / "0000.png"))
    assert picture.shape == (2 * (64 + _CAPTION) + _GAP, 3 * 64 + 2 * _GAP, 3)  # in the network's frame


@pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="t-SNE needs the extra 'figures'")
def test_tsne_is_one_picture(tmp_path: Path, dataset: str) -> None:
    out = _draw("tsne", "Prototype", tmp_path, dataset, "--shots", "2")
    assert _files(out) == ["tsne.png"]
    assert Image.open(out / "tsne.png").size == (256, 256)


def test_object_features_are_means_over_the_object() -> None:
    """The fake backbone's cells see only themselves: a flat object gives one feature on any background."""
    model = Trainer.build_model(_config("Prototype", "MODEL.PROTOTYPE.IN_FEATURES", "('res2',)")).eval()
    mask = torch.zeros(64, 64, dtype=torch.uint8)
    mask[16:48, 32:48] = 1
    flat = torch.full((3, 64, 64), 200, dtype=torch.uint8)
    noisy = torch.where(mask == 1, flat, torch.randint(0, 256, flat.shape, dtype=torch.uint8))
    episode = {"image": noisy, "sem_seg": mask, "support": [{"image": flat, "mask": mask}]}
    query, support = object_features(model, episode)
    torch.testing.assert_close(query, support)


@pytest.mark.parametrize(
    ("figure", "method", "known"),
    [
        ("attention", "Prototype", "choose from tsne"),
        ("agnostic", "DCAMA", "choose from attention, aggregated, tsne"),
        ("aggregated", "DPCN", "choose from activation, tsne"),
    ],
)
def test_a_method_without_the_figure_says_which_it_has(
    figure: str, method: str, known: str, tmp_path: Path, dataset: str
) -> None:
    with pytest.raises(ValueError, match=f"{method} has no figure '{figure}'.*{known}"):
        _draw(figure, method, tmp_path, dataset)
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    ("figure", "method", "message"),
    [
        ("tsne", "PotentialObjectsSegmenter", "reads no supports"),
        ("proposals", "Prototype", "Prototype makes no proposals; choose a config of MMFormer or"),
    ],
)
def test_a_model_without_supports_or_proposals_is_refused_before_anything_is_drawn(
    figure: str, method: str, message: str, tmp_path: Path, dataset: str
) -> None:
    with pytest.raises(ValueError, match=message):
        _draw(figure, method, tmp_path, dataset)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["MMFormer", "PotentialObjectsSegmenter"])
def test_draws_as_many_proposals_as_asked_for(method: str, tmp_path: Path, dataset: str) -> None:
    """First row: support, query, truth, and the fused mask or the overview. Then rows of three proposals."""
    out = _draw("proposals", method, tmp_path, dataset, "--proposals", "3")
    assert _files(out) == _ONE_PICTURE_EACH
    picture = Image.open(out / "0000.png")
    width, height = _TILE
    assert picture.width == 64 + 3 * width + 3 * _GAP  # the support is squashed to a square
    row = height + _CAPTION + _GAP
    assert picture.height + _GAP in (2 * row, 3 * row)  # an oracle beyond the three takes another row


def test_the_weights_given_are_those_drawn(tmp_path: Path, dataset: str) -> None:
    first = np.asarray(Image.open(_draw("proposals", "MMFormer", tmp_path, dataset) / "0000.png"))
    torch.manual_seed(5)
    weights = tmp_path / "weights.pth"
    torch.save({"model": Trainer.build_model(_config("MMFormer")).state_dict()}, weights)
    words = ("MODEL.WEIGHTS", str(weights))
    other = np.asarray(Image.open(_draw("proposals", "MMFormer", tmp_path, dataset, *words) / "0000.png"))
    assert first.shape != other.shape or (first != other).any()
    torch.manual_seed(7)
    words = ("--weights", str(weights))
    again = np.asarray(Image.open(_draw("proposals", "MMFormer", tmp_path, dataset, *words) / "0000.png"))
    assert np.array_equal(other, again)


def test_missing_weights_are_named(tmp_path: Path, dataset: str) -> None:
    with pytest.raises((FileNotFoundError, ValueError), match=r"none\.pth"):
        _draw("proposals", "MMFormer", tmp_path, dataset, "MODEL.WEIGHTS", "none.pth")
