"""A backbone of a few numbers, for tests that need none of a real one's weights."""

from collections.abc import Iterator, Sequence

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from fss_d2.modeling.backbone.base import STAGES, FeatureBackbone, map_size


class FakeBackbone(FeatureBackbone):
    """Average pooling to strides 4, 8, 16, 32, then 1x1 convolutions: flipped images give flipped maps."""

    def __init__(self, widths: Sequence[int] = (8, 16, 24, 32), blocks: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleDict()
        available = {}
        for stage, width, stride in zip(STAGES, widths, (4, 8, 16, 32), strict=True):
            for i in range(blocks):
                name = f"{stage}.{i}"
                self.layers[name.replace(".", "_")] = nn.Sequential(
                    nn.Conv2d(3, width, 1), nn.BatchNorm2d(width)
                )
                available[name] = ShapeSpec(channels=width, stride=stride)
            available[stage] = available[name]
        self._declare(available)

    def _features(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        for name, spec in self.available.items():
            pooled = F.adaptive_avg_pool2d(x, map_size(tuple(x.shape[-2:]), spec.stride))
            last = name if "." in name else self.blocks(name)[-1]
            yield name, self.layers[last.replace(".", "_")](pooled)


def register_fake_backbone() -> str:
    """Register `build_fake_backbone` once and return its name for MODEL.BACKBONE.NAME."""
    if "build_fake_backbone" not in BACKBONE_REGISTRY:

        @BACKBONE_REGISTRY.register()
        def build_fake_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FakeBackbone:
            return FakeBackbone()

    return "build_fake_backbone"
