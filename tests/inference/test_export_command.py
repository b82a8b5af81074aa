"""The tool that exports: which supports go in, what is written, what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fss_d2.config import load_config
from fss_d2.inference.export import load_exported
from fss_d2.inference.export_command import main
from fss_d2.inference.predictor import FewShotPredictor
from tests.modeling.fake_backbone import register_fake_backbone


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A config, two pictures and their masks, and supports of two classes encoded with the config."""
    words = [f"MODEL:\n  META_ARCHITECTURE: Prototype\n  BACKBONE:\n    NAME: {register_fake_backbone()}"]
    words += ["  WEIGHTS: weights.pth", "INPUT:\n  FEW_SHOT_SIZE: (32, 64)", "VERSION: 2", ""]
    config = tmp_path / "config.yaml"
    config.write_text("\n".join(words).replace("weights.pth", str(tmp_path / "weights.pth")))
    rng = np.random.default_rng(0)
    for i in range(2):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(tmp_path / f"{i}.png")
        mask = np.zeros((40, 50), np.uint8)
        mask[:, 10 : 30 + 10 * i] = 255
        Image.fromarray(mask).save(tmp_path / f"{i}_mask.png")
    torch.manual_seed(0)
    cfg = load_config(str(config), ["MODEL.WEIGHTS", ""], num_gpus=0)
    model = FewShotPredictor.from_cfg(cfg).model
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
    predictor = FewShotPredictor.from_config(config, device="cpu")
    pairs = [(str(tmp_path / f"{i}.png"), str(tmp_path / f"{i}_mask.png")) for i in range(2)]
    predictor.set_support_classes({"cat": pairs[0], "dog": pairs[1]})
    predictor.save_support(tmp_path / "support.pth")
    return tmp_path


def _export(folder: Path, *words: str) -> tuple[Path, dict]:
    out = folder / "out" / "model.pt2"
    main(["--config-file", str(folder / "config.yaml"), "--output", str(out), *words])
    return out, json.loads(out.with_name("model.pt2.json").read_text())


def _pictures(folder: Path, number: int) -> list[str]:
    return ["--support", f"{folder}/{number}.png", "--support-mask", f"{folder}/{number}_mask.png"]


def test_pictures_and_a_support_file_give_the_same(folder: Path) -> None:
    """... and it is what the predictor says of the picture."""
    image = torch.randint(0, 256, (1, 3, 32, 64), dtype=torch.uint8)
    path, content = _export(folder, *_pictures(folder, 1), "--image", f"{folder}/0.png")
    assert content["class"] == "object" and content["weights"] == f"{folder}/weights.pth"
    assert list(content["max_relative_error"]) == ["noise", f"{folder}/1.png", f"{folder}/0.png"]
    first = load_exported(path, "torch_export")(image)
    words = ("--overwrite", "--support-file", f"{folder}/support.pth", "--class-name", "dog")
    path, content = _export(folder, *words)
    assert content["class"] == "dog" and content["shots"] == 1
    second = load_exported(path, "torch_export")(image)
    assert torch.equal(first, second)
    path, _ = _export(folder, *words[:-1], "cat")
    assert not torch.equal(first, load_exported(path, "torch_export")(image))


def test_what_the_file_leaves_out_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, plain = _export(folder, *_pictures(folder, 1))
    assert plain["left_out"] == {} and plain["support_views"] == ["whole"] and plain["shots"] == 1
    image = torch.randint(0, 256, (1, 3, 32, 64), dtype=torch.uint8)
    network = load_exported(path, "torch_export")(image)
    path, content = _export(folder, "--overwrite", *_pictures(folder, 1), "TEST.REFINEMENT", "grabcut")
    assert content["left_out"] == {"TEST.REFINEMENT": "grabcut"}
    assert "TEST.REFINEMENT grabcut comes after the network" in capsys.readouterr().out
    assert torch.equal(load_exported(path, "torch_export")(image), network)
    dots = np.zeros((40, 50), np.uint8)
    dots[5::10, 5::10] = dots[6::10, 5::10] = 255
    Image.fromarray(dots).save(folder / "dots.png")
    support = ["--support", f"{folder}/0.png", "--support-mask", f"{folder}/dots.png"]
    _, content = _export(folder, "--overwrite", *support, "TEST.ZOOM_TILES", "9")
    assert content["left_out"] == {"TEST.ZOOM_TILES": 9}
    assert "the file sees images as they are, not enlarged" in capsys.readouterr().out


def test_views_of_a_support_are_no_shots(folder: Path) -> None:
    words = ["FEW_SHOT.TEST.SUPPORT_VIEWS", "('whole', 'flip', 'cut')"]
    pictures = [f"{folder}/{i}.png" for i in range(2)]
    masks = [f"{folder}/{i}_mask.png" for i in range(2)]
    _, content = _export(folder, "--support", *pictures, "--support-mask", *masks, *words)
    assert content["shots"] == 2 and content["support_views"] == ["whole", "flip", "cut"]


def test_size_and_weights_can_be_given(folder: Path) -> None:
    torch.manual_seed(3)
    state = torch.load(folder / "weights.pth", weights_only=True)["model"]
    other = {n: t + torch.rand_like(t) if t.is_floating_point() else t for n, t in state.items()}
    torch.save({"model": other}, folder / "other.pth")
    words = ("--size", "24", "40", "--input-type", "float32", "--weights", f"{folder}/other.pth")
    path, content = _export(folder, *_pictures(folder, 0), *words)
    assert content["input"]["shape"] == [1, 3, 24, 40] and content["input"]["type"] == "float32"
    assert content["weights"] == f"{folder}/other.pth"
    assert load_exported(path, "torch_export")(torch.zeros(1, 3, 24, 40)).shape == (1, 2, 24, 40)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--support-file", "{0}/support.pth"], "several classes.*give --class-name, one of cat, dog"),
        (["--support-file", "{0}/support.pth", "--class-name", "cow"], "no class 'cow'.*cat, dog"),
        (["--support-file", "{0}/none.pth"], "none.pth does not exist"),
        (["--support", "{0}/1.png", "--support-mask", "{0}/none.png"], "none.png does not exist"),
        (
            ["--support", "{0}/1.png", "--support-mask", "{0}/1_mask.png", "TEST.SCALES", "(32, 64)"],
            "TEST.SCALES gives 2 sizes",
        ),
    ],
)
def test_wrong_supports_are_refused(words: list[str], message: str, folder: Path) -> None:
    with pytest.raises((ValueError, KeyError, FileNotFoundError), match=message):
        _export(folder, *(word.format(folder) for word in words))
    assert not (folder / "out").exists()


def test_the_ending_of_the_output_is_the_format(folder: Path) -> None:
    config = ["--config-file", str(folder / "config.yaml"), *_pictures(folder, 1)]
    main([*config, "--output", str(folder / "cat.ts")])
    assert json.loads((folder / "cat.ts.json").read_text())["format"] == "torchscript"
    assert torch.jit.load(folder / "cat.ts")(torch.zeros(1, 3, 32, 64, dtype=torch.uint8)).shape[1] == 2
    with pytest.raises(ValueError, match=r"cat\.onnx: \.onnx is the ending of onnx, but the format is"):
        main([*config, "--output", str(folder / "cat.onnx"), "--format", "torch_export"])
    assert not list(folder.glob("cat.onnx*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--support", "a.png"], "--support and --support-mask go together"),
        (["--support-file", "a", "--size", "0", "5"], "--size must be at least 1 1"),
        ([], "one of the arguments --support-file --support is required"),
    ],
)
def test_wrong_arguments_are_one_line(
    words: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        _export(folder, *words)
    assert message in capsys.readouterr().err
