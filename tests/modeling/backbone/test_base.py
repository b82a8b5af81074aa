"""The contract of FeatureBackbone: on a toy, on every kind of backbone, and for stages that run alone."""

from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor

from fss_d2.modeling.backbone import (
    STAGES,
    FeatureBackbone,
    ResNetBackbone,
    SwinBackbone,
    VGGBackbone,
    create_timm_backbone,
    map_size,
)
from fss_d2.modeling.backbone.base import shrink_factors, shrink_maps, stage_before, stage_parameters
from tests.modeling.fake_backbone import FakeBackbone

BUILDERS: dict[str, Callable[[], FeatureBackbone]] = {
    "resnet50": lambda: ResNetBackbone(depth=50),
    "resnet50_after_relu": lambda: ResNetBackbone(depth=50, taps_before_relu=False),
    "resnet50_pspnet": lambda: ResNetBackbone(depth=50, stem="deep", dilation="pspnet"),
    "resnet50_torchvision": lambda: ResNetBackbone(depth=50, dilation="torchvision"),
    "vgg16": lambda: VGGBackbone(batch_norm=False),
    "vgg16_bn": lambda: VGGBackbone(),
    "swin_tiny": lambda: SwinBackbone(size="tiny"),
    **{
        name: lambda name=name: create_timm_backbone(name)
        for name in (
            "tf_efficientnet_lite0",
            "convnext_atto",
            "edgenext_xx_small",
            "mobilenetv3_small_050",
            "regnetx_002",
            "resnet10t",
            "densenet121",
            "pvt_v2_b0",
            "swin_tiny_patch4_window7_224",
            "vit_tiny_patch16_224",
            "vit_small_patch14_dinov2",
            "vit_small_patch16_dinov3",
        )
    },
}


@pytest.fixture(scope="module", params=BUILDERS)
def backbone(request: pytest.FixtureRequest) -> FeatureBackbone:
    """Each kind of backbone in turn, one at a time in memory."""
    torch.manual_seed(0)
    return BUILDERS[request.param]()


def images(height: int, width: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


class CountingBackbone(FeatureBackbone):
    """Two stages of two blocks; map number i is the image times i. Remembers how many it computed."""

    def __init__(self) -> None:
        super().__init__()
        names = ("res4.0", "res4.1", "res4", "res5.0", "res5.1", "res5")
        self._declare({name: ShapeSpec(channels=3, stride=1) for name in names})
        self.computed = 0

    def _features(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        for i, name in enumerate(self.available):
            self.computed += 1
            yield name, x * i


def test_stages_are_selected_at_first_and_order_is_the_callers() -> None:
    backbone = CountingBackbone()
    assert isinstance(backbone, Backbone)
    assert backbone.selected == ("res4", "res5")
    assert backbone.size_divisibility == 0
    backbone.select(["res5.0", "res4.1", "res5.0"])
    outputs = backbone(torch.ones(1, 3, 2, 2))
    assert list(backbone(torch.ones(1, 3, 2, 2), ["res4", "res5.1"])) == ["res4", "res5.1"]
    assert list(outputs) == list(backbone.output_shape()) == ["res5.0", "res4.1"]
    assert outputs["res5.0"].unique().item() == 3
    assert outputs["res4.1"].unique().item() == 1


def test_nothing_behind_the_deepest_selected_map_is_computed() -> None:
    backbone = CountingBackbone()
    backbone.select(["res4.1"])
    backbone(torch.ones(1, 3, 2, 2))
    assert backbone.computed == 2


def test_wrong_names_are_named() -> None:
    backbone = CountingBackbone()
    with pytest.raises(KeyError, match=r"no feature 'res3\.0' .*res4 \(res4\.0 \.\.\. res4\.1\), res5"):
        backbone.select(["res4", "res3.0"])
    with pytest.raises(KeyError, match=r"no stage 'res3' .*: choose from res4, res5"):
        backbone.blocks("res3")
    with pytest.raises(ValueError, match="not 'res4'"):
        backbone.select("res4")
    with pytest.raises(ValueError, match="at least one"):
        backbone.select([])
    with pytest.raises(
        NotImplementedError, match=r"CountingBackbone cannot run 'res5' .*: choose another backbone"
    ):
        backbone.run_stage("res5", torch.ones(1, 3, 2, 2))
    assert backbone.selected == ("res4", "res5")
    assert backbone.blocks("res5") == ["res5.0", "res5.1"]


def test_map_size_rounds_up() -> None:
    assert map_size((97, 128), 32) == (4, 4)
    assert map_size((473, 1), 8) == (60, 1)


def test_every_map_has_the_announced_shape(backbone: FeatureBackbone) -> None:
    backbone.eval()
    assert [stage for stage in STAGES if stage in backbone.available] == list(STAGES)
    backbone.select(list(backbone.available))
    x = images(97, 131)
    before = x.clone()
    with torch.no_grad():
        outputs = backbone(x)
    for feature, spec in backbone.available.items():
        assert outputs[feature].shape == (1, spec.channels, *map_size((97, 131), spec.stride)), feature
        assert outputs[feature].isfinite().all(), feature
    assert torch.equal(x, before)


def test_a_selection_gives_the_same_maps_as_everything(backbone: FeatureBackbone) -> None:
    backbone.eval()
    some = [backbone.blocks("res3")[0], "res2", backbone.blocks("res4")[0]]
    with torch.no_grad():
        backbone.select(list(backbone.available))
        everything = backbone(images(64, 80))
        for selection in (some, ["res2"], [backbone.blocks("res2")[0]]):
            backbone.select(selection)
            outputs = backbone(images(64, 80))
            assert list(outputs) == selection
            for feature in selection:
                assert torch.equal(outputs[feature], everything[feature]), feature


def test_stages_run_alone_as_in_the_whole(backbone: FeatureBackbone) -> None:
    backbone.eval()
    backbone.select(STAGES)
    with torch.no_grad():
        maps = backbone(images(64, 96))
        for before, stage in pairwise(STAGES):
            if stage in backbone.separate_stages:
                given = maps[before].clone()
                alone = backbone.run_stage(stage, given)
                torch.testing.assert_close(alone, maps[stage], rtol=1e-4, atol=1e-5)
                assert torch.equal(given, maps[before])  # the input is left as it was
                odd = backbone.run_stage(stage, given[..., 1:, 1:])
                height, width = given.shape[-2:]
                ratio = backbone.available[stage].stride // backbone.available[before].stride
                assert odd.shape[-2:] == map_size((height - 1, width - 1), ratio)
    with pytest.raises(NotImplementedError, match=f"{type(backbone).__name__} cannot run 'res2'"):
        backbone.run_stage("res2", images(8, 8))


@pytest.mark.parametrize(
    "name", ["resnet50_pspnet", "vgg16_bn", "swin_tiny", "tf_efficientnet_lite0", "convnext_atto"]
)
def test_which_backbones_run_stages_alone(name: str) -> None:
    assert BUILDERS[name]().separate_stages == STAGES[1:]
    assert SwinBackbone(size="tiny", out_norm=True).separate_stages == ()


def test_gradients_flow_through_a_stage_alone() -> None:
    backbone = create_timm_backbone("tf_efficientnet_lite0").eval()
    x = torch.rand(1, backbone.available["res4"].channels, 4, 4, requires_grad=True)
    backbone.run_stage("res5", x).square().sum().backward()
    assert x.grad.abs().sum() > 0


def test_gradients_reach_every_parameter(backbone: FeatureBackbone) -> None:
    backbone.train()
    backbone.select(list(backbone.available))
    sum(value.square().mean() for value in backbone(images(64, 64, batch=2)).values()).backward()
    assert [key for key, parameter in backbone.named_parameters() if parameter.grad is None] == []
    backbone.zero_grad()


def test_last_stage_of_a_resnet() -> None:
    backbone = ResNetBackbone(dilation="pspnet", stem="deep").requires_grad_(False)
    backbone.conv1.weight.requires_grad_(True)
    statistics = backbone.layer4[0].bn1.running_mean.clone()
    found = stage_parameters(backbone, "res5")
    assert {id(p) for p in found} == {id(p) for p in backbone.layer4.parameters()}
    assert sum(p.numel() for p in found) == 14_964_736
    trained = [name for name, p in backbone.named_parameters() if p.requires_grad]
    assert trained == ["conv1.weight"]  # as before
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


def test_only_stages_finer_than_usual_shrink() -> None:
    assert shrink_factors({"res3": 8, "res4": 16, "res5": 32}) == {}
    assert shrink_factors({"res3": 8, "res4": 8, "res5": 8}) == {"res4": 2, "res5": 4}
    assert shrink_factors({"res3": 8, "res4": 16, "res5": 16}) == {"res5": 4}  # VGG


def test_shrunk_maps_by_hand() -> None:
    fine = torch.arange(25.0).view(1, 1, 5, 5)
    maps = shrink_maps({"res3": fine, "res4": fine, "res5": fine}, {"res4": 2, "res5": 4})
    assert maps["res3"] is fine
    assert maps["res4"].tolist() == [[[[0.0, 4.0], [20.0, 24.0]]]]  # 5 // 2 cells, the corners kept
    assert maps["res5"].shape == (1, 1, 1, 1)
