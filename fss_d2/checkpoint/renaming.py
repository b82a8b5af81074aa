"""Names that backbones have in other projects, changed to the library's that ours keep."""

import re
from collections.abc import Mapping

from torch import Tensor

__all__ = ["rename_detectron2_resnet", "rename_microsoft_swin"]


def rename_microsoft_swin(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a Swin state dict of Microsoft's layout to timm's; values stay the same tensors.

    Patch merging ends stages 0-2 there (`layers.i.downsample`) and starts stages 1-3 in timm
    (`layers.(i+1).downsample`); `head.` becomes `head.fc.`; the buffers `relative_position_index` and
    `attn_mask`, which timm recomputes, are dropped. Keys must be bare ("layers.0...").
    """
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.endswith(("relative_position_index", "attn_mask")):
            continue
        key = re.sub(r"^layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", key)
        renamed[re.sub(r"^head\.(?!fc\.)", "head.fc.", key)] = value
    return renamed


def rename_detectron2_resnet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a ResNet state dict of Detectron2's layout to torchvision's; values stay the same tensors.

    `stem.conv1` becomes `conv1`, `res2`..`res5` become `layer1`..`layer4`, `shortcut` becomes
    `downsample.0`, and the norm inside a convolution (`conv2.norm`) stands beside it (`bn2`). Keys must be
    bare ("res2.0..."); others stay.
    """
    return {_torchvision_name(key): value for key, value in state.items()}


def _torchvision_name(key: str) -> str:
    key = re.sub(r"^stem\.(?=conv1\.)", "", key)
    key = re.sub(r"^res([2-5])\.", lambda m: f"layer{int(m[1]) - 1}.", key)
    key = re.sub(r"(^|\.)conv(\d)\.norm\.", r"\1bn\2.", key)
    return key.replace(".shortcut.norm.", ".downsample.1.").replace(".shortcut.", ".downsample.0.")
