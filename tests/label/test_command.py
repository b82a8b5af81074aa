"""The command line, with a real method."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
from pycocotools.coco import COCO

from fss_d2 import cli
from fss_d2.inference.predictor import FewShotPredictor
from tests.label.fakes import annotated_folder, image_folder

_ROOT = Path(__file__).parents[2]
_CONFIG = """
VERSION: 2
MODEL:
  META_ARCHITECTURE: Prototype
  BACKBONE: {NAME: build_timm_backbone}
  TIMM: {NAME: test_efficientnet}
INPUT: {FEW_SHOT_SIZE: [32, 32]}
SEED: 0
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two supports each of two classes, four images, and a config; the working folder."""
    annotated_folder(tmp_path / "supports", ("red", "blue"))
    image_folder(tmp_path / "images", 4)
    (tmp_path / "tiny.yaml").write_text(_CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def words(*more: str) -> list[str]:
    flags = ["--config-file", "tiny.yaml", "--support", "supports", "--images", "images", "--output", "out"]
    return [*flags, "--num-gpus", "0", *more]


def run_tool(monkeypatch: pytest.MonkeyPatch, *more: str) -> int:
    program = str(_ROOT / "tools/autolabel.py")
    monkeypatch.setattr(sys, "argv", [program, *words(*more)])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(program, run_name="__main__")
    assert isinstance(done.value.code, int)
    return done.value.code


def test_the_tool_labels_and_goes_on(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tool(monkeypatch, "--formats", "coco, yolo", "--min-area", "1") == 0
    coco = COCO(place / "out/coco/annotations.json")
    assert len(coco.getImgIds()) == 4
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == ["blue", "red"]
    assert len(list((place / "out/yolo/labels").iterdir())) == 4 and not (place / "out/png").exists()
    checks = json.loads((place / "out/leave_one_out.json").read_bytes())
    assert all(0 <= s["iou"] <= 1 for c in checks for s in c["supports"])
    assert run_tool(monkeypatch, "--formats", "coco, yolo", "--min-area", "1") == 0
    capsys.readouterr()
    assert run_tool(monkeypatch, "--min-area", "1", "INPUT.FEW_SHOT_SIZE", "(48, 48)") == 1
    assert "error: out holds a job with other settings (config)" in capsys.readouterr().err


def test_other_weights_are_another_job(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Known by their content, wherever they lie."""
    model = FewShotPredictor.from_config("tiny.yaml", device="cpu").model
    for name, value in (("a", 0.1), ("b", 0.2)):
        state = {key: torch.full_like(tensor, value) for key, tensor in model.state_dict().items()}
        torch.save({"model": state}, place / f"{name}.pth")
    shutil.copy(place / "a.pth", place / "copy.pth")
    quick = ("--no-check", "--formats", "png", "--weights")
    assert [run_tool(monkeypatch, *quick, f"{name}.pth") for name in ("a", "copy", "b")] == [0, 0, 1]
    assert "error: out holds a job with other settings (weights)" in capfd.readouterr().err


def test_the_console_script(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["label", *words("--no-check", "--formats", "png")]) == 0
    assert len(list((place / "out/png").glob("*.png"))) == 4
    assert not (place / "out/leave_one_out.json").exists()
    assert cli.main(["label", *words("--formats", "voc")]) == 1
    assert "there is no 'voc'; choose from coco, png, yolo, labelme" in capsys.readouterr().err
    with pytest.raises(SystemExit) as done:
        cli.main(["label"])
    assert done.value.code == 2 and "usage: fss-d2 label" in capsys.readouterr().err


def test_commands_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    assert "label" in capsys.readouterr().out
    assert cli.main([]) == cli.main(["lable"]) == 2
    assert "usage: fss-d2 COMMAND" in capsys.readouterr().err


def test_the_script_is_declared() -> None:
    assert 'fss-d2 = "fss_d2.cli:main"' in (_ROOT / "pyproject.toml").read_text()
