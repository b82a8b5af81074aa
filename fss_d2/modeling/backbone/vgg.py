"""VGG-16, with or without batch norm, cut as in PFENet (TPAMI 2020) or as in HSNet (ICCV 2021)."""

from collections.abc import Iterator

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import Tensor, nn
from torchvision.models import vgg

from fss_d2.modeling.keys import choose, config_keys

from .base import STAGES, FeatureBackbone
from .weights import load_backbone_weights


@config_keys
def add_keys(cfg: CfgNode) -> None:
    """Keys of VGG."""
    cfg.MODEL.VGG = CfgNode()
    cfg.MODEL.VGG.BATCH_NORM = True
    # "pfenet": no last pool, sizes are rounded up, blocks are taken after their ReLU. "hsnet": with the last
    # pool (strides 4, 8, 16, 32), sizes are rounded down, blocks are taken before their ReLU.
    cfg.MODEL.VGG.LAYOUT = "pfenet"


_LAYOUTS = ("pfenet", "hsnet")


class VGGBackbone(FeatureBackbone):
    """The convolutions of VGG-16, or VGG-16-bn; parameters carry torchvision's names (`features.N`).

    The network has five runs of convolutions, each of which ends with a 2x2 max-pool.

    Layout "pfenet": pools round sizes up, and the last one is left out. The first run has no name. A stage
    "res2".."res5" is the map *after* the pool of its run (strides 4, 8, 16, 16; 128, 256, 512, 512 channels).
    Blocks are the maps after each convolution's ReLU, so they have the stride of the stage's *input* (2, 4,
    8, 16).

    Layout "hsnet": pools round sizes *down*. The first two runs have no name. "res2".."res4" are the last
    three runs before their pool (strides 4, 8, 16; 256, 512, 512 channels), with the maps before each ReLU as
    blocks. "res5" is the last pool (stride 32), which is also its only block.
    """

    def __init__(self, *, batch_norm: bool = True, layout: str = "pfenet") -> None:
        super().__init__()
        self.features = vgg.make_layers(vgg.cfgs["D"], batch_norm=batch_norm)
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)
        self._names: dict[int, list[str]] = {}  # position in `features` -> names of the map after it
        if choose("layout", layout, _LAYOUTS) == "pfenet":
            self._cut_as_pfenet()
        else:
            self._cut_as_hsnet()
        self._ends = {names[-1]: position for position, names in self._names.items() if names[-1] in STAGES}
        self.separate_stages = STAGES[1:]
        self._declare(self._shapes())

    def _cut_as_pfenet(self) -> None:
        self.features = self.features[:-1]
        run, block = 0, 0
        for position, module in enumerate(self.features):
            if isinstance(module, nn.MaxPool2d):
                module.ceil_mode = True
                if run > 0:
                    self._names[position] = [STAGES[run - 1]]
                run, block = run + 1, 0
            elif isinstance(module, nn.ReLU) and run > 0:
                self._names[position] = [f"{STAGES[run - 1]}.{block}"]
                block += 1
        self._names[len(self.features) - 1].append(STAGES[-1])

    def _cut_as_hsnet(self) -> None:
        run, block = 0, 0
        for position, module in enumerate(self.features):
            if isinstance(module, nn.MaxPool2d):
                run, block = run + 1, 0
            elif isinstance(module, nn.ReLU):
                module.inplace = False  # the map before it is kept
                if run > 1:
                    self._names[position - 1] = [f"{STAGES[run - 2]}.{block}"]
                    block += 1
                    if isinstance(self.features[position + 1], nn.MaxPool2d):
                        self._names[position] = [STAGES[run - 2]]
        self._names[len(self.features) - 1] = [f"{STAGES[-1]}.0", STAGES[-1]]

    def _shapes(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every name, in order of computation."""
        available, channels, stride = {}, 3, 1
        for position, module in enumerate(self.features):
            if isinstance(module, nn.Conv2d):
                channels = module.out_channels
            elif isinstance(module, nn.MaxPool2d):
                stride *= 2
            spec = ShapeSpec(channels=channels, stride=stride)
            available |= dict.fromkeys(self._names.get(position, ()), spec)
        return available

    def _features(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        for position, module in enumerate(self.features):
            x = module(x)
            for name in self._names.get(position, ()):
                yield name, x

    def _run_stage(self, stage: str, x: Tensor) -> Tensor:
        before = STAGES[STAGES.index(stage) - 1]
        return self.features[self._ends[before] + 1 : self._ends[stage] + 1](x)


@BACKBONE_REGISTRY.register()
def build_vgg_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> VGGBackbone:
    """Build MODEL.VGG with the weights MODEL.BACKBONE.WEIGHTS."""
    layout = choose("MODEL.VGG.LAYOUT", cfg.MODEL.VGG.LAYOUT, _LAYOUTS)
    backbone = VGGBackbone(batch_norm=cfg.MODEL.VGG.BATCH_NORM, layout=layout)
    load_backbone_weights(backbone, cfg.MODEL.BACKBONE.WEIGHTS)
    return backbone
