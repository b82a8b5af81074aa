"""The tool that draws: episodes, proposals and the papers' figures; which method has which."""

import importlib.util
import json
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
from fss_d2.data.build import build_test_episodes
from fss_d2.engine.drawing import FIGURES, draw_curves, pixel_features
from fss_d2.engine.trainer import Trainer
from fss_d2.modeling.layers.alignment import self_alignment
from tests.modeling.episodes import TINY, make_episode
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
    out = _draw("tsne", "DCAMA", tmp_path, dataset, "--shots", "2")
    assert _files(out) == ["tsne.png"]
    assert Image.open(out / "tsne.png").size == (2 * 128, 128 + 40)  # backbone, penultimate layer


@pytest.mark.parametrize("method", ["DCAMA", "PFENet", "DPCN", "JC2A", "DANet", "DenseCorrelation"])
def test_penultimate_features_are_what_the_scores_are_made_of(method: str) -> None:
    """They have the channels that the last layer reads; the backbone's are the cells that hold the points."""
    words = ("MODEL.DENSE_CORRELATION.CLASS_WEIGHT", "0.0")
    model = Trainer.build_model(_config(method, *words)).eval()
    episode = make_episode(0, size=(64, 64))
    points = [(0.1, 0.3), (0.5, 0.5), (0.9, 0.7)]
    found = pixel_features(model, episode, points)
    deepest, last = found.values()
    name = [n for n in model.backbone.available if n in model.backbone.selected][-1]
    assert list(found) == [f"backbone ({name})", "penultimate layer"]
    assert deepest.shape == (3, model.backbone.available[name].channels)
    layer = model.get_submodule(model.score_layer)
    assert last.shape == (3, layer.in_channels) and layer.out_channels in (1, 2)
    with torch.no_grad():
        whole = model.extract(model.normalise(episode["image"][None]))[name][0]
    side = whole.shape[-1]
    expected = whole[:, [int(y * side) for y, _ in points], [int(x * side) for _, x in points]].T.numpy()
    np.testing.assert_array_equal(deepest, expected)


def test_self_alignment_has_a_row_for_each_image(tmp_path: Path, dataset: str) -> None:
    out = _draw("alignment", "MMFormer", tmp_path, dataset, "--shots", "2")
    picture = Image.open(out / "0000.png")
    # Query and two supports; the picture, and three maps of each of three levels.
    assert picture.size == (10 * 64 + 9 * _GAP, 3 * (64 + _CAPTION) + 2 * _GAP)
    with pytest.raises(ValueError, match=r"set MODEL\.MM_FORMER\.SELF_ALIGNMENT True"):
        _draw("alignment", "MMFormer", tmp_path, dataset, "MODEL.MM_FORMER.SELF_ALIGNMENT", "False")


def test_what_self_alignment_saw_is_what_is_drawn() -> None:
    model = Trainer.build_model(_config("MMFormer")).eval()
    image = make_episode(0, size=(64, 64))["image"]
    seen = model.channel_weights(image[None])
    with torch.no_grad():
        maps = model.extract(model.normalise(image[None]))
    for level, (features, weights) in seen.items():
        torch.testing.assert_close(features, maps[level])
        aligned = features * weights[:, :, None, None]
        torch.testing.assert_close(aligned, self_alignment(maps[level]))


def test_robustness_shows_supports_of_another_class_below(tmp_path: Path, two_classes: str) -> None:
    out = _draw("robustness", "Prototype", tmp_path, two_classes)
    assert len(_files(out)) == 3
    picture = np.asarray(Image.open(out / _files(out)[0]))
    row, support, tile = 64 + _CAPTION + _GAP, 64, _TILE[0] + _GAP
    assert picture.shape[0] + _GAP == 2 * row
    own, foreign = picture[_CAPTION : row - _GAP], picture[row + _CAPTION :]
    assert (own[:, :support] != foreign[:, :support]).any()
    query, truth = (slice(support + _GAP + n * tile, support + _GAP + (n + 1) * tile - _GAP) for n in (0, 2))
    for same in (query, truth):
        assert np.array_equal(own[:, same], foreign[:, same])


def test_episodes_of_one_class(tmp_path: Path, two_classes: str) -> None:
    out = tmp_path / "pictures"
    argv = ["--dataset", two_classes, "--output", str(out), "--height", "64", "DATALOADER.NUM_WORKERS", "0"]
    _tool["main"]([*argv, "--class", "right", "--num", "2"])
    episodes = build_test_episodes(_config("Prototype"), two_classes, 1)
    own = [f"{e.index:04d}.png" for e in episodes if e.class_id == 1][:2]
    assert _files(out) == [*own, "grid.png"]
    with pytest.raises(ValueError, match="there is no class 'unicorn': choose from left, right"):
        _tool["main"]([*argv, "--class", "unicorn"])


def test_curves_of_trainings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run, scores in (("one", (10.0, 20.0)), ("two", (5.0, 30.0))):
        (tmp_path / run).mkdir()
        lines = [
            {"iteration": 9 + 10 * i, "periodic/x_fold0_val/1shot/few_shot_seg/mIoU": score, "loss": 1.0}
            for i, score in enumerate(scores)
        ]
        text = "\n".join(json.dumps(line) for line in [{"iteration": 0, "loss": 2.0}, *lines])
        (tmp_path / run / "metrics.json").write_text(text + "\n")
    runs = [str(tmp_path / "one"), str(tmp_path / "two")]
    _tool["main"](["--figure", "curves", "--runs", *runs, "--output", str(tmp_path / "out")])
    assert _files(tmp_path / "out") == ["curves.png"]
    assert Image.open(tmp_path / "out" / "curves.png").size == (2 * 512, 384 + 20)
    with pytest.raises(ValueError, match=r"metrics\.json does not exist: name the OUTPUT_DIR of a training"):
        draw_curves([tmp_path], tmp_path / "out")
    (tmp_path / "metrics.json").write_text('{"iteration": 0, "loss": 2.0}\n')
    with pytest.raises(ValueError, match=r"no periodic evaluation: train with TEST\.EVAL_PERIOD above 0"):
        draw_curves([tmp_path], tmp_path / "out")
    with pytest.raises(SystemExit):
        _tool["main"](["--figure", "curves", "--output", str(tmp_path)])
    assert "--figure curves needs --runs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("figure", "method", "known"),
    [
        ("attention", "Prototype", "choose from robustness"),
        ("agnostic", "DCAMA", "choose from attention, aggregated, robustness"),
        ("aggregated", "DPCN", "choose from activation, robustness"),
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
        ("tsne", "Prototype", "no figure 'tsne': no layer of it makes scores"),
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
