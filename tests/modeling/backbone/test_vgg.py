"""VGG-16: parameter counts, the cut, torchvision's numbers."""

from itertools import pairwise

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from torch import nn
from torchvision.models import vgg16, vgg16_bn

from fss_d2.config import get_cfg
from fss_d2.modeling.backbone import STAGES, VGGBackbone, build_vgg_backbone


@pytest.mark.parametrize(
    ("batch_norm", "library", "expected"), [(True, vgg16_bn, 14_723_136), (False, vgg16, 14_714_688)]
)
def test_parameter_count_and_keys(batch_norm: bool, library: type, expected: int) -> None:
    with torch.device("meta"):
        backbone = VGGBackbone(batch_norm=batch_norm)
        theirs = library(init_weights=False).state_dict()
    assert sum(parameter.numel() for parameter in backbone.parameters()) == expected
    assert list(backbone.state_dict()) == [key for key in theirs if key.startswith("features.")]


def test_stages_follow_their_pool_and_blocks_precede_it() -> None:
    with torch.device("meta"):
        backbone = VGGBackbone()
    assert [backbone.available[stage] for stage in STAGES] == [
        ShapeSpec(channels=channels, stride=stride)
        for channels, stride in ((128, 4), (256, 8), (512, 16), (512, 16))
    ]
    assert [len(backbone.blocks(stage)) for stage in STAGES] == [2, 3, 3, 3]
    assert [backbone.available[backbone.blocks(stage)[0]].stride for stage in STAGES] == [2, 4, 8, 16]


@pytest.mark.parametrize(
    ("batch_norm", "cuts"), [(True, (0, 7, 14, 24, 34, 43)), (False, (0, 5, 10, 17, 24, 30))]
)
def test_equal_to_the_cut_of_pfenet(batch_norm: bool, cuts: tuple[int, ...]) -> None:
    """Sizes at side 105 go 53, 27, 14, 7, 7, as 473 gives 237, 119, 60, 30, 30: pools round up."""
    torch.manual_seed(0)
    backbone = VGGBackbone(batch_norm=batch_norm).eval()
    backbone.select(list(backbone.available))
    x = torch.randn(1, 3, 105, 105)
    with torch.no_grad():
        outputs = backbone(x)
        y = x
        for i, side in enumerate((53, 27, 14, 7, 7)):
            for module in backbone.features[cuts[i] : cuts[i + 1]]:
                y = module(y)
            assert y.shape[-1] == side
            if i > 0:
                torch.testing.assert_close(outputs[STAGES[i - 1]], y)
    pooled = nn.functional.max_pool2d(outputs["res4.2"], 2, ceil_mode=True)
    assert torch.equal(pooled, outputs["res4"])
    assert torch.equal(outputs["res5.2"], outputs["res5"])


@pytest.mark.parametrize(("batch_norm", "library"), [(True, vgg16_bn), (False, vgg16)])
def test_layout_of_hsnet_is_torchvisions_network(batch_norm: bool, library: type) -> None:
    """Sizes at side 105 go 105, 52, 26, 13, 6, 3: pools round down."""
    torch.manual_seed(0)
    backbone = VGGBackbone(batch_norm=batch_norm, layout="hsnet").eval()
    net = library(weights=None).features.eval()
    net.load_state_dict(backbone.features.state_dict(), strict=True)
    assert [len(backbone.blocks(stage)) for stage in STAGES] == [3, 3, 3, 1]
    backbone.select(list(backbone.available))
    x = torch.randn(1, 3, 105, 105)
    with torch.no_grad():
        outputs = backbone(x)
        before, after, y = [], [], x  # each convolution before its ReLU, each run before its pool
        for position, module in enumerate(net):
            if isinstance(module, nn.ReLU):
                before.append(y.clone())
            y = module(y)
            if position + 1 < len(net) and isinstance(net[position + 1], nn.MaxPool2d):
                after.append(y)
    for stage, first, kept in (("res2", 4, after[2]), ("res3", 7, after[3]), ("res4", 10, after[4])):
        for i, name in enumerate(backbone.blocks(stage)):
            torch.testing.assert_close(outputs[name], before[first + i])
            assert outputs[name].min() < 0
        torch.testing.assert_close(outputs[stage], kept)
    torch.testing.assert_close(outputs["res5.0"], y)
    assert torch.equal(outputs["res5"], outputs["res5.0"])
    sides = dict(zip(STAGES, (26, 13, 6, 3), strict=True))
    for name, spec in backbone.available.items():
        assert outputs[name].shape[1:] == (spec.channels, *[sides[name[:4]]] * 2), name
        assert spec.stride == 2 ** int(name[3])
    with torch.no_grad():
        for earlier, stage in pairwise(STAGES):
            torch.testing.assert_close(backbone.run_stage(stage, outputs[earlier]), outputs[stage])


def test_an_unknown_layout_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown layout 'psp': choose from pfenet, hsnet"):
        VGGBackbone(layout="psp")


def test_built_from_a_config() -> None:
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = build_vgg_backbone.__name__
    cfg.MODEL.VGG.BATCH_NORM = False
    with torch.device("meta"):
        backbone = build_backbone(cfg)
    assert isinstance(backbone, VGGBackbone)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    assert backbone.available["res5"].stride == 16
    cfg.MODEL.VGG.LAYOUT = "hsnet"
    with torch.device("meta"):
        assert build_backbone(cfg).available["res5"].stride == 32
