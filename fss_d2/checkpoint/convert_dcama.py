"""Official DCAMA checkpoints to ours."""

import re

import torch
from torch import Tensor

from fss_d2.modeling.backbone.resnet import ResNetBackbone
from fss_d2.modeling.backbone.swin import SwinBackbone
from fss_d2.modeling.meta_arch import DCAMA

from .conversion import Conversion, State, check_match, quote
from .renaming import rename_microsoft_swin

__all__ = ["convert_dcama"]

# Unused by the method, or recomputed: classifiers, the norm before Swin's classifier, fixed tables.
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
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    backbone = _rename_backbone(state)
    head = {ours: state[name] for name in state if (ours := _rename_head(name, state[name]))}
    used = {name for name in state if _rename_head(name, state[name])}
    used |= {name for name in state if _is_kept_backbone(name)}
    if not head or not backbone:
        raise ValueError(
            f"no DCAMA checkpoint: none of its {len(state)} names is like "
            f"{'model.conv1.0.weight' if not head else 'feature_extractor.conv1.weight'} "
            f"(found {quote(state)}); check the file and --method"
        )
    model = {f"backbone.{name}": tensor for name, tensor in backbone.items()} | head
    if "feature_extractor.patch_embed.proj.weight" in state:
        architecture, ours = "DCAMA Swin-B", lambda: SwinBackbone(size="base")
    else:
        depth = 101 if any(name.startswith("feature_extractor.layer3.22.") for name in state) else 50
        architecture, ours = f"DCAMA ResNet-{depth}", lambda: ResNetBackbone(depth=depth)
    with torch.device("meta"):
        expected = DCAMA(backbone=ours()).state_dict()
    missing = check_match(architecture, model, expected)
    dropped = tuple(name for name in state if name not in used)
    return Conversion(architecture, model, dropped, missing)


def _is_kept_backbone(name: str) -> bool:
    prefix, _, rest = name.partition(".")
    return prefix == "feature_extractor" and not _DROPPED_BACKBONE.match(rest)


def _rename_backbone(state: State) -> dict[str, Tensor]:
    kept = {n.removeprefix("feature_extractor."): t for n, t in state.items() if _is_kept_backbone(n)}
    if "patch_embed.proj.weight" not in kept:
        return kept
    return {f"model.{name}": tensor for name, tensor in rename_microsoft_swin(kept).items()}


def _rename_head(name: str, tensor: Tensor) -> str | None:
    """Our name of a tensor of the official head; None if there is none."""
    projection = re.fullmatch(r"model\.DCAMA_blocks\.([012])\.linears\.([01])\.(weight|bias)", name)
    if projection:
        level, which, kind = projection.groups()
        role = ("query", "key")[int(which)]
        return f"head.attention.{_LEVELS[int(level)]}.{role}.{len(tensor)}.{kind}"
    stack = re.fullmatch(r"model\.(conv[1-5]|mixer[1-3])\.(\d\.(?:weight|bias))", name)
    return f"head.{_STACKS[stack[1]]}.{stack[2]}" if stack else None
