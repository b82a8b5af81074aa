"""Swin Transformer (Liu et al., ICCV 2021), every block a named output."""

from collections.abc import Iterator, Sequence

import timm
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from timm.models.swin_transformer import SwinTransformerBlock, window_partition, window_reverse
from torch import Tensor, nn

from fss_d2.modeling.keys import choose, config_keys

from .base import STAGES, STRIDES, FeatureBackbone
from .weights import load_backbone_weights

Pair = tuple[int, int]  # rows, columns


@config_keys
def add_keys(cfg: CfgNode) -> None:
    """Keys of Swin."""
    cfg.MODEL.FSS_SWIN = CfgNode()
    # "tiny", "small" (window 7, trained at 224 pixels), "base" or "large" (window 12, trained at 384); other
    # image sizes run too, with maps padded to whole windows.
    cfg.MODEL.FSS_SWIN.SIZE = "base"
    cfg.MODEL.FSS_SWIN.OUT_NORM = False  # a layer norm on each stage that is returned (Mask2Former)


_NAMES = {
    "tiny": "swin_tiny_patch4_window7_224",
    "small": "swin_small_patch4_window7_224",
    "base": "swin_base_patch4_window12_384",
    "large": "swin_large_patch4_window12_384",
}


class SwinBackbone(FeatureBackbone):
    """timm's Swin Transformer without its last norm and its classifier; parameters live under `model.`.

    A block is the output after both residual sums, before patch merging, not normalised. A stage is its last
    block. Strides are 4, 8, 16, 32. With ``out_norm`` each stage is layer-normalised where it is returned
    (detectors, Mask2Former), by `out_norms.res2` to `out_norms.res5`; the next stage and the blocks are not
    normalised.

    The image is padded with zeros to a multiple of 4. Odd maps before merging and maps that do not fill whole
    windows are padded with zeros as well, and the padding is cropped off again. The window keeps its size;
    windows shift along an axis only where the map is larger than one window. At the size of training
    (`add_keys`) nothing is padded.
    """

    def __init__(self, *, size: str = "base", out_norm: bool = False) -> None:
        super().__init__()
        if size not in _NAMES:
            raise ValueError(f"unknown size {size!r}: choose from {', '.join(_NAMES)}")
        self.model = timm.create_model(
            _NAMES[size], num_classes=0, strict_img_size=False, always_partition=True, drop_path_rate=0.0
        )
        self.model.norm = nn.Identity()

        available: dict[str, ShapeSpec] = {}
        for stage, layer, stride in zip(STAGES, self.model.layers, STRIDES, strict=True):
            spec = ShapeSpec(channels=layer.blocks[0].dim, stride=stride)
            available |= {f"{stage}.{i}": spec for i in range(len(layer.blocks))}
            available[stage] = spec
        self._declare(available)
        # With norms a returned stage is not what the next one reads.
        self.separate_stages = () if out_norm else STAGES[1:]
        norms = {stage: nn.LayerNorm(available[stage].channels) for stage in STAGES} if out_norm else {}
        self.out_norms = nn.ModuleDict(norms)

    def _features(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        height, width = x.shape[-2:]
        x = F.pad(x, (0, -width % 4, 0, -height % 4))
        x = self.model.patch_embed(x)  # (B, h, w, C), as all maps below
        for stage, layer in zip(STAGES, self.model.layers, strict=True):
            for i, output in enumerate(_run_layer(layer, x)):
                x = output
                features = x.permute(0, 3, 1, 2).contiguous()  # (B, C, h, w)
                yield f"{stage}.{i}", features
            if stage in self.out_norms:
                features = self.out_norms[stage](x).permute(0, 3, 1, 2).contiguous()
            yield stage, features

    def _run_stage(self, stage: str, x: Tensor) -> Tensor:
        *_, last = _run_layer(self.model.layers[STAGES.index(stage)], x.permute(0, 2, 3, 1))
        return last.permute(0, 3, 1, 2).contiguous()


def _run_layer(layer: nn.Module, x: Tensor) -> Iterator[Tensor]:
    """Run a stage on (B, h, w, C) and yield the output (B, h', w', C') of every block."""
    x = layer.downsample(x)
    masks: dict[Pair, Tensor | None] = {}  # shift -> mask, for all blocks with that shift
    for block in layer.blocks:
        shift = _shift(block, x.shape[1:3])
        if shift not in masks:
            masks[shift] = _shift_mask(x, block.window_size, shift)
        x = _run_block(block, x, shift, masks[shift])
        yield x


def _shift(block: SwinTransformerBlock, size: Sequence[int]) -> Pair:
    """Shift of the block's windows on a map of ``size`` (height, width): 0 along a side of one window."""
    sides = zip(size, block.window_size, block.target_shift_size, strict=True)
    rows, columns = (shift if side > window else 0 for side, window, shift in sides)
    return rows, columns


def _shift_mask(x: Tensor, window: Pair, shift: Pair) -> Tensor | None:
    """-100 between tokens of a window that the shift brought together, 0 between neighbours.

    For maps like ``x`` (B, h, w, C). Returns (windows, tokens, tokens), or None without a shift.
    """
    if not any(shift):
        return None
    parts = []
    for length, side, step in zip(x.shape[1:3], window, shift, strict=True):
        index = torch.arange(-(-length // side) * side, device=x.device)
        end = len(index)
        parts.append((index >= end - side).int() + (index >= end - step).int() if step else 0 * index)
    rows, columns = parts
    regions = (3 * rows[:, None] + columns)[None, :, :, None]
    tokens = window_partition(regions, window).flatten(1)  # (windows, tokens)
    apart = tokens[:, None] != tokens[:, :, None]  # (windows, tokens, tokens)
    return x.new_zeros(apart.shape).masked_fill(apart, -100.0)


def _run_block(block: SwinTransformerBlock, x: Tensor, shift: Pair, mask: Tensor | None) -> Tensor:
    """Run a block on a (B, h, w, C) map of any size; nothing in the block changes.

    The map is padded to whole windows before it is shifted, as in detectors with Swin. timm's own forward
    shifts first; where windows are not full, its mask then lets opposite edges attend to each other.
    """
    height, width = x.shape[1:3]
    rows, columns = block.window_size
    padded = F.pad(block.norm1(x), (0, 0, 0, -width % columns, 0, -height % rows))
    if any(shift):
        padded = torch.roll(padded, shifts=(-shift[0], -shift[1]), dims=(1, 2))
    tokens = window_partition(padded, block.window_size).flatten(1, 2)  # (windows * B, tokens, C)
    attended = block.attn(tokens, mask=mask).unflatten(1, block.window_size)
    attended = window_reverse(attended, block.window_size, *padded.shape[1:3])
    if any(shift):
        attended = torch.roll(attended, shifts=shift, dims=(1, 2))
    x = x + attended[:, :height, :width]
    return x + block.mlp(block.norm2(x))


@BACKBONE_REGISTRY.register()
def build_fss_swin_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SwinBackbone:
    """Build MODEL.FSS_SWIN with the weights MODEL.BACKBONE.WEIGHTS."""
    size = choose("MODEL.FSS_SWIN.SIZE", cfg.MODEL.FSS_SWIN.SIZE, _NAMES)
    backbone = SwinBackbone(size=size, out_norm=cfg.MODEL.FSS_SWIN.OUT_NORM)
    load_backbone_weights(backbone, cfg.MODEL.BACKBONE.WEIGHTS)
    return backbone
