"""ResNet-50/101/152 with bottleneck taps, dilation and the deep stem of the PFENet family."""

from collections.abc import Iterator

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import Tensor, nn
from torchvision.models import resnet

from fss_d2.modeling.keys import choose, config_keys

from .base import STAGES, FeatureBackbone
from .weights import load_backbone_weights


@config_keys
def add_keys(cfg: CfgNode) -> None:
    """Keys of ResNets, besides Detectron2's MODEL.RESNETS.DEPTH."""
    cfg.MODEL.RESNETS.STEM = "torchvision"  # or "deep": three 3x3 convolutions (PSPNet, PFENet)
    # "none" (strides 4, 8, 16, 32); the others keep stride 8 from res3 on. "pspnet": every 3x3 convolution of
    # res4 has dilation 2, of res5 dilation 4 (PSPNet, PFENet). "torchvision": the first block of each keeps
    # the rate of the stage before it (`replace_stride_with_dilation`; MM-Former's later code).
    cfg.MODEL.RESNETS.DILATION = "none"
    # Block outputs ("res4.3") are taken before the block's last ReLU, as HSNet and DCAMA do.
    cfg.MODEL.RESNETS.TAPS_BEFORE_RELU = True


_DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_STRIDES = {"none": (4, 8, 16, 32), "pspnet": (4, 8, 8, 8), "torchvision": (4, 8, 8, 8)}
_STEMS = ("torchvision", "deep")


class TapBottleneck(resnet.Bottleneck):
    """torchvision's bottleneck; `before_relu` gives the value before its last ReLU."""

    def before_relu(self, x: Tensor) -> Tensor:
        """Return residual + identity: (B, C_in, H, W) -> (B, C, h, w), negative values included."""
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x)) + identity

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, after the ReLU."""
        return torch.relu(self.before_relu(x))


class ResNetBackbone(FeatureBackbone):
    """A ResNet with bottlenecks; parameters carry torchvision's names, without `fc`. See `add_keys`.

    Stages "res2".."res5" are layer1..layer4 after their last ReLU. Blocks are each bottleneck's sum, before
    the ReLU (HSNet, DCAMA) or after it. The stem is a 7x7 convolution to 64 channels ("torchvision"), or
    three 3x3 convolutions to 128 channels ("deep"; parameters conv1..conv3, bn1..bn3).
    """

    def __init__(
        self,
        *,
        depth: int = 50,
        stem: str = "torchvision",
        dilation: str = "none",
        taps_before_relu: bool = True,
    ) -> None:
        super().__init__()
        if depth not in _DEPTHS:
            raise ValueError(f"unknown depth {depth}: choose from {', '.join(map(str, _DEPTHS))}")
        if stem not in _STEMS:
            raise ValueError(f"unknown stem {stem!r}: choose from {', '.join(_STEMS)}")
        if dilation not in _STRIDES:
            raise ValueError(f"unknown dilation {dilation!r}: choose from {', '.join(_STRIDES)}")
        self.taps_before_relu = taps_before_relu
        self.separate_stages = STAGES[1:]

        dilate = dilation == "torchvision"
        net = resnet.ResNet(
            TapBottleneck, list(_DEPTHS[depth]), replace_stride_with_dilation=[False, dilate, dilate]
        )
        if stem == "deep":
            _deepen_stem(net)
        if dilation == "pspnet":
            _dilate(net.layer3, 2)
            _dilate(net.layer4, 4)
        for name, module in net.named_children():
            if name not in ("avgpool", "fc"):
                self.add_module(name, module)

        available: dict[str, ShapeSpec] = {}
        for stage, layer, stride in zip(STAGES, self._layers(), _STRIDES[dilation], strict=True):
            spec = ShapeSpec(channels=layer[0].conv3.out_channels, stride=stride)
            available |= {f"{stage}.{i}": spec for i in range(len(layer))}
            available[stage] = spec
        self._declare(available)

    def _layers(self) -> tuple[nn.Sequential, ...]:
        return self.layer1, self.layer2, self.layer3, self.layer4

    def _stem(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        if hasattr(self, "conv2"):
            x = self.relu(self.bn2(self.conv2(x)))
            x = self.relu(self.bn3(self.conv3(x)))
        return self.maxpool(x)

    def _features(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        x = self._stem(x)
        for stage, layer in zip(STAGES, self._layers(), strict=True):
            for i, block in enumerate(layer):
                tap = block.before_relu(x)
                x = torch.relu(tap)
                yield f"{stage}.{i}", tap if self.taps_before_relu else x
            yield stage, x

    def _run_stage(self, stage: str, x: Tensor) -> Tensor:
        return self._layers()[STAGES.index(stage)](x)


def _deepen_stem(net: resnet.ResNet) -> None:
    """Give `net` the stem 3 -> 64 (stride 2) -> 64 -> 128 and a layer1 that reads 128 channels."""
    for i, (inputs, outputs, stride) in enumerate([(3, 64, 2), (64, 64, 1), (64, 128, 1)], start=1):
        setattr(net, f"conv{i}", _convolution(inputs, outputs, 3, stride))
        setattr(net, f"bn{i}", nn.BatchNorm2d(outputs))
    first = net.layer1[0]
    first.conv1 = _convolution(128, first.conv1.out_channels, 1)
    first.downsample[0] = _convolution(128, first.conv3.out_channels, 1)


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Return a bias-free "same" convolution with the initial weights that torchvision gives a ResNet."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution


def _dilate(layer: nn.Sequential, rate: int) -> None:
    """Replace the stride of a stage by dilation of every 3x3 convolution, the first block's included."""
    for block in layer:
        block.conv2.stride = (1, 1)
        block.conv2.dilation = block.conv2.padding = (rate, rate)
        if block.downsample is not None:
            block.downsample[0].stride = (1, 1)


@BACKBONE_REGISTRY.register()
def build_fss_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNetBackbone:
    """Build MODEL.RESNETS with the weights MODEL.BACKBONE.WEIGHTS."""
    c = cfg.MODEL.RESNETS
    backbone = ResNetBackbone(
        depth=choose("MODEL.RESNETS.DEPTH", c.DEPTH, _DEPTHS),
        stem=choose("MODEL.RESNETS.STEM", c.STEM, _STEMS),
        dilation=choose("MODEL.RESNETS.DILATION", c.DILATION, _STRIDES),
        taps_before_relu=c.TAPS_BEFORE_RELU,
    )
    load_backbone_weights(backbone, cfg.MODEL.BACKBONE.WEIGHTS)
    return backbone
