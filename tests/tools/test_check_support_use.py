"""The tool that scores a model with supports of another class, on models whose answer is known."""

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from torch import Tensor, nn

from fss_d2.checkpoint.checkpointer import load_model
from fss_d2.engine.evaluate import check_support_use, evaluate
from fss_d2.engine.support_use import format_support_use
from fss_d2.evaluation import read_rows
from fss_d2.modeling import FEW_SHOT_META_ARCHS
from tests.modeling.episodes import TINY, make_cfg, make_model
from tests.modeling.fake_backbone import register_fake_backbone

_PROGRAM = Path(__file__).parents[2] / "tools" / "check_support_use.py"
_KEYS = ("INPUT.FEW_SHOT_SIZE", "(32, 32)", "DATALOADER.NUM_WORKERS", "0", "TEST.PICTURES", "0", "SEED", "3")


tool = runpy.run_path(str(_PROGRAM))


class _SameColour(nn.Module):
    """The object is what has the colour of the supports' objects."""

    def _mask(self, episode: dict[str, Any]) -> Tensor:
        (support,) = episode["support"]
        colour = support["image"][:, support["mask"] == 1].float().mean(dim=1)
        return (episode["image"].float() - colour[:, None, None]).abs().sum(dim=0) < 60

    def forward(self, episodes: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
        return [self._found(episode) for episode in episodes]

    def _found(self, episode: dict[str, Any]) -> dict[str, Tensor]:
        mask, colour = self._mask(episode).float(), _SameColour._mask(self, episode)
        return {"sem_seg": torch.stack([1 - mask, mask]), "presence": torch.where(colour.any(), 2.0, -3.0)}


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
    both_colours: str,
    tmp_path: Path,
) -> None:
    result, file = check_support_use(_cfg("Prototype", tmp_path), model, both_colours, 1, 12)
    assert (result["mIoU_own"], result["mIoU_foreign"]) == (own, foreign)
    assert (result["low"], result["high"]) == (own - foreign, own - foreign)
    assert "absent_masked" not in result  # every picture shows both classes
    text = format_support_use("Some", result)
    assert f"| Some      | {own:.2f}" in text and text.endswith(verdict)
    content = json.loads(file.read_text())
    assert file == tmp_path / "support_use" / f"{both_colours}_1shot" / "support_use.json"
    assert (content["mIoU_own"], content["mIoU_foreign"], content["episodes"]) == (own, foreign, 12)


def test_several_test_sizes_take_foreign_supports_too(both_colours: str, tmp_path: Path) -> None:
    cfg = _cfg("Prototype", tmp_path, "TEST.SCALES", "((32, 32),)")
    result, _ = check_support_use(cfg, _SameColour().eval(), both_colours, 1, 12)
    assert (result["mIoU_own"], result["mIoU_foreign"]) == (100, 0)


def test_queries_are_the_same_and_supports_of_the_other_class(both_colours: str, tmp_path: Path) -> None:
    _, file = check_support_use(_cfg("Prototype", tmp_path), _SameColour(), both_colours, 1, 8)
    own, foreign = (read_rows(file.parent / name / "episodes.jsonl") for name in (".", "foreign"))
    assert [(r.class_id, r.query) for r in own] == [(r.class_id, r.query) for r in foreign]
    by_class = [{r.supports for r in own if r.class_id == class_id} for class_id in (0, 1)]
    assert all(row.supports in by_class[1 - row.class_id] for row in foreign)
    assert all(row.query not in row.supports for row in foreign)


@pytest.mark.parametrize(
    ("model", "presence", "masked"),
    [(_SameColour(), "off", 0.0), (_AnyColour(), "off", 100.0), (_AnyColour(), "gate", 0.0)],
)
def test_queries_without_the_object(
    model: nn.Module, presence: str, masked: float, some_colours: str, tmp_path: Path
) -> None:
    """A rectangle is 96 of 1024 pixels; the presence is 0.88 with the object and 0.05 without it."""
    cfg = _cfg("Prototype", tmp_path, "TEST.PRESENCE", presence)
    result, file = check_support_use(cfg, model, some_colours, 1, 16)
    assert (result["absent_masked"], result["lost"], result["presence_AUC"]) == (masked, 0, 100)
    assert result["absent_area"] == pytest.approx(masked * 96 / 1024)
    assert (result["missed"], result["false_alarms"], result["absent_queries"]) == (0, 0, 16)
    sure = 1 / (1 + np.exp(-np.array([2, 3])))
    assert result["presence_ECE"] == pytest.approx(100 * (1 - sure).mean(), abs=1e-4)
    assert [row[0] for row in result["reliability"]] == [16, 0, 0, 0, 0, 0, 0, 0, 16, 0]
    text = format_support_use("Some", result)
    assert "without the object" in text and f"| {masked:.2f} [{masked:.2f}, {masked:.2f}]" in text
    own, absent = (read_rows(file.parent / name / "episodes.jsonl") for name in (".", "absent"))
    assert [(r.class_id, r.supports) for r in own] == [(r.class_id, r.supports) for r in absent]
    records = {record["image_id"]: record["classes"] for record in DatasetCatalog.get(some_colours)}
    assert all(row.class_id not in records[row.query] for row in absent)


def test_an_evaluation_gives_the_same_numbers(some_colours: str, tmp_path: Path) -> None:
    cfg = _cfg("Prototype", tmp_path, "DATASETS.TEST", f"('{some_colours}',)", "FEW_SHOT.TEST.EPISODES", "8")
    cfg.TEST.EVALUATORS = ("few_shot_seg", "support_use")
    (scores,) = evaluate(cfg, _SameColour()).values()
    result, _ = check_support_use(cfg, _SameColour(), some_colours, 1, 8)
    assert scores["support_use"] == {name: result[name] for name in scores["support_use"]}
    assert scores["few_shot_seg"]["mIoU"] == result["mIoU_own"]
    cfg.TEST.EVALUATORS = ("support_use",)
    with pytest.raises(ValueError, match="support_use needs few_shot_seg as well"):
        evaluate(cfg, _SameColour())


def test_a_model_without_presence_cannot_gate(some_colours: str, tmp_path: Path) -> None:
    class _Plain(_SameColour):
        def _found(self, episode: dict[str, Any]) -> dict[str, Tensor]:
            return {"sem_seg": super()._found(episode)["sem_seg"]}

    result, _ = check_support_use(_cfg("Prototype", tmp_path), _Plain(), some_colours, 1, 4)
    assert result["absent_masked"] == 0 and "presence_AUC" not in result
    cfg = _cfg("Prototype", tmp_path, "TEST.PRESENCE", "gate")
    with pytest.raises(ValueError, match="Prototype gives no presence; set it to 'off'"):
        check_support_use(cfg, _Plain(), some_colours, 1, 4)


@pytest.mark.parametrize("method", FEW_SHOT_META_ARCHS)
def test_every_method_and_always_the_same_numbers(method: str, both_colours: str, tmp_path: Path) -> None:
    torch.save({"model": make_model(method).state_dict()}, tmp_path / "w.pth")
    weights = str(tmp_path / "w.pth")
    cfg = _cfg(method, tmp_path, "INPUT.FEW_SHOT_SIZE", "(64, 64)", "MODEL.WEIGHTS", weights)
    first, file = check_support_use(cfg, load_model(cfg), both_colours, 2, 6)
    content = file.read_bytes()
    again, _ = check_support_use(cfg, load_model(cfg), both_colours, 2, 6)
    assert again == first
    assert file.read_bytes() == content
    assert (json.loads(content)["method"], json.loads(content)["weights"]) == (method, weights)


def test_a_model_without_weights_is_the_same_each_time(both_colours: str, tmp_path: Path) -> None:
    contents = []
    for seed in (0, 11):  # makes no difference
        torch.manual_seed(seed)
        _run(tmp_path, both_colours, "--episodes", "4", method="DCAMA")
        file = tmp_path / "out" / "support_use" / f"{both_colours}_1shot" / "support_use.json"
        contents.append(file.read_bytes())
    assert contents[0] == contents[1] and b'"DCAMA"' in contents[0]


def _run(folder: Path, dataset: str, *words: str, method: str = "Prototype") -> None:
    config = folder / "config.yaml"
    config.write_text(f'VERSION: 2\nDATASETS: {{TEST: ["{dataset}"]}}\nOUTPUT_DIR: {folder / "out"}\n')
    keys = ["MODEL.META_ARCHITECTURE", method, "MODEL.BACKBONE.NAME", register_fake_backbone()]
    tiny = [str(word) for word in TINY]
    tool["main"](["--config-file", str(config), *keys, *tiny, *_KEYS, "MODEL.DEVICE", "cpu", *words])


def test_the_command_line(both_colours: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run(tmp_path, both_colours, "--episodes", "4", "FEW_SHOT.TEST.SHOTS", "(2,)")
    assert "| Prototype |" in capsys.readouterr().out
    content = json.loads((tmp_path / f"out/support_use/{both_colours}_2shot/support_use.json").read_text())
    assert (content["episodes"], content["shots"], content["weights"]) == (4, 2, "")
    with pytest.raises((FileNotFoundError, ValueError), match=r"none\.pth"):
        _run(tmp_path, both_colours, "--weights", "none.pth")


def test_one_class_has_no_foreign_supports(dataset: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{dataset}: all 5 episodes are of one class"):
        _run(tmp_path, dataset, "--episodes", "5")
    assert not (tmp_path / "out").exists()


def test_a_method_without_supports(both_colours: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="PotentialObjectsSegmenter reads no supports; choose"):
        _run(tmp_path, both_colours, method="PotentialObjectsSegmenter")


@pytest.mark.parametrize("words", [("--episodes", "1"), ("--shots", "0")])
def test_numbers_too_small(
    words: tuple[str, str], both_colours: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        _run(tmp_path, both_colours, *words)
    assert "error: --episodes must be at least 2, --shots at least 1" in capsys.readouterr().err


def test_nothing_to_score_on(both_colours: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"DATASETS\.TEST names no test set; .* --dataset"):
        _run(tmp_path, both_colours, "DATASETS.TEST", "()")
    with pytest.raises(ValueError, match=r"FEW_SHOT\.TEST\.SHOTS is empty; .* --shots"):
        _run(tmp_path, both_colours, "FEW_SHOT.TEST.SHOTS", "()")
