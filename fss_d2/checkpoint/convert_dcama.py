"""Official DCAMA checkpoints to ours."""

import re

from torch import Tensor

from fss_d2.modeling.backbone.resnet import ResNetBackbone
from fss_d2.modeling.backbone.swin import SwinBackbone
from fss_d2.modeling.backbone.weights import microsoft_swin_name
from fss_d2.modeling.meta_arch import DCAMA

from .conversion import Conversion, State, bare, convert, require

__all__ = ["convert_dcama"]

# Tensors that are unused or recomputed: classifiers, the norm before Swin's classifier, fixed tables.
_DROPPED_BACKBONE = re.compile(r"(fc|head|norm)\.|.*(relative_position_index|attn_mask)$")
_LEVELS = ("res3", "res4", "res5")
_STACKS = {
    "conv1": "squeeze.res5",
    "conv2": "squeeze.res4",
    "conv3": "squeeze.res3",
    "conv4": "merge.res4",
    "conv5": "merge.res3",
    "mixer1": "mixers.0",
    "mixer2": "mixers.1",
    "mixer3": "mixers.2",
}


def convert_dcama(state: State) -> Conversion:
    """Convert a state dict of the official DCAMA code (ResNet-50, ResNet-101 or Swin-B).

    The attention blocks 0, 1, 2 are the levels res3, res4, res5; in each, projection 0 is the query's and
    1 the key's.

    Raises:
        ValueError: not such a checkpoint, or an incomplete one.
    """
    state = bare(state)
    prefix = "feature_extractor."
    require(
        "DCAMA",
        state,
        {
            "model.conv1.0.weight": any(_head_name(name, tensor) for name, tensor in state.items()),
            f"{prefix}conv1.weight": any(_backbone_name(name) for name in state),
        },
    )
    if f"{prefix}patch_embed.proj.weight" in state:
        architecture, backbone, rename = "DCAMA Swin-B", lambda: SwinBackbone(size="base"), _swin_name
    else:
        depth = 101 if any(name.startswith(f"{prefix}layer3.22.") for name in state) else 50
        architecture, backbone, rename = (
            f"DCAMA ResNet-{depth}",
            lambda: ResNetBackbone(depth=depth),
            _backbone_name,
        )
    return convert(
        architecture,
        state,
        lambda name, tensor: rename(name) or _head_name(name, tensor),
        lambda: {"": DCAMA(backbone=backbone())},
    )


def _backbone_name(name: str) -> str | None:
    """Our name of a tensor of the backbone; None if it is none or is not used."""
    prefix, _, rest = name.partition(".")
    return None if prefix != "feature_extractor" or _DROPPED_BACKBONE.match(rest) else f"backbone.{rest}"


def _swin_name(name: str) -> str | None:
    ours = _backbone_name(name)
    return ours and f"backbone.model.{microsoft_swin_name(ours.removeprefix('backbone.'))}"


def _head_name(name: str, tensor: Tensor) -> str | None:
    """Our name of a tensor of the head; None if it is none."""
    projection = re.fullmatch(r"model\.DCAMA_blocks\.([012])\.linears\.([01])\.(weight|bias)", name)
    if projection:
        level, which, kind = projection.groups()
        role = ("query", "key")[int(which)]
        return f"head.attention.{_LEVELS[int(level)]}.{role}.{len(tensor)}.{kind}"
    stack = re.fullmatch(r"model\.(conv[1-5]|mixer[1-3])\.(\d\.(?:weight|bias))", name)
    return f"head.{_STACKS[stack[1]]}.{stack[2]}" if stack else None
