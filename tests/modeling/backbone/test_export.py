"""Backbones can be captured as a graph, with blocks among the selected maps."""

import pytest
import torch
from torch import Tensor, nn

from fss_d2.modeling.backbone import FeatureBackbone, SwinBackbone, create_timm_backbone


class Selected(nn.Module):
    """The selected maps as a tuple."""

    def __init__(self, backbone: FeatureBackbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.backbone(x).values())


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet10t", "vit_tiny_patch16_224", "swin"])
def test_captured_and_traced_graphs_give_the_same_maps(name: str) -> None:
    torch.manual_seed(0)
    backbone = (SwinBackbone(size="tiny") if name == "swin" else create_timm_backbone(name)).eval()
    backbone.select([backbone.blocks("res3")[0], "res4", backbone.blocks("res4")[-1]])
    module, x = Selected(backbone), torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        program = torch.export.export(module, (x,), strict=False).module()
        traced = torch.jit.trace(program, (x,), check_trace=False)
        other = torch.randn(1, 3, 64, 96)
        expected = module(other)
        for run in (program, traced):
            torch.testing.assert_close(tuple(run(other)), expected, rtol=1e-4, atol=1e-5)
