"""The tool that scores a model with supports of another class, on models whose answer is known."""

import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from torch import Tensor, nn

from fss_d2.engine.support_use import check_support_use, format_support_use
from fss_d2.evaluation import read_rows
from fss_d2.inference.loading import load_model
from fss_d2.modeling import FEW_SHOT_META_ARCHS
from tests.modeling.episodes import TINY, make_cfg, make_model
from tests.modeling.fake_backbone import register_fake_backbone

_PROGRAM = Path(__file__).parents[2] / "tools" / "check_support_use.py"
_COLOURS = ((250, 0, 0), (0, 0, 250))
_KEYS = ("INPUT.FEW_SHOT_SIZE", "(32, 32)", "DATALOADER.NUM_WORKERS", "0", "TEST.PICTURES", "0", "SEED", "3")


tool = runpy.run_path(str(_PROGRAM))


@pytest.fixture
def two_classes(tmp_path: Path) -> Iterator[str]:
    """Six grey images (32, 32), each with a red and a blue rectangle of one area; registered."""
    rng = np.random.default_rng(0)
    records = []
    for i in range(6):
        image, mask = np.full((32, 32, 3), 120, np.uint8), np.zeros((32, 32), np.uint8)
        for class_id, colour in enumerate(_COLOURS):
            top, left = int(rng.integers(0, 20)), 16 * class_id + int(rng.integers(0, 8))
            image[top : top + 12, left : left + 8] = colour
            mask[top : top + 12, left : left + 8] = class_id + 1
        files = {"file_name": tmp_path / f"{i}.png", "sem_seg_file_name": tmp_path / f"{i}_mask.png"}
        for file, pixels in zip(files.values(), (image, mask), strict=True):
            Image.fromarray(pixels).save(file)
        record = {"image_id": i, "height": 32, "width": 32, "classes": [0, 1], "mask_encoding": "class_map"}
        records.append(record | {key: str(file) for key, file in files.items()})
    name = "support_use_test_set"
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(stuff_classes=["red", "blue"], class_ids=[0, 1], ignore_label=255)
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


class _SameColour(nn.Module):
    """The object is what has the colour of the supports' objects."""

    def _mask(self, episode: dict[str, Any]) -> Tensor:
        (support,) = episode["support"]
        colour = support["image"][:, support["mask"] == 1].float().mean(dim=1)
        return (episode["image"].float() - colour[:, None, None]).abs().sum(dim=0) < 60

    def forward(self, episodes: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
        masks = [self._mask(episode).float() for episode in episodes]
        return [{"sem_seg": torch.stack([1 - mask, mask])} for mask in masks]


class _AnyColour(_SameColour):
    """The object is whatever is not grey: both rectangles."""

    def _mask(self, episode: dict[str, Any]) -> Tensor:
        return (episode["image"].float() - 120).abs().sum(dim=0) > 60


def _cfg(method: str, output: Path, *words: str) -> CfgNode:
    return make_cfg(method, *_KEYS, "OUTPUT_DIR", str(output), *words)


@pytest.mark.parametrize(
    ("model", "own", "foreign", "verdict"),
    [
        (_SameColour(), 100.0, 0.0, "With supports of another class, 0% of the score remains."),
        (_AnyColour(), 50.0, 50.0, "These 12 episodes do not show that the supports are used."),
    ],
)
def test_models_that_use_their_supports_and_that_do_not(
    model: nn.Module,
    own: float,
    foreign: float,
    verdict: str,
    two_classes: str,
    tmp_path: Path,
) -> None:
    result, file = check_support_use(_cfg("Prototype", tmp_path), model, two_classes, 1, 12)
    assert (result.mean_iou_a, result.mean_iou_b) == (own, foreign)
    assert (result.low, result.high) == (own - foreign, own - foreign)
    text = format_support_use("Some", result)
    assert f"| Some      | {own:.2f}" in text and text.endswith(verdict)
    content = json.loads(file.read_text())
    assert file == tmp_path / "support_use" / f"{two_classes}_1shot" / "support_use.json"
    assert (content["mIoU_own"], content["mIoU_foreign"], content["episodes"]) == (own, foreign, 12)


def test_several_test_sizes_take_foreign_supports_too(two_classes: str, tmp_path: Path) -> None:
    cfg = _cfg("Prototype", tmp_path, "TEST.SCALES", "((32, 32),)")
    result, _ = check_support_use(cfg, _SameColour().eval(), two_classes, 1, 12)
    assert (result.mean_iou_a, result.mean_iou_b) == (100, 0)


def test_queries_are_the_same_and_supports_of_the_other_class(two_classes: str, tmp_path: Path) -> None:
    _, file = check_support_use(_cfg("Prototype", tmp_path), _SameColour(), two_classes, 1, 8)
    own, foreign = (read_rows(file.parent / name / "episodes.jsonl") for name in ("own", "foreign"))
    assert [(r.class_id, r.query) for r in own] == [(r.class_id, r.query) for r in foreign]
    by_class = [{r.supports for r in own if r.class_id == class_id} for class_id in (0, 1)]
    assert all(row.supports in by_class[1 - row.class_id] for row in foreign)
    assert all(row.query not in row.supports for row in foreign)


@pytest.mark.parametrize("method", FEW_SHOT_META_ARCHS)
def test_every_method_and_always_the_same_numbers(method: str, two_classes: str, tmp_path: Path) -> None:
    torch.save({"model": make_model(method).state_dict()}, tmp_path / "w.pth")
    weights = str(tmp_path / "w.pth")
    cfg = _cfg(method, tmp_path, "INPUT.FEW_SHOT_SIZE", "(64, 64)", "MODEL.WEIGHTS", weights)
    first, file = check_support_use(cfg, load_model(cfg), two_classes, 2, 6)
    content = file.read_bytes()
    again, _ = check_support_use(cfg, load_model(cfg), two_classes, 2, 6)
    assert again == first
    assert file.read_bytes() == content
    assert (json.loads(content)["method"], json.loads(content)["weights"]) == (method, weights)


def test_a_model_without_weights_is_the_same_each_time(two_classes: str, tmp_path: Path) -> None:
    contents = []
    for seed in (0, 11):  # makes no difference
        torch.manual_seed(seed)
        _run(tmp_path, two_classes, "--episodes", "4", method="DCAMA")
        file = tmp_path / "out" / "support_use" / f"{two_classes}_1shot" / "support_use.json"
        contents.append(file.read_bytes())
    assert contents[0] == contents[1] and b'"DCAMA"' in contents[0]


def _run(folder: Path, dataset: str, *words: str, method: str = "Prototype") -> None:
    config = folder / "config.yaml"
    config.write_text(f'VERSION: 2\nDATASETS: {{TEST: ["{dataset}"]}}\nOUTPUT_DIR: {folder / "out"}\n')
    keys = ["MODEL.META_ARCHITECTURE", method, "MODEL.BACKBONE.NAME", register_fake_backbone()]
    tiny = [str(word) for word in TINY]
    tool["main"](["--config-file", str(config), *keys, *tiny, *_KEYS, "MODEL.DEVICE", "cpu", *words])


def test_the_command_line(two_classes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run(tmp_path, two_classes, "--episodes", "4", "FEW_SHOT.TEST.SHOTS", "(2,)")
    assert "| Prototype |" in capsys.readouterr().out
    content = json.loads((tmp_path / f"out/support_use/{two_classes}_2shot/support_use.json").read_text())
    assert (content["episodes"], content["shots"], content["weights"]) == (4, 2, "")
    with pytest.raises((FileNotFoundError, ValueError), match=r"none\.pth"):
        _run(tmp_path, two_classes, "--weights", "none.pth")


def test_one_class_has_no_foreign_supports(dataset: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{dataset}: all 5 episodes are of one class"):
        _run(tmp_path, dataset, "--episodes", "5")
    assert not (tmp_path / "out").exists()


def test_a_method_without_supports(two_classes: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="PotentialObjectsSegmenter reads no supports; choose"):
        _run(tmp_path, two_classes, method="PotentialObjectsSegmenter")


@pytest.mark.parametrize("words", [("--episodes", "1"), ("--shots", "0")])
def test_numbers_too_small(
    words: tuple[str, str], two_classes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        _run(tmp_path, two_classes, *words)
    assert "error: --episodes must be at least 2, --shots at least 1" in capsys.readouterr().err


def test_nothing_to_score_on(two_classes: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"DATASETS\.TEST names no test set; .* --dataset"):
        _run(tmp_path, two_classes, "DATASETS.TEST", "()")
    with pytest.raises(ValueError, match=r"FEW_SHOT\.TEST\.SHOTS is empty; .* --shots"):
        _run(tmp_path, two_classes, "FEW_SHOT.TEST.SHOTS", "()")
