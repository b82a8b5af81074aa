"""Official checkpoints of DCAMA, HSNet and PFENet, the methods that match pixels, to ours."""

import re
from collections.abc import Callable

from torch import Tensor

from fss_d2.modeling.backbone import FeatureBackbone
from fss_d2.modeling.backbone.resnet import ResNetBackbone
from fss_d2.modeling.backbone.swin import SwinBackbone
from fss_d2.modeling.backbone.vgg import VGGBackbone
from fss_d2.modeling.backbone.weights import microsoft_swin_name
from fss_d2.modeling.meta_arch import DCAMA, HSNet
from fss_d2.modeling.meta_arch.pfenet import PFENet

from .conversion import Conversion, State, bare, convert, deep_stem_name, require

__all__ = ["convert_dcama", "convert_hsnet", "convert_pfenet"]

# Tensors that are unused or recomputed: classifiers, the norm before Swin's classifier, fixed tables.
_DROPPED_BACKBONE = re.compile(r"(fc|classifier|head|norm)\.|.*(relative_position_index|attn_mask)$")
_LEVELS = ("res3", "res4", "res5")
_STACKS = {
    **{"conv1": "squeeze.res5", "conv2": "squeeze.res4", "conv3": "squeeze.res3"},
    **{"conv4": "merge.res4", "conv5": "merge.res3"},
    **{"mixer1": "mixers.0", "mixer2": "mixers.1", "mixer3": "mixers.2"},
}


def convert_dcama(state: State) -> Conversion:
    """Convert a state dict of the official DCAMA code (ResNet-50, ResNet-101 or Swin-B).

    The attention blocks 0, 1, 2 are the levels res3, res4, res5; in each, projection 0 is the query's and
    1 the key's.
    """
    state = bare(state)
    prefix = "feature_extractor."
    has_head = any(_dcama_head_name(name, tensor) for name, tensor in state.items())
    has_backbone = any(_backbone_name(name) for name in state)
    require("DCAMA", state, {"model.conv1.0.weight": has_head, f"{prefix}conv1.weight": has_backbone})
    if f"{prefix}patch_embed.proj.weight" in state:
        name, backbone, backbone_name = "Swin-B", lambda: SwinBackbone(size="base"), _swin_name
    else:
        depth = 101 if any(name.startswith(f"{prefix}layer3.22.") for name in state) else 50
        name, backbone, backbone_name = f"ResNet-{depth}", lambda: ResNetBackbone(depth=depth), _backbone_name

    def rename(name: str, tensor: Tensor) -> str | None:
        return backbone_name(name) or _dcama_head_name(name, tensor)

    return convert(f"DCAMA {name}", state, rename, lambda: {"": DCAMA(backbone=backbone())})


def _backbone_name(name: str, theirs: str = "feature_extractor") -> str | None:
    """Our name of a tensor of the backbone, ``theirs``; None if it is none or is not used."""
    prefix, _, rest = name.partition(".")
    return None if prefix != theirs or _DROPPED_BACKBONE.match(rest) else f"backbone.{rest}"


def _swin_name(name: str) -> str | None:
    ours = _backbone_name(name)
    return ours and f"backbone.model.{microsoft_swin_name(ours.removeprefix('backbone.'))}"


def _dcama_head_name(name: str, tensor: Tensor) -> str | None:
    """Our name of a tensor of the head; None if it is none."""
    if found := re.fullmatch(r"model\.DCAMA_blocks\.([012])\.linears\.([01])\.(weight|bias)", name):
        level, which, kind = found.groups()
        role = ("query", "key")[int(which)]
        return f"head.attention.{_LEVELS[int(level)]}.{role}.{len(tensor)}.{kind}"
    stack = re.fullmatch(r"model\.(conv[1-5]|mixer[1-3])\.(\d\.(?:weight|bias))", name)
    return f"head.{_STACKS[stack[1]]}.{stack[2]}" if stack else None


_HSNET_PARTS = {
    **{"encoder_layer4": "squeeze.res5", "encoder_layer3": "squeeze.res4", "encoder_layer2": "squeeze.res3"},
    **{"encoder_layer4to3": "merge.res4", "encoder_layer3to2": "merge.res3"},
    **{"decoder1": "decoder1", "decoder2": "decoder2"},
}


def convert_hsnet(state: State) -> Conversion:
    """Convert a state dict of the official HSNet (ResNet-50, ResNet-101 or VGG-16).

    In each 4D convolution, conv1 is the query's and conv2 the support's. A model that was trained without
    masked supports has the same names: it needs MODEL.HSNET.SUPPORT_BACKGROUND True.
    """
    state = bare(state)
    examples = ("hpn_learner.encoder_layer4.0.conv1.weight", "hpn_learner.decoder2.2.weight")
    found = {name: name in state for name in examples}
    require("HSNet", state, found | {"backbone.conv1.weight": any(_hsnet_backbone(name) for name in state)})
    settings: tuple[str, ...] = ()
    if "backbone.features.0.weight" in state:
        name, backbone = "VGG-16", lambda: VGGBackbone(batch_norm=False, layout="hsnet")
        settings = ("MODEL.BACKBONE.NAME build_vgg_backbone", "MODEL.VGG.BATCH_NORM False")
        settings += ("MODEL.VGG.LAYOUT hsnet",)
    else:
        depth = 101 if any(name.startswith("backbone.layer3.22.") for name in state) else 50
        name, backbone = f"ResNet-{depth}", lambda: ResNetBackbone(depth=depth)
        settings = (f"MODEL.RESNETS.DEPTH {depth}",) if depth > 50 else ()

    def rename(name: str, tensor: Tensor) -> str | None:
        return _hsnet_backbone(name) or _hsnet_head_name(name)

    return convert(f"HSNet {name}", state, rename, lambda: {"": HSNet(backbone=backbone())}, settings)


def _hsnet_backbone(name: str) -> str | None:
    return _backbone_name(name, "backbone")


def _hsnet_head_name(name: str) -> str | None:
    """Our name of a tensor of the learner; None if it is none."""
    found = re.fullmatch(r"hpn_learner\.(\w+)\.(\d)\.(?:conv([12])\.)?(weight|bias)", name)
    if not found or found[1] not in _HSNET_PARTS:
        return None
    part, index, conv, kind = found.groups()
    side = f"{('query', 'support')[int(conv) - 1]}." if conv else ""
    return f"head.{_HSNET_PARTS[part]}.{index}.{side}{kind}"


_VGG_RUNS = (0, 7, 14, 24, 34)  # where each of them begins in `features`
_PFENET_HEAD = {
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
    """
    state = bare(state)
    require("PFENet", state, {name: name in state for name in ("down_query.0.weight", "layer0.0.weight")})
    backbone, build, settings = _recognise(state)
    backbone_name = _vgg_name if backbone == "VGG-16-bn" else deep_stem_name

    def rename(name: str, tensor: Tensor) -> str:
        return _pfenet_head_name(name) or f"backbone.{backbone_name(name)}"

    return convert(f"PFENet {backbone}", state, rename, lambda: {"": PFENet(backbone=build())}, settings)


def _recognise(state: State) -> tuple[str, Callable[[], FeatureBackbone], tuple[str, ...]]:
    """Return the name of the backbone, a function that builds ours, and the settings it needs."""
    if "layer1.0.weight" in state:
        return "VGG-16-bn", VGGBackbone, ("MODEL.BACKBONE.NAME build_vgg_backbone",)
    depth = 101 if any(name.startswith("layer3.22.") for name in state) else 50
    settings = (f"MODEL.RESNETS.DEPTH {depth}", "MODEL.RESNETS.STEM deep", "MODEL.RESNETS.DILATION pspnet")
    return f"ResNet-{depth}", lambda: ResNetBackbone(depth=depth, stem="deep", dilation="pspnet"), settings


def _pfenet_head_name(name: str) -> str | None:
    """Our name of a tensor outside the backbone; None if it is none."""
    found = (re.sub(old, new, name) for old, new in _PFENET_HEAD.items() if re.fullmatch(old, name))
    return next(found, None)


def _vgg_name(name: str) -> str:
    run = re.fullmatch(r"layer([0-4])\.(\d+)\.(.+)", name)
    return f"features.{_VGG_RUNS[int(run[1])] + int(run[2])}.{run[3]}" if run else name
