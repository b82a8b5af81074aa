"""The tools around the expected IoU, on small folders."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fss_d2.inference.predictor import FewShotPredictor
from fss_d2.inference.quality import QualityModel
from fss_d2.label.supports import read_supports
from tests.inference.predictors import make_predictor
from tests.label.fakes import ColourPredictor, annotated_folder, disc, picture, save
from tools import fit_quality, score_competition, score_review

SCRIPT = Path(__file__).parents[2] / "datasets" / "prepare_class_folders.py"


def test_class_maps_become_folders(tmp_path: Path) -> None:
    class_map = np.zeros((20, 20), np.uint8)
    class_map[:10], class_map[10], class_map[19, :2] = 1, 255, 2  # the second class is too small
    for name in ("a", "b", "c"):
        save(tmp_path / f"images/{name}.jpg", picture({}, (20, 20)))
        save(tmp_path / f"maps/{name}.png", class_map)
    for file, text in (("list", "a__01\nb\nc\n"), ("val", "c\n")):
        (tmp_path / file).write_text(text)
    folders = ["--images", str(tmp_path / "images"), "--maps", str(tmp_path / "maps")]
    lists = ["--list", str(tmp_path / "list"), "--without", str(tmp_path / "val")]
    out = tmp_path / "out"
    names = ["--names", "cat", "dog", "--output", str(out)]
    subprocess.run([sys.executable, str(SCRIPT), *folders, *lists, *names], check=True, timeout=120)
    assert [p.name for p in out.iterdir()] == ["cat"]
    supports = read_supports(out)["cat"]
    assert [s.files[0].name for s in supports] == ["a.jpg", "b.jpg"]
    np.testing.assert_array_equal(supports[0].mask, class_map == 1)


@pytest.fixture
def colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    annotated_folder(tmp_path / "data", ("red", "blue"), count=6)
    for file in sorted((tmp_path / "data/blue").rglob("*.png")):
        file.rename(file.with_name(f"blue {file.name}"))  # an image has one name in all classes
    monkeypatch.setattr(FewShotPredictor, "from_config", lambda *args, **options: ColourPredictor())
    return tmp_path / "data"


def test_the_review_list_is_scored(colours: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Discs are found; a class map without its colour gets no mask, which is right."""
    file = colours.parent / "all.json"
    score_review.main(["--data", str(colours), "--draws", "2", "--without", "2", "--output", str(file)])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]
    assert [row[0] for row in cells] == ["blue", "red", "all"]
    assert cells[2][1:3] == [str(2 * (3 + 2) * 2 - 2), "0 %"]  # 3 and 2 images left to label, 2 without it
    jobs = json.loads(file.read_bytes())
    assert {label["true"] for many in jobs.values() for job in many for label in job} == {1.0}


def test_rows_add_up_over_jobs() -> None:
    label = score_review.Label
    bad, good = label(0.4, 0.5, 0.9, 0.2), label(0.8, 0.7, 0.9, 0.9)
    row = score_review.row("x", [[bad, good, good, good], [replace_true(good, 0.1), good]])
    # Two of six are bad, one is listed and rightly so; errors are those of the jobs' means.
    assert row[:5] == ["x", 6, "33 %", "17 %", "50 %"] and row[5] == "100 %"
    assert row[8] == "0.75" and row[9] == "0.16"  # AUC 1 and 0.5; off by 0.025 and 0.3


def replace_true(label: score_review.Label, true: float) -> score_review.Label:
    return label._replace(true=true)


def test_numbers_are_fitted_and_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    annotated_folder(tmp_path / "data", ("red", "blue"), count=6)
    monkeypatch.setattr(FewShotPredictor, "from_cfg", lambda cfg, **options: make_predictor("Prototype"))
    files = ["--data", str(tmp_path / "data"), "--output", str(tmp_path / "q.json")]
    fit_quality.main([*files, "--draws", "2", "--device", "cpu", "--classes", "red"])
    content = json.loads((tmp_path / "q.json").read_bytes())
    assert content["method"] == "Prototype" and content["settings"]["TEST.REFINEMENT"] == "grabcut"
    assert content["origin"].endswith("masks of data (red)") and content["spread"] == 2.0
    assert replace(QualityModel.from_json(content), origin="") != QualityModel.from_json(content)
    configs = ["--config-file", "DEFAULT", "DEFAULT"]
    fit_quality.main([*files, *configs, "--draws", "1", "--device", "cpu", "--classes", "red"])
    assert "weights" not in json.loads((tmp_path / "q.json").read_bytes())


def test_the_competition_is_scored_by_hand() -> None:
    truth, labels = np.zeros((10, 10), np.uint8), np.zeros((10, 10), np.uint8)
    truth[:5], truth[5:] = 1, 2
    labels[:5], labels[5:, :5], labels[0, 0] = 1, 2, 2
    iou, parts = score_competition.score([labels], [truth], 2)
    assert iou == pytest.approx(100 * (49 / 50 + 25 / 51) / 2) and parts == 1.5
    assert score_competition.parts(np.where(disc((9, 9), (4, 4), 2), 2, 0), 2) == [1]
    np.testing.assert_array_equal(
        score_competition.by_pixel(np.float32([[[0.6, 0.2]], [[0.7, 0.5]]])), [[2, 0]]
    )
