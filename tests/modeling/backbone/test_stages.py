"""What a stage reads."""

import pytest
import torch

from fss_d2.modeling.backbone import ResNetBackbone, VGGBackbone
from fss_d2.modeling.backbone.stages import stage_before, stage_parameters
from tests.modeling.fake_backbone import FakeBackbone


def test_last_stage_of_a_resnet() -> None:
    backbone = ResNetBackbone(dilation="pspnet", stem="deep").requires_grad_(False)
    backbone.conv1.weight.requires_grad_(True)
    statistics = backbone.layer4[0].bn1.running_mean.clone()
    found = stage_parameters(backbone, "res5")
    assert {id(p) for p in found} == {id(p) for p in backbone.layer4.parameters()}
    assert sum(p.numel() for p in found) == 14_964_736
    learnt = [name for name, p in backbone.named_parameters() if p.requires_grad]
    assert learnt == ["conv1.weight"]  # as before
    assert all(p.grad is None for p in backbone.parameters())
    assert torch.equal(backbone.layer4[0].bn1.running_mean, statistics) and backbone.training


def test_last_stage_of_a_vgg() -> None:
    backbone = VGGBackbone()
    found = {id(p) for p in stage_parameters(backbone, "res5")}
    names = {name for name, p in backbone.named_parameters() if id(p) in found}
    assert names == {f"features.{i}.{kind}" for i in (34, 35, 37, 38, 40, 41) for kind in ("weight", "bias")}


def test_the_stage_before() -> None:
    assert stage_before(VGGBackbone(), "res5") == "res4"


def test_a_backbone_that_cannot_says_so() -> None:
    with pytest.raises(ValueError, match=r"FakeBackbone cannot run 'res5' apart.*none of its stages"):
        stage_before(FakeBackbone(), "res5")
    with pytest.raises(ValueError, match="cannot run 'res2'"):
        stage_parameters(VGGBackbone(), "res2")
