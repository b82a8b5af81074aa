"""Features of a frozen pixel decoder: names, sizes, weights of stage 1."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fss_d2.modeling.backbone import PixelDecoderBackbone, ResNetBackbone
from fss_d2.modeling.backbone.decoded import load_stage1_weights
from fss_d2.modeling.build import build_few_shot_backbone, build_model
from fss_d2.modeling.proposals.pixel_decoder import MSDeformAttnPixelDecoder
from tests.modeling.episodes import make_cfg
from tests.modeling.fake_backbone import FakeBackbone

DECODED = ("MODEL.BACKBONE.FEATURES", "pixel_decoder")
WEIGHTS = "MODEL.BACKBONE.PIXEL_DECODER_WEIGHTS"


def make_backbone(**arguments: Any) -> PixelDecoderBackbone:
    torch.manual_seed(0)
    inner = arguments.pop("backbone", None) or FakeBackbone()
    channels = {stage: inner.available[stage].channels for stage in ("res2", "res3", "res4", "res5")}
    decoder = MSDeformAttnPixelDecoder(channels, dim=32, num_heads=4, num_layers=1, feedforward=32)
    return PixelDecoderBackbone(inner, decoder, 32, **arguments)


@pytest.fixture
def stage1(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    """A checkpoint of the proposal segmenter."""
    torch.manual_seed(7)
    state = build_model(make_cfg("PotentialObjectsSegmenter")).state_dict()
    torch.save({"model": state}, tmp_path / "stage1.pth")
    return tmp_path / "stage1.pth", state


def test_each_stage_is_what_the_decoder_gives() -> None:
    backbone = make_backbone()
    image = torch.rand(2, 3, 70, 41)
    fine, levels = backbone.decoder(backbone.backbone(image))
    maps = backbone(image)
    for stage, expected in zip(("res2", "res5", "res4", "res3"), (fine, *levels), strict=True):
        assert torch.equal(maps[stage], expected)
        assert backbone.blocks(stage) == [f"{stage}.0"]
    backbone.select(["res3.0", "res2"])
    some = backbone(image)
    assert list(some) == ["res3.0", "res2"] and torch.equal(some["res3.0"], maps["res3"])


@pytest.mark.parametrize("size", [(64, 64), (70, 41), (33, 97)])
def test_sizes_and_channels(size: tuple[int, int]) -> None:
    backbone = make_backbone()
    for name, value in backbone(torch.rand(1, 3, *size)).items():
        spec = backbone.available[name]
        assert value.shape == (1, 32, -(-size[0] // spec.stride), -(-size[1] // spec.stride))


def test_dilated_stages_are_given_at_their_usual_sizes() -> None:
    backbone = make_backbone(backbone=ResNetBackbone(dilation="pspnet"))
    assert [backbone.available[stage].stride for stage in ("res2", "res3", "res4", "res5")] == [4, 8, 16, 32]
    shapes = {name: tuple(value.shape[-2:]) for name, value in backbone(torch.rand(1, 3, 65, 65)).items()}
    assert shapes == {"res2": (17, 17), "res3": (9, 9), "res4": (4, 4), "res5": (2, 2)}
    as_they_are = make_backbone(backbone=ResNetBackbone(dilation="pspnet"), resize_dilated=False)
    assert as_they_are.available["res5"].stride == 8


def test_all_of_it_stays_frozen() -> None:
    backbone = make_backbone().train()
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_no_stage_runs_alone() -> None:
    backbone = make_backbone()
    assert backbone.separate_stages == ()
    with pytest.raises(NotImplementedError, match="PixelDecoderBackbone cannot run 'res5'"):
        backbone.run_stage("res5", torch.rand(1, 32, 4, 4))


def test_weights_of_stage_1(stage1: tuple[Path, dict[str, Tensor]]) -> None:
    path, state = stage1
    backbone = build_few_shot_backbone(make_cfg("Prototype", *DECODED, WEIGHTS, str(path)))
    for module, prefix in ((backbone.backbone, "backbone."), (backbone.decoder, "proposals.pixel_decoder.")):
        for name, tensor in module.state_dict().items():
            assert torch.equal(tensor, state[prefix + name]), name


def test_a_checkpoint_of_the_whole_model_makes_other_weights_needless() -> None:
    cfg = make_cfg("Prototype", *DECODED, WEIGHTS, "gone.pth", "MODEL.WEIGHTS", "whole.pth")
    assert isinstance(build_few_shot_backbone(cfg), PixelDecoderBackbone)


def test_weights_that_do_not_fit(stage1: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    path, state = stage1

    def check(message: str, change: dict[str, Tensor] | None = None, *overrides: Any) -> None:
        if change is not None:
            torch.save({"model": change}, path)
        with pytest.raises(ValueError, match=message):
            build_few_shot_backbone(make_cfg("Prototype", *DECODED, WEIGHTS, str(path), *overrides))

    check(r"proposals\.pixel_decoder\..* shape .*MODEL\.PROPOSALS", None, "MODEL.PROPOSALS.DIM", 64)
    check(r"encoder\.layers\.1\..*MODEL\.PROPOSALS", None, "MODEL.PROPOSALS.ENCODER_LAYERS", 2)
    check(r"under proposals\.pixel_decoder\. .*PotentialObjectsSegmenter", _without(state, "proposals."))
    check(r"no name under backbone\. .*MODEL\.BACKBONE\.NAME", _without(state, "backbone."))
    last = next(name for name in state if name.startswith("backbone."))
    check(r"backbone\..* is missing.* \(0 other tensors as well\)", _without(state, last))
    path.write_text("no checkpoint")
    check(r"stage1\.pth is no checkpoint .*MODEL\.BACKBONE\.PIXEL_DECODER_WEIGHTS")
    with pytest.raises(
        FileNotFoundError, match=r"gone\.pth does not exist: check MODEL\.BACKBONE\.PIXEL_DECODER_WEIGHTS"
    ):
        load_stage1_weights(make_backbone(), str(tmp_path / "gone.pth"))


def _without(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.startswith(prefix)}


@pytest.mark.parametrize(
    ("method", "overrides", "message"),
    [
        ("MMFormer", DECODED, r"MMFormer has a pixel decoder.*MODEL\.MM_FORMER\.FEATURES"),
        ("PotentialObjectsSegmenter", DECODED, "has a pixel decoder of its own"),
        ("Prototype", (DECODED[0], "decoder"), "'decoder': choose from backbone, pixel_decoder"),
        ("Prototype", (*DECODED, "MODEL.BACKBONE.FREEZE", False), r"set MODEL\.BACKBONE\.FREEZE True"),
        ("Prototype", (*DECODED, "MODEL.BACKBONE.BN_TRAIN_STATS", True), r"BN_TRAIN_STATS False"),
    ],
)
def test_settings_that_do_not_go_together(method: str, overrides: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(make_cfg(method, *overrides))
