"""Which evaluators a config and a model can have, and an evaluation at several sizes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from torch import nn

from fss_d2.config import get_cfg
from fss_d2.data import register_folder
from fss_d2.engine.evaluate import EVALUATORS, build_evaluators, check_evaluators, evaluate
from fss_d2.engine.trainer import Trainer
from fss_d2.evaluation import (
    FewShotEvaluator,
    OracleEvaluator,
    ProposalRecallEvaluator,
    compare,
    read_rows,
)
from fss_d2.modeling.layers import resize
from tests.modeling.episodes import make_cfg, make_model


def _cfg(*evaluators: str) -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "Some"
    cfg.TEST.EVALUATORS = evaluators
    return cfg


class _Proposing(nn.Module):
    """A method of both kinds: scores, and a proposal head."""

    def __init__(self) -> None:
        super().__init__()
        self.proposals = nn.Identity()


@pytest.fixture(scope="module")
def dataset() -> str:
    MetadataCatalog.get("evaluators_test_set").set(class_ids=[0], stuff_classes=["ant"])
    return "evaluators_test_set"


def test_evaluators_have_folders_of_their_own(dataset: str, tmp_path: Path) -> None:
    cfg = _cfg("proposal_recall", "few_shot_seg", "oracle")
    kinds = [type(evaluator) for evaluator in build_evaluators(cfg, dataset, tmp_path / "run")]
    assert kinds == [ProposalRecallEvaluator, FewShotEvaluator, OracleEvaluator]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["oracle", "run"]
    assert len(Trainer.build_evaluator(cfg, dataset)._evaluators) == 3


@pytest.mark.parametrize("names", [(), ("oracel",), ("oracle", "oracle"), ("few_shot_seg", "sem_seg")])
def test_wrong_names(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"TEST\.EVALUATORS is .*few_shot_seg, oracle, proposal_recall"):
        check_evaluators(_cfg(*names), _Proposing())


def test_what_a_model_can_be_judged_by() -> None:
    check_evaluators(_cfg(*(name for name in EVALUATORS if name != "aggregated")), _Proposing())
    check_evaluators(_cfg("few_shot_seg", "aggregated"), make_model("DCAMA"))
    with pytest.raises(ValueError, match="Some gives nothing for aggregated"):
        check_evaluators(_cfg("aggregated"), _Proposing())
    prototype = make_model("Prototype")
    check_evaluators(_cfg("few_shot_seg"), prototype)
    with pytest.raises(
        ValueError, match=r"Some gives nothing for oracle; choose from \('few_shot_seg', 'support_use'\)"
    ):
        check_evaluators(_cfg("few_shot_seg", "oracle"), prototype)
    segmenter = make_model(
        "PotentialObjectsSegmenter", "MODEL.PROPOSALS.DIM", 32, "MODEL.PROPOSALS.NUM_QUERIES", 3
    )
    check_evaluators(_cfg("oracle", "proposal_recall"), segmenter)
    with pytest.raises(ValueError, match=r"nothing for few_shot_seg; choose from \('oracle', 'proposal_r"):
        check_evaluators(_cfg("few_shot_seg"), segmenter)


def test_proposals_are_not_averaged_over_sizes() -> None:
    cfg = _cfg("few_shot_seg", "oracle")
    cfg.TEST.SCALES = (32, 48)
    with pytest.raises(
        ValueError, match=r"TEST\.SCALES \(32, 48\) .*'oracle' needs; set TEST\.SCALES to \(\)"
    ):
        check_evaluators(cfg, _Proposing())
    cfg.TEST.EVALUATORS = ("few_shot_seg",)
    check_evaluators(cfg, _Proposing())


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[str]:
    """A class of five images of 40x56 pixels: a light rectangle on dark noise, registered as "scales_toy"."""
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (tmp_path / "toy" / "light" / part).mkdir(parents=True)
    for i in range(5):
        mask = np.zeros((40, 56), np.uint8)
        top, left = rng.integers(4, 16, 2)
        mask[top : top + 16, left : left + 24] = 255
        pixels = rng.integers(0, 90, (40, 56, 3)) + mask[..., None] // 2
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "toy" / "light" / "images" / f"{i}.png")
        Image.fromarray(mask).save(tmp_path / "toy" / "light" / "masks" / f"{i}.png")
    register_folder("scales_toy", str(tmp_path / "toy"))
    yield "scales_toy"
    DatasetCatalog.pop("scales_toy")
    MetadataCatalog.pop("scales_toy")


class _Brightness(nn.Module):
    """Finds what is light in the query, to the pixel."""

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"sem_seg": self._scores(episode)} for episode in batched_inputs]

    def _scores(self, episode: dict[str, Any]) -> torch.Tensor:
        h, w = episode.get("valid_size", episode["image"].shape[1:])
        light = episode["image"][None, :, :h, :w].float().mean(dim=1, keepdim=True) - 110
        size = (episode["height"], episode["width"])
        return resize(torch.cat([-light, light], dim=1), size, align_corners=False)[0]


def _evaluated(
    model: nn.Module, toy: str, folder: Path, *overrides: Any
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Scores, and the counts of each episode."""
    cfg = make_cfg("Prototype", "INPUT.FEW_SHOT_SIZE", (64, 64), "DATALOADER.NUM_WORKERS", 0)
    cfg.merge_from_list(["DATASETS.TEST", (toy,), "FEW_SHOT.TEST.EPISODES", 4, "OUTPUT_DIR", str(folder)])
    cfg.merge_from_list(["TEST.BOOTSTRAP", 0, "TEST.PICTURES", 1, *overrides])
    (scores,) = evaluate(cfg, model).values()
    rows = (folder / "inference" / f"{toy}_1shot" / "episodes.jsonl").read_text().splitlines()
    return scores["few_shot_seg"], [json.loads(row) for row in rows]


@pytest.mark.parametrize("frame", ["original", "network", "pfenet_square"])
@pytest.mark.parametrize("resizing", ["squash", "letterbox"])
def test_the_own_size_alone_scores_as_no_sizes_do(
    toy: str, tmp_path: Path, frame: str, resizing: str
) -> None:
    settings = ("TEST.FRAME", frame, "INPUT.TEST_RESIZE", resizing)
    model = make_model("Prototype").train()
    off = _evaluated(model, toy, tmp_path / "off", *settings)
    assert _evaluated(model, toy, tmp_path / "one", *settings, "TEST.SCALES", (64,)) == off
    assert model.training and not model.backbone.training  # as it was
    assert off[0]["mIoU"] > 15  # not equal because all is wrong


@pytest.mark.parametrize("frame", ["original", "network"])
@pytest.mark.parametrize("resizing", ["squash", "letterbox", "shortest_edge"])
def test_scores_of_every_size_lie_on_the_target(toy: str, tmp_path: Path, frame: str, resizing: str) -> None:
    """Letterboxed, 40x56 pixels are 40x64 of the network's 64x64, and 64x96 of 96x96: not in proportion."""
    settings = ("TEST.FRAME", frame, "INPUT.TEST_RESIZE", resizing, "TEST.SCALES", (96, (112, 96)))
    assert _evaluated(_Brightness(), toy, tmp_path, *settings)[0]["mIoU"] > 92


def test_views_of_supports_are_not_supports(toy: str, tmp_path: Path) -> None:
    """One shot stays one shot, whatever the mapper shows of it, so the same episodes can be compared."""
    model, rows = make_model("Prototype"), {}
    for name, views in {"plain": ("whole",), "views": ("whole", "flip", "cut")}.items():
        _evaluated(model, toy, tmp_path / name, "FEW_SHOT.TEST.SUPPORT_VIEWS", views)
        folder = tmp_path / name / "inference" / f"{toy}_1shot"
        rows[name] = read_rows(folder / "episodes.jsonl")
        settings = json.loads((folder / "results.json").read_text())["settings"]
        assert (settings["shots"], settings["support_views"]) == (1, list(views))
    assert compare(rows["views"], rows["plain"]).episodes == 4


def test_other_sizes_and_other_annotations_give_other_scores(toy: str, tmp_path: Path) -> None:
    model = make_model("Prototype")
    plain = _evaluated(model, toy, tmp_path / "plain")[1]
    for number, other in enumerate(
        (("TEST.SCALES", (64, (40, 96))), ("FEW_SHOT.TEST.SUPPORT_ANNOTATION", "scribble"))
    ):
        rows = _evaluated(model, toy, tmp_path / str(number), *other)[1]
        assert rows != plain
        assert [row["query"] for row in rows] == [row["query"] for row in plain]  # the same episodes
