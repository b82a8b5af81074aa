"""VGG-16, with or without batch norm, cut as in PFENet (Tian et al., TPAMI 2020)."""

from collections.abc import Iterator

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import Tensor, nn
from torchvision.models import vgg

from fss_d2.modeling.keys import config_keys

from .base import STAGES, FeatureBackbone
from .weights import load_backbone_weights


@config_keys
def add_keys(cfg: CfgNode) -> None:
    """Keys of VGG."""
    cfg.MODEL.VGG = CfgNode()
    cfg.MODEL.VGG.BATCH_NORM = True


class VGGBackbone(FeatureBackbone):
    """The convolutions of VGG-16, or VGG-16-bn; parameters carry torchvision's names (`features.N`).

    The network has five runs of convolutions. Each ends with a 2x2 max-pool (sizes rounded up), except the
    last, whose pool is left out. The first run has no name. A stage "res2".."res5" is the map *after* the
    pool of its run (strides 4, 8, 16, 16; 128, 256, 512, 512 channels). Blocks are the maps after each
    convolution's ReLU, so they have the stride of the stage's *input* (2, 4, 8, 16).
    """

    def __init__(self, *, batch_norm: bool = True) -> None:
        super().__init__()
        self.features = vgg.make_layers(vgg.cfgs["D"], batch_norm=batch_norm)[:-1]
        for module in self.features:
            if isinstance(module, nn.MaxPool2d):
                module.ceil_mode = True
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)

        self._names: dict[int, str] = {}  # position in `features` -> name of the map after it
        available: dict[str, ShapeSpec] = {}
        run, block, channels = 0, 0, 3
        for position, module in enumerate(self.features):
            if isinstance(module, nn.Conv2d):
                channels = module.out_channels
            elif isinstance(module, nn.ReLU) and run > 0:
                self._names[position] = f"{STAGES[run - 1]}.{block}"
                available[self._names[position]] = ShapeSpec(channels=channels, stride=2**run)
                block += 1
            elif isinstance(module, nn.MaxPool2d):
                if run > 0:
                    self._names[position] = STAGES[run - 1]
                    available[STAGES[run - 1]] = ShapeSpec(channels=channels, stride=2 ** (run + 1))
                run, block = run + 1, 0
        available[STAGES[-1]] = ShapeSpec(channels=channels, stride=2**run)
        self.separate_stages = STAGES[1:]
        self._declare(available)

    def _features(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        for position, module in enumerate(self.features):
            x = module(x)
            if position in self._names:
                yield self._names[position], x
        yield STAGES[-1], x

    def _run_stage(self, stage: str, x: Tensor) -> Tensor:
        ends = {name: position for position, name in self._names.items()} | {STAGES[-1]: len(self.features)}
        before = STAGES[STAGES.index(stage) - 1]
        return self.features[ends[before] + 1 : ends[stage] + 1](x)


@BACKBONE_REGISTRY.register()
def build_vgg_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> VGGBackbone:
    """Build MODEL.VGG with the weights MODEL.BACKBONE.WEIGHTS."""
    backbone = VGGBackbone(batch_norm=cfg.MODEL.VGG.BATCH_NORM)
    load_backbone_weights(backbone, cfg.MODEL.BACKBONE.WEIGHTS)
    return backbone
