"""Reading, converting and writing official checkpoints."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fss_d2.checkpoint.checkpointer import FewShotCheckpointer
from fss_d2.checkpoint.convert import CONVERTERS, convert_dcama, convert_hsnet, write_converted
from fss_d2.io.state_dict import read_state_dict
from fss_d2.modeling import DCAMA
from fss_d2.modeling.backbone.resnet import ResNetBackbone
from tests.checkpoint.official import command, run

ROOT = Path(__file__).parents[2]
HSNET_VGG = (
    " (needs MODEL.BACKBONE.NAME build_vgg_backbone, MODEL.VGG.BATCH_NORM False, MODEL.VGG.LAYOUT hsnet)"
)


def official(backbone: str, prefix: str = "module.", method: str = "dcama") -> dict[str, Tensor]:
    """Names and shapes of a published state dict, on no device: nothing is computed."""
    keys = json.loads((ROOT / "tests" / "golden" / f"{method}_{backbone}_keys.json").read_text())
    return {
        prefix + name: torch.empty(spec["shape"], dtype=getattr(torch, spec["dtype"]), device="meta")
        for name, spec in keys.items()
    }


@pytest.mark.parametrize(
    ("backbone", "architecture", "dropped", "needs"),
    [
        ("r50", "DCAMA ResNet-50", 5, ""),  # fc and three position tables
        ("r101", "DCAMA ResNet-101", 5, ""),
        ("swinb", "DCAMA Swin-B", 42, ""),  # 24 + 11 attention tables, norm, head, three position tables
        ("r50", "HSNet ResNet-50", 2, ""),  # fc
        ("r101", "HSNet ResNet-101", 2, " (needs MODEL.RESNETS.DEPTH 101)"),
        ("vgg16", "HSNet VGG-16", 6, HSNET_VGG),  # three layers of the classifier
    ],
)
@pytest.mark.parametrize("prefix", ["module.", ""])
def test_every_published_layout(
    backbone: str, architecture: str, dropped: int, needs: str, prefix: str
) -> None:
    method = architecture.partition(" ")[0].lower()
    state = official(backbone, prefix, method)
    conversion = CONVERTERS[method](state)
    assert conversion.architecture == architecture
    assert len(conversion.dropped) == dropped
    assert len(conversion.model) == len(state) - dropped
    assert conversion.missing == ()
    assert conversion.summary() == (
        f"{architecture}{needs}: {len(conversion.model)} tensors matched, {dropped} dropped, 0 missing"
    )


def test_projections_and_stacks_go_to_their_places() -> None:
    state = official("r50")
    model = convert_dcama(state).model
    for ours, theirs in {
        "head.attention.res3.query.512.weight": "DCAMA_blocks.0.linears.0.weight",
        "head.attention.res5.key.2048.bias": "DCAMA_blocks.2.linears.1.bias",
        "head.squeeze.res5.0.weight": "conv1.0.weight",
        "head.squeeze.res3.7.bias": "conv3.7.bias",
        "head.merge.res4.3.weight": "conv4.3.weight",
        "head.mixers.2.2.bias": "mixer3.2.bias",
    }.items():
        assert model[ours] is state[f"module.model.{theirs}"]


def test_parts_of_hsnet_go_to_their_places() -> None:
    state = official("r50", method="hsnet")
    model = convert_hsnet(state).model
    for ours, theirs in {
        "head.squeeze.res5.0.query.weight": "encoder_layer4.0.conv1.weight",
        "head.squeeze.res3.3.support.bias": "encoder_layer2.3.conv2.bias",
        "head.squeeze.res4.7.bias": "encoder_layer3.7.bias",
        "head.merge.res4.6.query.weight": "encoder_layer4to3.6.conv1.weight",
        "head.merge.res3.1.weight": "encoder_layer3to2.1.weight",
        "head.decoder1.2.weight": "decoder1.2.weight",
        "head.decoder2.0.bias": "decoder2.0.bias",
    }.items():
        assert model[ours] is state[f"module.hpn_learner.{theirs}"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: official("r50"), "no HSNet checkpoint: none of its .* names is like hpn_learner.encoder"),
        (
            lambda s: {n: t for n, t in s.items() if "layer3to2" not in n},
            "18 tensors missing .head.merge.res3.0.query.weight",
        ),
    ],
    ids=["of DCAMA", "part of the head"],
)
def test_what_does_not_fit_hsnet_is_named(change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert_hsnet(change(official("r50", method="hsnet")))


def test_batch_counters_may_be_missing() -> None:
    state = {n: t for n, t in official("r50").items() if not n.endswith("num_batches_tracked")}
    assert len(convert_dcama(state).missing) == 53


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {}, "no DCAMA checkpoint"),
        (
            lambda s: {"a": torch.ones(1), "b": torch.ones(1)},
            r"no DCAMA checkpoint: none of its 2 .*\(found a, b\)",
        ),
        (
            lambda s: {n: t for n, t in s.items() if "model.conv5" not in n},
            "12 tensors missing .head.merge.res3",
        ),
        (
            lambda s: {n: t for n, t in s.items() if "layer2.1" not in n},
            "missing .backbone.layer2.1.conv1.weight",
        ),
        (
            lambda s: s | {"module.feature_extractor.extra": torch.ones(1)},
            "1 tensors unknown .backbone.extra",
        ),
        (
            lambda s: s | {"module.model.conv1.0.weight": torch.ones(16, 9, 3, 3)},
            r"head.squeeze.res5.0.weight is \(16, 9, 3, 3\) instead of \(16, 3, 3, 3\)",
        ),
    ],
    ids=["empty", "foreign", "part of the head", "part of the backbone", "too much", "other shape"],
)
def test_what_does_not_fit_is_named(change: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        convert_dcama(change(official("r50")))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_state_dicts_are_unwrapped(tmp_path: Path, wrapper: str | None) -> None:
    state = {"a": torch.ones(2)}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "x.pt")
    assert read_state_dict(tmp_path / "x.pt").keys() == {"a"}


class Evil:
    def __reduce__(self) -> tuple:
        return (print, ("code of a pickle was run",))


def test_files_that_are_no_plain_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_state_dict(tmp_path / "none.pt")
    torch.save({"a": torch.ones(1), "b": Evil()}, tmp_path / "code.pt")
    (tmp_path / "text.pt").write_text("not found")
    (tmp_path / "empty.pt").write_bytes(b"")
    for name in ("code.pt", "text.pt", "empty.pt"):
        with pytest.raises(ValueError, match=f"{name} is no checkpoint of plain tensors") as error:
            read_state_dict(tmp_path / name)
        assert "\n" not in str(error.value)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds no state dict"):
        read_state_dict(tmp_path / "list.pt")
    assert "was run" not in capsys.readouterr().out


def test_the_command_writes_what_our_checkpointer_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {
        name: torch.full(t.shape, 0.5).to(t.dtype) for name, t in official("r50").items() if "pe" not in name
    }
    source, target = tmp_path / "official.pt", tmp_path / "ours.pth"
    torch.save(state, source)
    arguments = ["--method", "dcama", str(source), str(target)]
    assert run([*arguments, "--verbose"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("DCAMA ResNet-50: ")
    assert "dropped feature_extractor.fc.weight" in out
    model = DCAMA(backbone=ResNetBackbone(depth=50))
    FewShotCheckpointer(model).load(str(target))
    assert all((p == 0.5).all() for p in model.parameters())

    assert run(arguments) == 1
    assert "--force to overwrite" in capsys.readouterr().err
    assert run([*arguments, "--force"]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["official.pt", "ours.pth"]


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conversion = convert_dcama(official("r50"))

    def fail(content: object, path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        write_converted(tmp_path / "ours.pth", conversion)
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match="missing does not exist"):
        write_converted(tmp_path / "missing" / "ours.pth", conversion)


def test_the_command_knows_every_converter() -> None:
    assert sorted(CONVERTERS) == sorted(command().METHODS)
