"""Official PFENet checkpoints to ours."""

import re
from collections.abc import Callable

from torch import Tensor

from fss_d2.modeling.backbone import FeatureBackbone
from fss_d2.modeling.backbone.resnet import ResNetBackbone
from fss_d2.modeling.backbone.vgg import VGGBackbone
from fss_d2.modeling.meta_arch.pfenet import PFENet

from .conversion import Conversion, State, bare, convert, require

__all__ = ["convert_pfenet"]

# Positions in the deep stem, and where each of VGG's runs begins in `features`.
_STEM = {0: "conv1", 1: "bn1", 3: "conv2", 4: "bn2", 6: "conv3", 7: "bn3"}
_RUNS = (0, 7, 14, 24, 34)
_HEAD = {
    r"down_query\.(0\..+)": r"reduce_query.\1",
    r"down_supp\.(0\..+)": r"reduce_support.\1",
    r"init_merge\.(\d+\..+)": r"enrichment.merge.\1",
    r"alpha_conv\.(\d+\..+)": r"enrichment.hand_on.\1",
    r"beta_conv\.(\d+\..+)": r"enrichment.refine.\1",
    r"inner_cls\.(\d+\..+)": r"enrichment.classifiers.\1",
    r"res1\.(.+)": r"enrichment.join.0.\1",
    r"res2\.(.+)": r"enrichment.join.1.\1",
    r"cls\.(.+)": r"classifier.\1",
}


def convert_pfenet(state: State) -> Conversion:
    """Convert a state dict of the official PFENet (ResNet-50 or -101 with the deep stem, or VGG-16-bn).

    The pyramid must have four levels, as in all published models. Its bins are not stored with the weights:
    a model for COCO needs its config's MODEL.PFENET.BINS.

    Raises:
        ValueError: not such a checkpoint, or an incomplete one.
    """
    state = bare(state)
    require("PFENet", state, {name: name in state for name in ("down_query.0.weight", "layer0.0.weight")})
    backbone, build, settings = _recognise(state)
    backbone_name = _vgg_name if backbone == "VGG-16-bn" else _resnet_name

    def rename(name: str, tensor: Tensor) -> str:
        return _head_name(name) or f"backbone.{backbone_name(name)}"

    return convert(f"PFENet {backbone}", state, rename, lambda: {"": PFENet(backbone=build())}, settings)


def _recognise(state: State) -> tuple[str, Callable[[], FeatureBackbone], tuple[str, ...]]:
    """Return the name of the backbone, a function that builds ours, and the settings it needs."""
    if "layer1.0.weight" in state:
        return "VGG-16-bn", VGGBackbone, ("MODEL.BACKBONE.NAME build_vgg_backbone",)
    depth = 101 if any(name.startswith("layer3.22.") for name in state) else 50
    settings = (f"MODEL.RESNETS.DEPTH {depth}", "MODEL.RESNETS.STEM deep", "MODEL.RESNETS.DILATION pspnet")
    return f"ResNet-{depth}", lambda: ResNetBackbone(depth=depth, stem="deep", dilation="pspnet"), settings


def _head_name(name: str) -> str | None:
    """Our name of a tensor outside the backbone; None if it is none."""
    for theirs, ours in _HEAD.items():
        if re.fullmatch(theirs, name):
            return re.sub(theirs, ours, name)
    return None


def _resnet_name(name: str) -> str:
    stem = re.fullmatch(r"layer0\.(\d)\.(.+)", name)
    return f"{_STEM.get(int(stem[1]), name)}.{stem[2]}" if stem else name


def _vgg_name(name: str) -> str:
    run = re.fullmatch(r"layer([0-4])\.(\d+)\.(.+)", name)
    return f"features.{_RUNS[int(run[1])] + int(run[2])}.{run[3]}" if run else name
