"""Exported query paths: what they give, what is written, what is refused."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fss_d2.inference import export
from fss_d2.inference.export import FrozenQuery, export_query, format_of, load_exported
from fss_d2.modeling import FEW_SHOT_META_ARCHS, Prototype, SupportSet
from fss_d2.modeling.meta_arch.contract import stack_supports
from fss_d2.modeling.meta_arch.jc2a import ShotEncoding
from fss_d2.modeling.meta_arch.prototype import Prototypes
from tests.modeling.episodes import make_episode, make_model
from tests.modeling.fake_backbone import FakeBackbone

SIZE = (64, 48)
EPISODE = make_episode(0, shots=2, size=SIZE)
ONE_SHOT = make_episode(0, size=SIZE)  # of methods whose capture takes a while


@lru_cache
def frozen(method: str = "DCAMA") -> FrozenQuery:
    model = make_model(method)
    with torch.no_grad():
        return FrozenQuery(model, model.encode_support(*stack_supports([ONE_SHOT])))


def prototype(cls: type[Prototype] = Prototype) -> FrozenQuery:
    torch.manual_seed(0)
    model = cls(backbone=FakeBackbone(), in_features=["res4"])
    return FrozenQuery(model, model.encode_support(*stack_supports([EPISODE])))


def check_format(module: FrozenQuery, query: Tensor, file_format: str, path: Path) -> None:
    """An exported module gives its own scores of a query that was not seen when the file was written."""
    if file_format == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package, reason="ONNX needs the packages of the extra 'export'")
    with torch.no_grad():
        expected = module(query)
    export_query(module, path, size=SIZE, file_format=file_format)
    error = (load_exported(path, file_format)(query) - expected).abs().max()
    assert error <= export.TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("method", FEW_SHOT_META_ARCHS)
def test_every_method_exports(method: str, tmp_path: Path) -> None:
    module, query = frozen(method), make_episode(1, size=SIZE)["image"]
    with torch.no_grad():
        (expected,) = make_model(method)([{**ONE_SHOT, "image": query}])
        torch.testing.assert_close(module(query[None])[0], expected["sem_seg"])
    if method == "INSID3":
        with pytest.raises(ValueError, match=r"^INSID3 cannot be exported .*clusters are found by scipy"):
            export_query(module, tmp_path / "model.pt2", size=SIZE)
        assert not list(tmp_path.iterdir())
        return
    check_format(module, query[None], "torch_export", tmp_path / "model.pt2")


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("file_format", ["torchscript", "onnx"])
def test_dcama_exports_to_every_format(file_format: str, tmp_path: Path) -> None:
    query = make_episode(1, size=SIZE)["image"][None]
    check_format(frozen("DCAMA"), query, file_format, tmp_path / "model")


class Limited(Prototype):
    """Has operators for which torch knows no translation to ONNX."""

    def extract(self, images: Tensor) -> dict[str, Tensor]:
        limits = torch.tensor(-0.5), torch.tensor(0.5)
        return super().extract(torch.fmin(torch.fmax(images / 99 - 1, limits[0]), limits[1]))


def test_limits_are_translated_to_onnx(tmp_path: Path) -> None:
    query = make_episode(1, size=SIZE)["image"][None]
    check_format(prototype(Limited), query, "onnx", tmp_path / "model")


def test_the_caller_keeps_the_model(tmp_path: Path) -> None:
    model = make_model("JC2A").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    encoded = ShotEncoding(torch.zeros(1, 1, 32))
    FrozenQuery(model, SupportSet("JC2A", 1, SIZE, encoded, encoded))
    assert model.training and any(p.requires_grad for p in model.parameters())
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_supports_are_in_the_file_and_images_are_not(tmp_path: Path) -> None:
    module = prototype()
    state = module.state_dict()
    assert torch.equal(state["support_prototypes"], module.get_buffer("support_prototypes"))
    assert module.get_buffer("support_prototypes").shape == (1, 2, 24)
    encoded = Prototypes(torch.ones(1, 2, 24))
    other = FrozenQuery(module.model, SupportSet("Prototype", 1, SIZE, encoded, encoded))
    image = EPISODE["image"][None]
    assert not torch.equal(module(image), other(image))
    assert other(image).std(dim=1).max() == 0  # equal prototypes, equal scores


@pytest.mark.parametrize("input_type", ["uint8", "float32"])
def test_what_the_sidecar_says(input_type: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "dog.pt2"
    images = {"dog.jpg": EPISODE["image"]}
    content = export_query(
        prototype(), path, size=SIZE, input_type=input_type, images=images, details={"config": "a.yaml"}
    )
    assert json.loads((tmp_path / "new" / "dog.pt2.json").read_text()) == content
    assert sorted(p.name for p in path.parent.iterdir()) == ["dog.pt2", "dog.pt2.json"]
    assert content["input"]["shape"] == [1, 3, 64, 48] and content["output"]["shape"] == [1, 2, 64, 48]
    assert content["input"]["type"] == input_type
    assert content["normalisation_inside"] == {"mean": [0.0] * 3, "std": [1.0] * 3}
    assert (content["method"], content["shots"], content["config"]) == ("Prototype", 2, "a.yaml")
    assert content["max_relative_error"].keys() == {"noise", "dog.jpg"}
    assert max(content["max_relative_error"].values()) <= export.TOLERANCE
    run = load_exported(path, content["format"])
    image = EPISODE["image"][None].to(export.INPUT_TYPES[input_type])
    torch.testing.assert_close(run(image), prototype()(image))


class Branching(Prototype):
    """Its path depends on what it sees."""

    def extract(self, images: Tensor) -> dict[str, Tensor]:
        if images.mean() > 100:
            images = images.flip(2)
        return super().extract(images)


class Noisy(Prototype):
    """Never the same twice."""

    def extract(self, images: Tensor) -> dict[str, Tensor]:
        return super().extract(images + torch.rand_like(images))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Branching, r"Branching cannot be exported with torch .* \(.+\): choose another method"),
        (Noisy, r"Noisy: the exported logits of noise differ from eager by .* 1e-04 is allowed"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_line(
    method: type[Prototype], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.pt2"
    path.write_text("old")
    with pytest.raises(ValueError, match=message) as error:
        export_query(prototype(method), path, size=SIZE)
    assert "\n" not in str(error.value)
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file_format": "coreml"}, "'coreml'.*choose from torch_export, torchscript, onnx"),
        ({"input_type": "int8"}, "'int8'.*uint8, float32"),
        ({"images": {"a.jpg": torch.zeros(3, 9, 9)}}, r"a\.jpg is \(3, 9, 9\): resize it to \(3, 64, 48\)"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        export_query(prototype(), tmp_path / "x.pt2", size=SIZE, **change)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "asked", "found"),
    [
        ("cat.onnx", None, "onnx"),
        ("cat.ONNX", "onnx", "onnx"),
        ("cat.pt2", None, "torch_export"),
        ("cat.v1.ts", None, "torchscript"),
        ("cat.pt", None, "torchscript"),
        ("cat.torchscript", "torchscript", "torchscript"),
        ("a.b/cat", "onnx", "onnx"),
    ],
)
def test_the_ending_says_the_format(name: str, asked: str | None, found: str) -> None:
    assert format_of(name, asked) == found


_ENDINGS = (
    ".pt2 (torch_export), .ts (torchscript), .pt (torchscript), .torchscript (torchscript), .onnx (onnx)"
)


@pytest.mark.parametrize(
    ("name", "asked", "message"),
    [
        ("cat", None, f"cat: its name has no ending; end the name with {_ENDINGS}"),
        ("cat.bin", None, f"cat.bin: .bin is the ending of no format; end the name with {_ENDINGS}"),
        ("cat.pth", "onnx", f"cat.pth: .pth is the ending of no format; end the name with {_ENDINGS}"),
        (
            "cat.onnx",
            "torch_export",
            "cat.onnx: .onnx is the ending of onnx, but the format is torch_export: leave the format out, or "
            "end the name with .pt2",
        ),
        (
            "cat.pt2",
            "torchscript",
            "cat.pt2: .pt2 is the ending of torch_export, but the format is torchscript: leave the format "
            "out, or end the name with .ts",
        ),
    ],
)
def test_an_ending_that_contradicts_is_refused(
    name: str, asked: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as error:
        export_query(prototype(), name, size=SIZE, file_format=asked)
    assert str(error.value) == message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", [".pt2", ".ts", ".onnx"])
def test_a_file_is_what_its_ending_says(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if ending == ".onnx":
        pytest.importorskip("onnxruntime", reason="needs the extra export")
    monkeypatch.setenv("HOME", str(tmp_path))
    module, image = prototype(), torch.randint(0, 256, (1, 3, *SIZE), dtype=torch.uint8)
    content = export_query(module, f"~/cat{ending}", size=SIZE)
    run = load_exported(tmp_path / f"cat{ending}", format_of(f"cat{ending}"))
    torch.testing.assert_close(run(image), module(image), rtol=0, atol=1e-3)
    assert content["format"] == format_of(f"cat{ending}")


def test_several_episodes_are_refused() -> None:
    encoded = Prototypes(torch.zeros(3, 2, 24))
    support = SupportSet("Prototype", 1, SIZE, encoded, encoded)
    with pytest.raises(ValueError, match="3 episodes: export one class at a time"):
        FrozenQuery(prototype().model, support)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(export, "_ONNX_PACKAGES", ("onnx_of_nobody",))
    with pytest.raises(ValueError, match=r"packages onnx_of_nobody: pip install -e '\.\[export\]'"):
        export_query(prototype(), tmp_path / "x.onnx", size=SIZE, file_format="onnx")


def test_onnx_needs_a_torch_that_translates_operators(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with pytest.raises(ValueError, match=r"^onnx needs torch 2\.6 or newer, this is 2\.5\.1\+cpu: choose"):
        export_query(prototype(), tmp_path / "x.onnx", size=SIZE)
    assert not list(tmp_path.iterdir())
