"""timm models: which blocks a stage has, how maps are aligned, plain transformers as pyramids."""

import copy
import pickle

import pytest
import torch
from detectron2.modeling import build_backbone
from torch import nn

from fss_d2.config import get_cfg
from fss_d2.modeling.backbone import (
    STAGES,
    TimmPlainBackbone,
    TimmPyramidBackbone,
    build_timm_backbone,
    create_timm_backbone,
)
from fss_d2.modeling.backbone.timm import neighbours


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("tf_efficientnet_lite0", [[24] * 2, [40] * 2, [80] * 3 + [112] * 3, [192] * 4 + [320]]),
        ("convnext_atto", [[40] * 2, [80] * 2, [160] * 6, [320] * 2]),
        ("regnetx_002", [[24], [56], [152] * 4, [368] * 7]),
        ("resnet10t", [[64], [128], [256], [512]]),
        ("mobilenetv3_small_050", [[8], [16] * 2, [24] * 5, [48] * 3 + [288]]),
        ("pvt_v2_b0", [[32], [64], [160], [256]]),  # blocks give tokens: the stage stands for them
    ],
)
def test_blocks_of_a_pyramid(name: str, channels: list[list[int]]) -> None:
    backbone = create_timm_backbone(name).eval()
    assert isinstance(backbone, TimmPyramidBackbone)
    assert [
        [backbone.available[block].channels for block in backbone.blocks(stage)] for stage in STAGES
    ] == channels
    backbone.select(list(backbone.available))
    with torch.no_grad():
        outputs = backbone(torch.randn(1, 3, 64, 64))
    for stage, stride in zip(STAGES, (4, 8, 16, 32), strict=True):
        assert backbone.available[stage].stride == stride
        assert torch.equal(outputs[stage], outputs[backbone.blocks(stage)[-1]])


def test_lite0_blocks_are_its_own_in_order() -> None:
    torch.manual_seed(0)
    backbone = create_timm_backbone("tf_efficientnet_lite0").eval()
    backbone.select(["res4.2", "res4.3"])
    model = backbone.model
    x = torch.randn(1, 3, 65, 65)
    with torch.no_grad():
        outputs = backbone(x)
        y = model.blocks[:4](model.bn1(model.conv_stem(x)))
        torch.testing.assert_close(outputs["res4.2"], y)
        torch.testing.assert_close(outputs["res4.3"], model.blocks[4][0](y))


def test_heads_are_gone_and_shallow_selections_stop_early() -> None:
    backbone = create_timm_backbone("tf_efficientnet_lite0").eval()
    assert not any(key.startswith(("conv_head", "classifier")) for key in backbone.model.state_dict())
    ran: list[int] = []
    for i in (2, 4, 5):
        backbone.model.blocks[i].register_forward_hook(lambda *_, i=i: ran.append(i))
    backbone.select(["res3.0"])
    backbone(torch.randn(1, 3, 64, 64))
    assert ran == [2]


def test_a_forward_pass_changes_no_hook_and_copies_stay_apart() -> None:
    backbone = create_timm_backbone("resnet10t").eval()
    backbone.select(["res4.0"])
    hooks = {name: dict(module._forward_hooks) for name, module in backbone.named_modules()}
    assert sum(map(len, hooks.values())) == 4  # one for each block, from the start
    twin = copy.deepcopy(backbone)
    reread = pickle.loads(pickle.dumps(backbone))
    x = torch.randn(1, 3, 64, 64)
    expected = backbone(x)["res4.0"]
    for other in (twin, reread):
        with torch.no_grad():
            assert torch.equal(other(x)["res4.0"], expected)
            next(other.model.parameters()).zero_()
            assert not torch.equal(other(x)["res4.0"], expected)
    assert torch.equal(backbone(x)["res4.0"], expected)
    assert {name: dict(module._forward_hooks) for name, module in backbone.named_modules()} == hooks
    assert backbone.training is False
    assert backbone.model.layer3[0].training is False


def test_models_that_round_down_see_the_whole_image() -> None:
    """ConvNeXt would drop the last rows and columns of a 65x65 image."""
    torch.manual_seed(0)
    backbone = create_timm_backbone("convnext_atto").eval()
    x = torch.randn(1, 3, 65, 65)
    padded = torch.nn.functional.pad(x, (0, 31, 0, 31))
    with torch.no_grad():
        outputs, whole = backbone(x), backbone(padded)
    assert outputs["res2"].shape[-2:] == (17, 17)
    assert torch.equal(outputs["res2"], whole["res2"][..., :17, :17])
    assert torch.equal(outputs["res5"], whole["res5"])


def test_plain_transformer_as_pyramid() -> None:
    """res4 of a patch-16 ViT needs no resizing: it is the normalised block itself."""
    torch.manual_seed(0)
    backbone = create_timm_backbone("vit_tiny_patch16_224").eval()
    assert isinstance(backbone, TimmPlainBackbone)
    assert [len(backbone.blocks(stage)) for stage in STAGES] == [3, 3, 3, 3]
    backbone.select([*backbone.blocks("res4"), "res4", "res5"])
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        outputs = backbone(x)
        tokens = backbone.model.get_intermediate_layers(x, n=[6, 7, 8], reshape=True, norm=True)
        last = backbone.model.get_intermediate_layers(x, n=[11], reshape=True, norm=True)[0]
    for i, value in enumerate(tokens):
        torch.testing.assert_close(outputs[f"res4.{i}"], value)
    assert torch.equal(outputs["res4"], outputs["res4.2"])
    # Bilinear by one half, pixel areas aligned, is the mean of 2x2.
    torch.testing.assert_close(outputs["res5"], torch.nn.functional.avg_pool2d(last, 2))


def test_plain_transformer_resizes_to_whole_patches() -> None:
    """30 pixels are 3 patches of 14: the image is seen at 42 pixels."""
    torch.manual_seed(0)
    backbone = create_timm_backbone("vit_small_patch14_dinov2").eval()
    seen: list[torch.Size] = []
    backbone.model.patch_embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    backbone.select(["res3.0"])
    assert backbone(torch.randn(1, 3, 30, 28))["res3.0"].shape == (1, 384, 4, 4)
    assert seen == [(1, 3, 42, 28)]


def test_blocks_survive_models_that_work_in_place() -> None:
    """Xception changes a block's output in place when the next block reads it."""
    backbone = create_timm_backbone("xception41").eval()
    backbone.select(["res2.1"])
    x = torch.randn(1, 3, 64, 64)
    seen: list[torch.Tensor] = []
    module = backbone.model.get_submodule(backbone._modules_of["res2.1"])
    module.register_forward_hook(lambda _, inputs, output: seen.append(output.clone()))
    with torch.no_grad():
        assert torch.equal(backbone(x)["res2.1"], seen[0])


def test_built_from_a_config() -> None:
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = build_timm_backbone.__name__
    cfg.MODEL.TIMM.NAME = "mobilenetv3_small_050"
    assert isinstance(build_backbone(cfg), TimmPyramidBackbone)


def test_unknown_models_are_named_with_close_ones() -> None:
    with pytest.raises(ValueError, match=r"'resnet51' is no timm model: did you mean .*resnet50"):
        create_timm_backbone("resnet51")


class Attributes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layer1, self.pool, self.layer2 = (nn.Identity() for _ in range(4))
        self.blocks = nn.Sequential(nn.Identity(), nn.Identity(), nn.Identity(), nn.Identity())


def test_neighbours_are_all_that_lies_between_two_modules() -> None:
    model = Attributes()
    assert neighbours(model, "layer1", "layer2") == ["pool", "layer2"]
    assert neighbours(model, "blocks.0", "blocks.3") == ["blocks.1", "blocks.2", "blocks.3"]
    assert neighbours(model, "layer2", "layer1") == []  # in the wrong order


def test_modules_of_different_containers_have_no_neighbours() -> None:
    model = Attributes()
    assert neighbours(model, "layer1", "blocks.2") == neighbours(model, "blocks.9", "blocks.2") == []
