"""Backbones of Detectron2's own registry (ResNet, FPN, ...), for every method here."""

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, ResNet
from torch import Tensor
from torch.nn import functional as F

from fss_d2.soft_masks import resize

from .base import STAGES, STRIDES, FeatureBackbone, map_size
from .weights import load_backbone_weights


class Detectron2Backbone(FeatureBackbone):
    """Any backbone of Detectron2, with its output levels as stages of one block each.

    A level named "res2".."res5" is that stage. If there is none, strides 4, 8, 16, 32 are "res2".."res5"; if
    several levels have one stride, the deepest is the stage. Block "res4.0" is the stage "res4" itself.
    Levels can also be selected by their own names ("p2", "stem"). Strides above 32 are left out.

    Images are padded with zeros to the size that the backbone needs (`size_divisibility`) and maps are
    cropped. A ResNet computes nothing behind the deepest selected map, and its stages run one by one.

    Images arrive as RGB, normalised by MODEL.PIXEL_MEAN and PIXEL_STD in RGB order. Detectron2's published
    weights expect BGR unless they come from torchvision. For weights that expect BGR, reverse the input
    channels of the first convolution (``weight[:, [2, 1, 0]]``) and give the mean in RGB order: [123.675,
    116.28, 103.53] with deviation 1 for "R-50.pkl".

    Parameters keep the names of Detectron2, under `model.`. A model without a level of stride 4, 8, 16 or 32
    is refused.
    """

    def __init__(self, model: Backbone) -> None:
        super().__init__()
        self.model = model
        shapes = {n: s for n, s in model.output_shape().items() if s.stride and s.stride <= STRIDES[-1]}
        names = {name: name for name in STAGES if name in shapes}
        if not names:
            by_stride = {shape.stride: name for name, shape in shapes.items()}
            names = {s: by_stride[n] for s, n in zip(STAGES, STRIDES, strict=True) if n in by_stride}
        if not names:
            levels = ", ".join(f"{name} ({shape.stride})" for name, shape in model.output_shape().items())
            raise ValueError(f"{type(model).__name__} has no level of stride 4, 8, 16 or 32, but {levels}")
        self._own_names = {name: name for name in shapes}
        available: dict[str, ShapeSpec] = {}
        for name, shape in sorted(shapes.items(), key=lambda item: item[1].stride):
            available[name] = shape
            for stage in [stage for stage, own in names.items() if own == name]:
                available.pop(stage, None)
                available |= {f"{stage}.0": shape, stage: shape}
                self._own_names |= {f"{stage}.0": name, stage: name}
        if isinstance(model, ResNet):
            self.separate_stages = tuple(stage for stage in model.stage_names if stage in names)[1:]
        self._declare(available)

    def _maps(self, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        size = (x.shape[-2], x.shape[-1])
        divisor = self.model.size_divisibility or 1
        x = F.pad(x, (0, -size[1] % divisor, 0, -size[0] % divisor))
        wanted = {self._own_names[name] for name in names}
        outputs = self._run_resnet(x, wanted) if isinstance(self.model, ResNet) else self.model(x)
        maps = {}
        for name in names:
            height, width = map_size(size, self.available[name].stride)
            value = outputs[self._own_names[name]][..., :height, :width]
            maps[name] = resize(value, (height, width), align_corners=False)
        return maps

    def _run_resnet(self, x: Tensor, wanted: set[str]) -> dict[str, Tensor]:
        """Run the stem and the stages one by one, up to the last one wanted."""
        outputs: dict[str, Tensor] = {}
        for name in ("stem", *self.model.stage_names):
            x = self.model.get_submodule(name)(x)
            outputs[name] = x
            if wanted <= outputs.keys():
                break
        return outputs

    def _run_stage(self, stage: str, x: Tensor) -> Tensor:
        return self.model.get_submodule(stage)(x)


def prepare_detectron2_keys(cfg: CfgNode) -> None:
    """Change keys of Detectron2 in place, so that its ResNet and FPN return all stages and freeze nothing.

    MODEL.RESNETS.OUT_FEATURES and MODEL.FPN.IN_FEATURES become all four stages if they have their defaults,
    ["res4"] and []. Our key MODEL.BACKBONE.FREEZE decides what is trained, so FREEZE_AT becomes 0.
    """
    if list(cfg.MODEL.RESNETS.OUT_FEATURES) == ["res4"]:
        cfg.MODEL.RESNETS.OUT_FEATURES = list(STAGES)
    if not cfg.MODEL.FPN.IN_FEATURES:
        cfg.MODEL.FPN.IN_FEATURES = list(STAGES)
    cfg.MODEL.BACKBONE.FREEZE_AT = 0


def adapt_backbone(cfg: CfgNode, backbone: Backbone) -> FeatureBackbone:
    """Return a backbone of ours as it is, any other as `Detectron2Backbone` with MODEL.BACKBONE.WEIGHTS."""
    if isinstance(backbone, FeatureBackbone):
        return backbone
    try:
        adapted = Detectron2Backbone(backbone)
    except ValueError as error:
        raise ValueError(f"MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME}: {error}") from error
    load_backbone_weights(adapted, cfg.MODEL.BACKBONE.WEIGHTS)
    return adapted
