"""Scoring the auto-labeller: by hand on known masks."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fss_d2.inference.predictor import FewShotPredictor
from fss_d2.label.supports import read_supports
from tests.label.fakes import ColourPredictor, annotated_folder
from tools.score_autolabel import draw_supports, iou, label_and_score, main, mean_of_classes, parse


def test_iou_by_hand(tmp_path: Path) -> None:
    found, truth = np.zeros((10, 10), np.uint8), np.zeros((10, 10), np.uint8)
    found[:4], truth[2:6], truth[0] = 1, 1, 255  # 30 pixels found count, 20 of them are right, 40 are true
    Image.fromarray(found).save(tmp_path / "found.png")
    assert iou(tmp_path / "found.png", truth) == pytest.approx(100 * 20 / 50)
    assert iou(tmp_path / "found.png", np.full((10, 10), 255, np.uint8)) == 0


def test_the_rest_of_a_class_is_labelled(tmp_path: Path) -> None:
    annotated_folder(tmp_path, ("red", "blue"))
    data = read_supports(tmp_path)
    for name, of_class in data.items():
        chosen = draw_supports(of_class, 1, (0, 0, 0))
        scores = label_and_score(ColourPredictor(), name, of_class, chosen)
        assert len(scores) == len(of_class) - 1
        assert min(scores) > 99  # it finds a disc by its colour


def test_draws_differ_and_are_repeatable(tmp_path: Path) -> None:
    annotated_folder(tmp_path, ("red",))
    supports = read_supports(tmp_path)["red"] * 4
    draws = [[id(s) for s in draw_supports(supports, 1, (0, 0, draw))] for draw in range(8)]
    assert draws == [[id(s) for s in draw_supports(supports, 1, (0, 0, draw))] for draw in range(8)]
    assert len({tuple(draw) for draw in draws}) > 1
    with pytest.raises(ValueError, match="has only"):
        draw_supports(supports, len(supports), (0,))


def test_a_mean_of_classes_weighs_them_alike() -> None:
    assert mean_of_classes({"a": [10.0] * 9, "b": [50.0]}) == "30.0 [30.0, 30.0]"


def test_configs_of_one_folder_have_columns_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    annotated_folder(tmp_path, ("red",))
    monkeypatch.setattr(FewShotPredictor, "from_config", lambda *args, **options: ColourPredictor())
    main(["--data", str(tmp_path), "--config-file", "configs/a.yaml", "configs/b.yaml", "DEFAULT"])
    header = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| class"))
    assert [cell.strip() for cell in header.strip("|").split("|")[1:]] == [
        "configs/a.yaml 1-shot",
        "configs/b.yaml 1-shot",
        "DEFAULT 1-shot",
    ]


def test_wrong_numbers_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--data", "x", "--shots", "0"])
    assert "--shots [0]: give 1 or more" in capsys.readouterr().err
