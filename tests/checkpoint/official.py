"""Names and shapes of official Mask2Former checkpoints, and the command that converts checkpoints."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from fss_d2.engine.command_line import run_command

ROOT = Path(__file__).parents[2]
# Channels of the first stage, blocks of the stages, window, heads of the first stage.
SWINS = {
    "tiny": (96, (2, 2, 6, 2), 7, 3),
    "small": (96, (2, 2, 18, 2), 7, 3),
    "base": (128, (2, 2, 18, 2), 12, 4),
    "large": (192, (2, 2, 18, 2), 12, 6),
}


def resnet50_shapes() -> dict[str, list[int]]:
    """Of the published ResNet-50 model, 150 classes."""
    return json.loads((ROOT / "tests" / "golden" / "mask2former_r50_keys.json").read_text())


def swin_shapes(size: str, queries: int = 100, classes: int = 150) -> dict[str, list[int]]:
    """Of a published Swin model: Microsoft's names, a norm for each stage, tables of the windows."""
    first, depths, window, heads = SWINS[size]
    shapes: dict[str, list[int]] = {"backbone.patch_embed.proj.weight": [first, 3, 4, 4]}
    shapes |= {"backbone.patch_embed.proj.bias": [first]} | _norm("backbone.patch_embed.norm", first)
    for i, depth in enumerate(depths):
        c = first * 2**i
        for j in range(depth):
            shapes |= _block(f"backbone.layers.{i}.blocks.{j}", c, window, heads * 2**i)
        if i < 3:
            shapes[f"backbone.layers.{i}.downsample.reduction.weight"] = [2 * c, 4 * c]
            shapes |= _norm(f"backbone.layers.{i}.downsample.norm", 4 * c)
        shapes |= _norm(f"backbone.norm{i}", c)
    head = {name: shape for name, shape in resnet50_shapes().items() if not name.startswith("backbone.")}
    for level, name in enumerate(("input_proj.2.0", "input_proj.1.0", "input_proj.0.0"), start=1):
        head[f"sem_seg_head.pixel_decoder.{name}.weight"] = [256, first * 2**level, 1, 1]
    head["sem_seg_head.pixel_decoder.adapter_1.weight"] = [256, first, 1, 1]
    for name in ("query_feat", "query_embed"):
        head[f"sem_seg_head.predictor.{name}.weight"] = [queries, 256]
    head["sem_seg_head.predictor.class_embed.weight"] = [classes + 1, 256]
    head["sem_seg_head.predictor.class_embed.bias"] = [classes + 1]
    head["criterion.empty_weight"] = [classes + 1]
    return shapes | head


def _norm(name: str, channels: int) -> dict[str, list[int]]:
    return {f"{name}.weight": [channels], f"{name}.bias": [channels]}


def _block(name: str, c: int, window: int, heads: int) -> dict[str, list[int]]:
    shapes = _norm(f"{name}.norm1", c) | _norm(f"{name}.norm2", c)
    shapes[f"{name}.attn.relative_position_bias_table"] = [(2 * window - 1) ** 2, heads]
    shapes[f"{name}.attn.relative_position_index"] = [window**2, window**2]
    for part, (inputs, outputs) in {
        "attn.qkv": (c, 3 * c),
        "attn.proj": (c, c),
        "mlp.fc1": (c, 4 * c),
        "mlp.fc2": (4 * c, c),
    }.items():
        shapes |= {f"{name}.{part}.weight": [outputs, inputs], f"{name}.{part}.bias": [outputs]}
    return shapes


def on_no_device(shapes: dict[str, list[int]], prefix: str = "") -> dict[str, Tensor]:
    """A state dict of which nothing is computed."""
    return {prefix + name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def command() -> ModuleType:
    """tools/convert_checkpoint.py as a module."""
    path = ROOT / "tools" / "convert_checkpoint.py"
    spec = importlib.util.spec_from_file_location("convert_checkpoint", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(arguments: list[str]) -> int:
    """Exit code of tools/convert_checkpoint.py."""
    return run_command(lambda: command().main(arguments))
