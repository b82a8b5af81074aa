"""ResNets: torchvision's numbers and names, parameter counts, dilation, reference taps."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from torch import Tensor
from torchvision.models import resnet50, resnet101

from fss_d2.config import get_cfg
from fss_d2.modeling.backbone import STAGES, ResNetBackbone, build_fss_resnet_backbone
from tests.golden.official import image, load_case, official_dcama_state

FC = 2_049_000


def count(backbone: ResNetBackbone) -> int:
    return sum(parameter.numel() for parameter in backbone.parameters())


def all_blocks(backbone: ResNetBackbone) -> list[str]:
    return [block for stage in STAGES for block in backbone.blocks(stage)]


def pair(**options: str) -> tuple[ResNetBackbone, ResNetBackbone]:
    """A plain ResNet-50 and one with `options`, with the same weights, in eval mode."""
    torch.manual_seed(0)
    plain, other = ResNetBackbone(depth=50), ResNetBackbone(depth=50, **options)
    other.load_state_dict(plain.state_dict())
    return plain.eval(), other.eval()


@pytest.mark.parametrize(
    ("depth", "stem", "expected", "blocks"),
    [
        (50, "torchvision", 25_557_032 - FC, 16),
        (101, "torchvision", 44_549_160 - FC, 33),
        (50, "deep", 23_631_808, 16),
        (101, "deep", 42_623_936, 33),
        (152, "torchvision", 60_192_808 - FC, 50),
    ],
)
def test_parameter_counts(depth: int, stem: str, expected: int, blocks: int) -> None:
    with torch.device("meta"):
        backbone = ResNetBackbone(depth=depth, stem=stem)
    assert count(backbone) == expected
    assert len(all_blocks(backbone)) == blocks


@pytest.mark.parametrize(("depth", "library"), [(50, resnet50), (101, resnet101)])
def test_keys_are_torchvisions_without_fc(depth: int, library: type) -> None:
    with torch.device("meta"):
        ours, theirs = ResNetBackbone(depth=depth).state_dict(), library().state_dict()
    assert list(ours) == [key for key in theirs if not key.startswith("fc.")]


def test_deep_stem_keys() -> None:
    with torch.device("meta"):
        state = ResNetBackbone(stem="deep").state_dict()
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    assert shapes["conv1.weight"] == (64, 3, 3, 3)
    assert shapes["conv2.weight"] == (64, 64, 3, 3)
    assert shapes["conv3.weight"] == (128, 64, 3, 3)
    assert shapes["bn3.running_var"] == (128,)
    assert shapes["layer1.0.conv1.weight"] == (64, 128, 1, 1)
    assert shapes["layer1.0.downsample.0.weight"] == (256, 128, 1, 1)


def test_equal_to_torchvision_and_taps_precede_the_relu() -> None:
    torch.manual_seed(0)
    library = resnet50().eval()
    backbone = ResNetBackbone(depth=50).eval()
    backbone.load_state_dict(library.state_dict(), strict=False)
    x = torch.randn(1, 3, 65, 97)
    backbone.select(list(backbone.available))
    with torch.no_grad():
        outputs = backbone(x)
        y = library.maxpool(library.relu(library.bn1(library.conv1(x))))
        for stage, layer in zip(
            STAGES, (library.layer1, library.layer2, library.layer3, library.layer4), strict=True
        ):
            y = layer(y)
            torch.testing.assert_close(outputs[stage], y)
            tap = outputs[backbone.blocks(stage)[-1]]
            assert tap.min() < 0
            assert torch.equal(tap.relu(), outputs[stage])


def test_torchvision_dilation_is_the_strided_network_at_even_positions() -> None:
    plain, dilated = (backbone.double() for backbone in pair(dilation="torchvision"))
    x = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        strided, dense = plain(x), dilated(x)
    assert [spec.stride for spec in dilated.output_shape().values()] == [4, 8, 8, 8]
    torch.testing.assert_close(dense["res3"], strided["res3"])
    torch.testing.assert_close(dense["res4"][..., ::2, ::2], strided["res4"])
    torch.testing.assert_close(dense["res5"][..., ::4, ::4], strided["res5"])


def test_pspnet_dilation_also_dilates_the_first_block() -> None:
    plain, dilated = pair(dilation="pspnet")
    for layer, rate in ((dilated.layer3, 2), (dilated.layer4, 4)):
        for block in layer:
            assert block.conv2.dilation == block.conv2.padding == (rate, rate)
            assert block.conv2.stride == (1, 1)
        assert layer[0].downsample[0].stride == (1, 1)
    x = torch.randn(1, 3, 105, 105)
    with torch.no_grad():
        strided, dense = plain(x), dilated(x)
    assert dense["res5"].shape[-2:] == (14, 14)
    assert torch.equal(dense["res3"], strided["res3"])
    assert not torch.allclose(dense["res4"][..., ::2, ::2], strided["res4"], rtol=0.01, atol=0.01)


def test_shallow_selection_does_not_run_deep_stages() -> None:
    backbone = ResNetBackbone(depth=50).eval()
    ran: list[str] = []
    for name in ("layer2", "layer3"):
        convolution = getattr(backbone, name)[0].conv1
        convolution.register_forward_hook(lambda *_, name=name: ran.append(name))
    backbone.select(["res3.1", "res2"])
    backbone(torch.randn(1, 3, 64, 64))
    assert ran == ["layer2"]


def test_taps_equal_the_reference() -> None:
    arrays, meta = load_case("full_r50_1shot")
    state = official_dcama_state("r50", meta["adjust"])
    backbone = ResNetBackbone(depth=50).eval()
    weights = {
        key.removeprefix("feature_extractor."): value
        for key, value in state.items()
        if key.startswith("feature_extractor.")
    }
    assert backbone.load_state_dict(weights, strict=False).missing_keys == []
    backbone.select(all_blocks(backbone))
    with torch.no_grad():
        taps = list(backbone(image("query", meta["size"])[None]).values())
    assert_taps_equal(taps, arrays)


def assert_taps_equal(taps: list[Tensor], arrays: dict[str, Tensor]) -> None:
    for i, tap in enumerate(taps):
        assert list(tap.shape[1:]) == arrays["tap_shape"][i].tolist()
        torch.testing.assert_close(tap.flatten()[:64], arrays["tap_first64"][i], rtol=1e-4, atol=5e-5)
        statistics = torch.stack([tap.mean(), tap.std(), tap.min()]).double()
        expected = torch.stack([arrays[f"tap_{key}"][i] for key in ("mean", "std", "min")])
        torch.testing.assert_close(statistics, expected, rtol=1e-4, atol=5e-5)


def test_built_from_a_config() -> None:
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = build_fss_resnet_backbone.__name__
    cfg.MODEL.RESNETS.DEPTH = 50
    cfg.MODEL.RESNETS.STEM = "deep"
    cfg.MODEL.RESNETS.DILATION = "pspnet"
    cfg.MODEL.RESNETS.TAPS_BEFORE_RELU = False
    with torch.device("meta"):
        backbone = build_backbone(cfg)
    assert isinstance(backbone, ResNetBackbone)
    assert backbone.conv3.out_channels == 128
    assert backbone.output_shape()["res5"] == ShapeSpec(channels=2048, stride=8)
    assert backbone.taps_before_relu is False


@pytest.mark.parametrize(
    ("name", "value", "choices"),
    [
        ("depth", 34, "50, 101, 152"),
        ("stem", "basic", "torchvision, deep"),
        ("dilation", "yes", "none, pspnet, torchvision"),
    ],
)
def test_wrong_options_are_named(name: str, value: object, choices: str) -> None:
    with pytest.raises(ValueError, match=f"unknown {name} {value!r}: choose from {choices}"):
        ResNetBackbone(**{name: value})
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = build_fss_resnet_backbone.__name__
    cfg.MODEL.RESNETS[name.upper()] = value
    with pytest.raises(ValueError, match=rf"unknown MODEL\.RESNETS\.{name.upper()} {value!r}: .* {choices}"):
        build_backbone(cfg)
