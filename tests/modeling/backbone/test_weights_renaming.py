"""Backbones under the names of other projects, from file to module."""

import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fss_d2.modeling.backbone import ResNetBackbone, SwinBackbone
from fss_d2.modeling.backbone.weights import load_backbone_weights, rename_microsoft_swin


def to_microsoft(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's Swin keys the way Microsoft's files have them, with two of their buffers and the head."""
    renamed = OrderedDict()
    for key, value in state.items():
        for i in (1, 2, 3):
            key = key.replace(f"layers.{i}.downsample", f"layers.{i}-1.downsample")
        renamed[key.replace("1-1", "0").replace("2-1", "1").replace("3-1", "2")] = value
    renamed["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49)
    renamed["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    renamed["head.weight"] = torch.zeros(10, 768)
    return renamed


def test_microsoft_swin_files(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = SwinBackbone(size="tiny")
    official = to_microsoft(source.library_module.state_dict())
    assert "layers.2.downsample.norm.weight" in official
    assert "layers.3.downsample.norm.weight" not in official
    torch.save({"model": official}, tmp_path / "swin.pth")
    backbone = SwinBackbone(size="tiny")
    report = load_backbone_weights(backbone, str(tmp_path / "swin.pth"))
    assert report is not None
    assert report.unexpected == ("head.fc.weight",)
    for key, value in source.state_dict().items():
        assert torch.equal(backbone.state_dict()[key], value), key


def test_renaming_microsofts_keys() -> None:
    keys = ["layers.0.downsample.norm.bias", "layers.10.blocks.0.norm1.bias", "head.bias", "norm.bias"]
    state = {key: torch.zeros(i + 1) for i, key in enumerate(keys)}
    renamed = rename_microsoft_swin(state | {"layers.2.blocks.1.attn_mask": torch.zeros(1)})
    assert list(renamed) == [
        "layers.1.downsample.norm.bias",
        "layers.10.blocks.0.norm1.bias",
        "head.fc.bias",
        "norm.bias",
    ]
    assert all(renamed[new] is state[old] for new, old in zip(renamed, keys, strict=True))


def to_detectron2(state: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """torchvision's ResNet the way Detectron2 publishes it: its names, numpy arrays, no batch counters."""
    renamed = {}
    for key, value in state.items():
        if "num_batches_tracked" in key:
            continue
        *path, module, kind = key.split(".")
        if module.startswith("bn"):
            module = f"conv{module[2:]}.norm"
        if path and path[-1] == "downsample":
            path, module = path[:-1], ("shortcut", "shortcut.norm")[int(module)]
        prefix = [f"res{int(path[0][5:]) + 1}", *path[1:]] if path else ["stem"]
        renamed[".".join([*prefix, module, kind])] = value.numpy()
    return renamed


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_detectron2s_resnet_files(tmp_path: Path, prefix: str) -> None:
    torch.manual_seed(0)
    source = ResNetBackbone(depth=50)
    arrays = to_detectron2(source.state_dict())
    assert {"stem.conv1.norm.bias", "res2.0.shortcut.norm.running_var", "res5.2.conv3.weight"} < arrays.keys()
    content = {prefix + name: array for name, array in arrays.items()} | {f"{prefix}fc.bias": np.zeros(9)}
    with (tmp_path / "R-50.pkl").open("wb") as file:
        pickle.dump({"model": content, "__author__": "torchvision", "matching_heuristics": True}, file)
    backbone = ResNetBackbone(depth=50)
    report = load_backbone_weights(backbone, str(tmp_path / "R-50.pkl"))
    assert report is not None
    assert (report.matched, report.missing, report.unexpected) == (265, (), ("fc.bias",))
    for key, value in source.state_dict().items():
        assert torch.equal(backbone.state_dict()[key], value), key
