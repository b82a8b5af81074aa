"""The command line, with a real method."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from pycocotools.coco import COCO

from fss_d2 import cli
from fss_d2.config import load_config
from fss_d2.inference.predictor import FewShotPredictor
from fss_d2.label import command
from fss_d2.label.writers import FORMATS
from tests.label.fakes import annotated_folder, image_folder

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


def label(*more: str) -> int:
    return cli.main(["label", *words(*more)])


def test_it_labels_and_goes_on(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--formats", "coco, yolo", "--min-area", "1")
    assert label(*flags) == 0
    coco = COCO(place / "out/coco/annotations.json")
    assert len(coco.getImgIds()) == 4
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == ["blue", "red"]
    assert len(list((place / "out/yolo/labels").iterdir())) == 4 and not (place / "out/png").exists()
    checks = json.loads((place / "out/leave_one_out.json").read_bytes())
    assert [0 <= s["iou"] <= 1 for c in checks for s in c["supports"]] == [True] * 4
    assert label(*flags) == 0
    capsys.readouterr()
    for key, value in (
        ("INPUT.FEW_SHOT_SIZE", "(48, 48)"),
        ("TEST.REFINEMENT", "grabcut"),
        ("FEW_SHOT.TEST.SUPPORT_VIEWS", "('whole', 'flip')"),
    ):
        assert label("--min-area", "1", key, value) == 1
        assert f"error: out holds a job with other settings ({key}): give" in capsys.readouterr().err


def test_it_goes_on_with_settings_that_labels_do_not_depend_on(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert label("--no-check", "--formats", "png", "--review-below", "0") == 0
    before = [path.read_bytes() for path in sorted((place / "out/records").iterdir())]
    assert not (place / "out/needs_review.txt").read_text()
    monkeypatch.setattr(FewShotPredictor, "predict", None)  # nothing is labelled again
    keys = "SOLVER.BASE_LR 0.5 SOLVER.IMS_PER_BATCH 7 DATALOADER.NUM_WORKERS 3 TEST.EVAL_PERIOD 9"
    keys += " TEST.BOOTSTRAP 7 MODEL.LOSS.DICE_WEIGHT 1.0 OUTPUT_DIR elsewhere"
    assert label("--no-check", "--review-below", "1", "--formats", "png", *keys.split()) == 0
    assert [path.read_bytes() for path in sorted((place / "out/records").iterdir())] == before
    assert len((place / "out/needs_review.txt").read_text().splitlines()) == 4


def test_the_device_does_not_matter(place: Path) -> None:
    cfg = load_config("tiny.yaml", num_gpus=0)
    predictor = FewShotPredictor.from_cfg(cfg)
    gpu = cfg.clone()
    gpu.defrost()
    gpu.MODEL.DEVICE = "cuda"
    assert command._model(gpu, predictor) == command._model(cfg, predictor)


def test_other_weights_are_another_job(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Recognized by their content, wherever they lie."""
    model = FewShotPredictor.from_config("tiny.yaml", device="cpu").model
    for name, value in (("a", 0.1), ("b", 0.2)):
        state = {key: torch.full_like(tensor, value) for key, tensor in model.state_dict().items()}
        torch.save({"model": state}, place / f"{name}.pth")
    shutil.copy(place / "a.pth", place / "copy.pth")
    quick = ("--no-check", "--formats", "png", "--weights")
    assert [label(*quick, f"{name}.pth") for name in ("a", "copy", "b")] == [0, 0, 1]
    assert "error: out holds a job with other settings (weights)" in capfd.readouterr().err


def test_usage(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert label("--no-check", "--formats", "png") == 0
    assert len(list((place / "out/png").glob("*.png"))) == 4
    assert not (place / "out/leave_one_out.json").exists()
    assert label("--formats", "voc") == 1
    assert "there is no 'voc'; choose from coco, png, yolo, labelme" in capsys.readouterr().err
    assert label("--formats", "") == 1
    assert "there is no ''; choose from coco, png, yolo, labelme" in capsys.readouterr().err
    assert label("--formats", "coco,YOLOv8") == 1
    assert "there is no 'YOLOv8'; did you mean yolo?" in capsys.readouterr().err
    with pytest.raises(SystemExit) as done:
        cli.main(["label"])
    assert done.value.code == 2 and "usage: fss-d2 label" in capsys.readouterr().err
    assert command._FORMATS.split(",") == list(FORMATS)  # by default all


def test_a_home_folder_is_understood_in_every_option(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shells expand "~" only at the start of a word, so --output=~/out arrives as it is."""
    monkeypatch.setenv("HOME", str(place))
    (place / "elsewhere").mkdir()
    monkeypatch.chdir(place / "elsewhere")
    flags = ["--config-file=~/tiny.yaml", "--support=~/supports", "--images=~/images", "--output=~/out"]
    assert cli.main(["label", *flags, "--num-gpus", "0", "--no-check", "OUTPUT_DIR", "~/unused"]) == 0
    assert (place / "out/coco/annotations.json").is_file()
    assert list((place / "elsewhere").iterdir()) == []
    flags[-1] = "--output=./~"  # a folder of that name, because it is asked for
    assert cli.main(["label", *flags, "--num-gpus", "0", "--no-check"]) == 0
    assert (place / "elsewhere/~/coco/annotations.json").is_file()
