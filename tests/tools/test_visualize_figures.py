"""The tool that draws the papers' figures: which method has which, what is written, what is refused."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fss_d2.config import load_config
from tests.modeling.episodes import TINY
from tests.modeling.fake_backbone import register_fake_backbone

ROOT = Path(__file__).resolve().parents[2]
_tool = runpy.run_path(str(ROOT / "tools" / "visualize_figures.py"))
_TINY = [
    *map(str, TINY),
    *("MODEL.BACKBONE.NAME", register_fake_backbone()),
    *("MODEL.DEVICE", "cpu"),
    *("MODEL.JC2A.CKMM", "False"),
    *("INPUT.FEW_SHOT_SIZE", "(64, 64)"),
    *("DATALOADER.NUM_WORKERS", "0"),
]
_TILE, _CAPTION, _GAP = (80, 64), 18, 4  # (width, height): the query is 50 x 40


def _draw(figure: str, method: str, folder: Path, dataset: str, *words: str) -> Path:
    (folder / "config.yaml").write_text("VERSION: 2\n")
    argv = ["--config-file", str(folder / "config.yaml"), "--dataset", dataset, "--height", "64"]
    argv += ["--output", str(folder / "out"), "--figure", figure, "--num", "2", *words]
    torch.manual_seed(0)
    _tool["main"]([*argv, *_TINY, "MODEL.META_ARCHITECTURE", method])
    return folder / "out"


@pytest.mark.parametrize(
    ("figure", "method", "columns", "rows"),
    [
        ("aggregated", "DCAMA", 4, 3),  # support, query, prediction, truth; three levels, twice
        ("activation", "DPCN", 5, 3),  # three activations, two masks; the way back with its mask
        ("activation", "PFENet", 4, 3),
    ],
)
def test_draws_a_picture_an_episode_and_a_grid(
    figure: str, method: str, columns: int, rows: int, tmp_path: Path, dataset: str
) -> None:
    out = _draw(figure, method, tmp_path, dataset)
    assert sorted(path.name for path in out.iterdir()) == ["0000.png", "0001.png", "grid.png"]
    picture = Image.open(out / "0000.png")
    width, height = _TILE
    assert picture.height == rows * (height + _CAPTION) + (rows - 1) * _GAP
    assert (columns - 1) * width < picture.width <= (columns + 1) * (width + _GAP)


def test_attention_has_a_row_for_object_and_background(tmp_path: Path, dataset: str) -> None:
    out = _draw("attention", "DCAMA", tmp_path, dataset, "--shots", "2")
    picture = np.asarray(Image.open(out / "0000.png"))
    assert picture.shape == (2 * (64 + _CAPTION) + _GAP, 3 * 64 + 2 * _GAP, 3)  # in the network's frame


def test_tsne_is_one_picture(tmp_path: Path, dataset: str) -> None:
    pytest.importorskip("sklearn", reason="t-SNE needs the extra 'figures'")
    out = _draw("tsne", "Prototype", tmp_path, dataset, "--shots", "2")
    assert [path.name for path in out.iterdir()] == ["tsne.png"]
    assert Image.open(out / "tsne.png").size == (256, 256)


def test_object_features_are_means_over_the_object() -> None:
    """The fake backbone has cells of its own: a flat object gives its own feature, whatever is round it."""
    model = _tool["load_few_shot_model"](_config("Prototype", "MODEL.PROTOTYPE.IN_FEATURES", "('res2',)"))
    mask = torch.zeros(64, 64, dtype=torch.uint8)
    mask[16:48, 32:48] = 1
    flat = torch.full((3, 64, 64), 200, dtype=torch.uint8)
    noisy = torch.where(mask == 1, flat, torch.randint(0, 256, flat.shape, dtype=torch.uint8))
    episode = {"image": noisy, "sem_seg": mask, "support": [{"image": flat, "mask": mask}]}
    query, support = _tool["object_features"](model, episode)
    torch.testing.assert_close(query, support)


def _config(method: str, *words: str) -> object:
    base = str(ROOT / "configs" / "Base-FewShot.yaml")
    return load_config(base, [*_TINY, "MODEL.META_ARCHITECTURE", method, *words])


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


def test_a_method_without_supports_is_refused(tmp_path: Path, dataset: str) -> None:
    with pytest.raises(ValueError, match="reads no supports"):
        _draw("tsne", "PotentialObjectsSegmenter", tmp_path, dataset)
