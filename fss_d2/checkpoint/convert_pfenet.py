"""Official PFENet checkpoints to ours."""

import re
from collections.abc import Callable

import torch

from fss_d2.modeling.backbone import FeatureBackbone
from fss_d2.modeling.backbone.resnet import ResNetBackbone
from fss_d2.modeling.backbone.vgg import VGGBackbone
from fss_d2.modeling.meta_arch.pfenet import PFENet

from .conversion import Conversion, State, check_match, quote

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

    The number of the pyramid's levels must be four, as in all published models; the bins themselves are no
    weights, so a model for COCO needs its config's MODEL.PFENET.BINS.

    Raises:
        ValueError: not such a checkpoint, or an incomplete one.
    """
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    if "down_query.0.weight" not in state or "layer0.0.weight" not in state:
        lacks = "down_query.0.weight" if "down_query.0.weight" not in state else "layer0.0.weight"
        raise ValueError(
            f"no PFENet checkpoint: none of its {len(state)} names is {lacks} (found {quote(state)}); "
            "check the file and --method"
        )
    name, build, settings = _recognise(state)
    rename = _vgg_name if name == "VGG-16-bn" else _resnet_name
    model = {_head_name(key) or f"backbone.{rename(key)}": tensor for key, tensor in state.items()}
    architecture = f"PFENet {name}"
    with torch.device("meta"):
        expected = PFENet(backbone=build()).state_dict()
    missing = check_match(architecture, model, expected)
    return Conversion(architecture, model, (), missing, settings)


def _recognise(state: State) -> tuple[str, Callable[[], FeatureBackbone], tuple[str, ...]]:
    """Name of the backbone, what builds ours, and the settings it needs."""
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
