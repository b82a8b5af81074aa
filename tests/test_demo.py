"""The demo: a few annotated files in, masks, pictures and COCO JSON out."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from PIL import Image

from fss_d2.inference.predictor import FewShotPredictor
from tests.modeling.fake_backbone import register_fake_backbone

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "demo" / "demo.py"
demo: dict[str, Any] = runpy.run_path(str(DEMO))
CONFIGS = {name: ROOT / f"configs/{name}/glyphs_efficientnet_lite0.yaml" for name in ("prototype", "dcama")}
MODEL = ["MODEL.BACKBONE.WEIGHTS", "", "INPUT.FEW_SHOT_SIZE", "(64, 64)"]


def picture(path: Path, color: tuple[int, int, int], left: int, *, masked: str = "") -> None:
    """A square of a color on black, and its mask beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((48, 60), bool)
    mask[8:40, left : left + 30] = True
    image = np.zeros((48, 60, 3), np.uint8)
    image[mask] = color
    Image.fromarray(image).save(path)
    if masked:
        Image.fromarray(mask).save(path.with_name(masked))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Two classes of supports, three queries in two folders, two of them of one name."""
    picture(tmp_path / "S/red/r.jpg", (250, 10, 10), 0, masked="r.png")
    picture(tmp_path / "S/blue/b.png", (10, 10, 250), 20, masked="b_mask.png")
    picture(tmp_path / "q/one.jpg", (250, 10, 10), 30)
    picture(tmp_path / "q/two.png", (10, 10, 250), 5)
    picture(tmp_path / "q/below/two.png", (250, 10, 10), 15)
    return tmp_path


def run(files: Path, *arguments: str, method: str = "prototype") -> None:
    torch.manual_seed(0)  # of the fake backbone's weights
    opts = ["--opts", "MODEL.BACKBONE.NAME", register_fake_backbone(), *MODEL]
    flags = ["--config-file", str(CONFIGS[method]), "--output", str(files / "out"), "--num-gpus", "0"]
    demo["main"]([*flags, *arguments, *opts])


def written(files: Path) -> set[str]:
    return {p.relative_to(files / "out").as_posix() for p in (files / "out").rglob("*") if p.is_file()}


def test_classes_from_folders(files: Path) -> None:
    queries = [f"{files}/q/*.jpg", f"{files}/q/**/two.png"]
    run(files, "--support-dir", f"{files}/S", "--input", *queries, "--save", "mask,overlay,coco")
    stems = {"one", "two", "below/two"}
    assert written(files) == {
        *(f"{kind}/{stem}.png" for kind in ("mask", "overlay") for stem in stems),
        "mask/classes.txt",
        "coco/annotations.json",
    }
    assert (files / "out/mask/classes.txt").read_text() == "blue\nred\n"
    for stem, label in (("one", 2), ("two", 1), ("below/two", 2)):
        labels = np.asarray(Image.open(files / f"out/mask/{stem}.png"))
        shown = np.asarray(Image.open(next(files.glob(f"q/{stem}.*"))).convert("L")) > 8
        assert labels.shape == (48, 60)
        assert (labels[shown] == label).mean() > 0.8, stem
    content = json.loads((files / "out/coco/annotations.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["below/two.png", "one.jpg", "two.png"]
    names = {c["id"]: c["name"] for c in content["categories"]}
    drawn = np.zeros((48, 60), np.uint8)
    for item in content["annotations"]:
        if item["image_id"] == 3:
            number = ["", "blue", "red"].index(names[item["category_id"]])
            drawn[coco_mask.decode(item["segmentation"]) == 1] = number
    np.testing.assert_array_equal(drawn, np.asarray(Image.open(files / "out/mask/two.png")))


def test_masks_are_the_predictors(files: Path) -> None:
    support = [str(files / "S/red/r.jpg"), "--support-mask", str(files / "S/red/r.png")]
    run(files, "--support", *support, "--input", f"{files}/q/one.jpg", "--save", "mask")
    opts = ["MODEL.BACKBONE.NAME", register_fake_backbone(), *MODEL]
    torch.manual_seed(0)
    predictor = FewShotPredictor.from_config(CONFIGS["prototype"], opts=opts, device="cpu")
    predictor.set_support(files / "S/red/r.jpg", files / "S/red/r.png")
    labels = predictor.predict(files / "q/one.jpg").labels
    assert set(np.unique(labels)) == {0, 1}
    np.testing.assert_array_equal(np.asarray(Image.open(files / "out/mask/one.png")), labels)
    assert (files / "out/mask/classes.txt").read_text() == "object\n"


def test_mask_values_of_files_and_folders(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = np.asarray(Image.open(files / "S/red/r.png")) * np.uint8(7)
    mask[0] = 9
    Image.fromarray(mask).save(files / "S/red/r.png")
    parse, supports = demo["parse"], demo["read_support_arguments"]
    line = ["--input", "q", "--output", "o"]
    by_file = [*line, "--support", f"{files}/S/red/r.jpg", "--support-mask", f"{files}/S/red/r.png"]
    by_folder = [*line, "--support-dir", f"{files}/S"]
    for given, said, name in ((by_file, "7", "object"), (by_folder, "red=7", "red")):
        with pytest.raises(ValueError, match=r"r\.png holds the values 0, 7, 9: say which are the object"):
            supports(parse(given))
        _, (found,) = supports(parse([*given, "--mask-values", said]))[name]
        np.testing.assert_array_equal(found, mask == 7)


def test_boxes_of_one_image_or_one_for_each(files: Path) -> None:
    parse, supports = demo["parse"], demo["read_support_arguments"]
    line = ["--config-file", "c.yaml", "--input", "q", "--output", "o", "--support"]
    (pair,) = supports(parse([*line, "a.jpg", "--support-box", "0", "1", "2", "3"])).values()
    assert pair[0] == ["a.jpg"] and [b.x1 for b in pair[1][0].boxes] == [2]
    two = ["--support-box", "0", "0", "2", "2", "--support-box", "4", "4", "8.5", "9"]
    (pair,) = supports(parse([*line, "a.jpg", *two])).values()
    assert [b.x1 for b in pair[1][0].boxes] == [2, 8.5]
    named = supports(parse([*line, "a.jpg", "b.jpg", *two, "--class-name", "cat"]))
    assert list(named) == ["cat"] and [b.x0 for b in named["cat"][1]] == [0, 4]


def test_a_box_on_the_command_line(files: Path) -> None:
    box = ["--support-box", "0", "8", "30", "40"]
    run(files, "--support", f"{files}/S/red/r.jpg", *box, "--input", f"{files}/q", "--class-name", "red")
    assert (files / "out/mask/classes.txt").read_text() == "red\n"
    assert {"mask/below/two.png", "overlay/one.png"} <= written(files)


def test_inputs_by_several_ways_are_labelled_once(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written outside the output folder, wherever the inputs lie."""
    monkeypatch.chdir(files / "q/below")
    inputs = ["two.png", "../one.jpg", "../*.jpg", "../below", str(files / "q/below/two.png")]
    run(files, "--support-dir", f"{files}/S", "--input", *inputs, "--save", "mask")
    assert written(files) == {"mask/classes.txt", "mask/one.png", "mask/below/two.png"}
    assert sorted(path.name for path in files.iterdir()) == ["S", "out", "q"]


def test_the_auto_labellers_folders(files: Path) -> None:
    for kind, name in (("images", "r.jpg"), ("masks", "r.png")):
        (files / f"L/red/{kind}").mkdir(parents=True)
        (files / f"S/red/{name}").rename(files / f"L/red/{kind}/{name}")
    run(files, "--support-dir", f"{files}/L", "--input", f"{files}/q/one.jpg", "--save", "mask")
    assert (files / "out/mask/classes.txt").read_text() == "red\n"


def test_attention_of_dcama(files: Path) -> None:
    arguments = ["--support-dir", f"{files}/S", "--input", f"{files}/q/one.jpg", "--save", "attention"]
    run(files, *arguments, method="dcama")
    assert written(files) == {"attention/one.png"}
    height = Image.open(files / "out/attention/one.png").height
    assert height == 2 * (240 + 18) + 4  # a row for each class


def test_no_attention_of_other_methods(files: Path) -> None:
    arguments = ["--support-dir", f"{files}/S", "--input", f"{files}/q/one.jpg", "--save", "mask,attention"]
    with pytest.raises(ValueError, match="Prototype has no attention maps: take a config of DCAMA"):
        run(files, *arguments)
    assert written(files) == set()


def test_nothing_is_overwritten_unasked(files: Path) -> None:
    arguments = ["--support-dir", f"{files}/S", "--input", f"{files}/q/one.jpg", "--save", "mask"]
    run(files, *arguments)
    (files / "out/mask/one.png").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"mask/one\.png exists: take another --output, or add --overwrite"):
        run(files, *arguments)
    assert (files / "out/mask/one.png").read_bytes() == b"mine"
    run(files, *arguments, "--overwrite")
    assert Image.open(files / "out/mask/one.png").size == (60, 48)


def test_a_broken_image_does_not_stop_the_others(files: Path) -> None:
    (files / "q/broken.jpg").write_bytes(b"no image")
    arguments = ["--support-dir", f"{files}/S", "--input", f"{files}/q", "--save", "mask,coco"]
    with pytest.raises(ValueError, match=r"1 of 4 images were left out; .*broken\.jpg cannot be read"):
        run(files, *arguments)
    assert "mask/below/two.png" in written(files) and "mask/broken.png" not in written(files)
    assert len(json.loads((files / "out/coco/annotations.json").read_text())["images"]) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--support-dir", "{}/none", "--input", "{}/q"], "none does not exist"),
        (["--support-dir", "{}/S", "--input", "{}/*.bmp"], r"\*\.bmp: there is no such file"),
        (["--support-dir", "{}/S", "--input", "{}/q/*w"], r"q/\*w: there is no such file"),  # a folder
        (["--support-dir", "{}/S", "--support-mask", "m.png", "--input", "{}/q"], "go with --support"),
        (["--support", "{}/q/one.jpg", "--input", "{}/q"], "either --support-mask or --support-box"),
        (["--support", "{}/q/one.jpg", "--support-mask", "{}/no.png", "--input", "{}/q"], "no.png does not"),
    ],
)
def test_what_is_missing_is_named(arguments: list[str], message: str, files: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(files, *(argument.format(files) for argument in arguments))
    assert written(files) == set()


def test_bad_arguments_are_one_line(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(files, "--support-dir", "S", "--input", "q", "--save", "mask,video")
    assert "--save 'video': choose from mask,overlay,coco,attention" in capsys.readouterr().err


def test_as_a_program(files: Path) -> None:
    argv = [sys.executable, str(DEMO), "--config-file", str(CONFIGS["prototype"]), "--input", f"{files}/q"]
    argv += ["--support-dir", f"{files}/none", "--output", f"{files}/out"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: {files}/none does not exist; give a folder")
    assert "Traceback" not in done.stderr
