"""Swin Transformer (Liu et al., ICCV 2021), every block a named output."""

from collections.abc import Iterator

import timm
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn

from fss_d2.modeling.keys import config_keys

from ...checkpoint.pretrained import load_backbone_weights
from .base import STAGES, FeatureBackbone

__all__ = ["SwinBackbone", "build_fss_swin_backbone"]


@config_keys
def add_keys(cfg: CfgNode) -> None:
    """Keys of Swin."""
    cfg.MODEL.FSS_SWIN = CfgNode()
    # "tiny", "small" (window 7, made for 224 pixels), "base" or "large" (window 12, made for 384); other
    # image sizes run too, with maps padded to whole windows.
    cfg.MODEL.FSS_SWIN.SIZE = "base"
    cfg.MODEL.FSS_SWIN.OUT_NORM = False  # a layer norm on each stage that is given out (Mask2Former)


_NAMES = {
    "tiny": "swin_tiny_patch4_window7_224",
    "small": "swin_small_patch4_window7_224",
    "base": "swin_base_patch4_window12_384",
    "large": "swin_large_patch4_window12_384",
}


class SwinBackbone(FeatureBackbone):
    """timm's Swin Transformer without its last norm and its classifier; parameters live under `model.`.

    Blocks are a block's output after both residual sums, before patch merging, not normalised; a stage is
    its last block. Strides 4, 8, 16, 32.

    Any image size runs: the image is padded with zeros to a multiple of 4, odd maps before merging and maps
    that do not fill whole windows are padded with zeros as well, and all of it is cropped off again. The
    window keeps its size; windows shift along an axis only where the map is larger than one window. At
    384 (base, large) or 224 (tiny, small) pixels nothing is padded.

    Args:
        size: "tiny", "small" (window 7), "base" or "large" (window 12).
        out_norm: whether each stage is layer-normalised where it is given out (detectors, Mask2Former); the
            next stage and the blocks do not see it. Its parameters are `out_norms.res2` to `out_norms.res5`.
    """

    def __init__(self, *, size: str = "base", out_norm: bool = False) -> None:
        super().__init__()
        if size not in _NAMES:
            raise ValueError(f"MODEL.FSS_SWIN.SIZE {size!r} is not one of {', '.join(_NAMES)}")
        self.model = timm.create_model(
            _NAMES[size], num_classes=0, strict_img_size=False, always_partition=True, drop_path_rate=0.0
        )
        self.model.norm = nn.Identity()

        available: dict[str, ShapeSpec] = {}
        for stage, layer, stride in zip(STAGES, self.model.layers, (4, 8, 16, 32), strict=True):
            spec = ShapeSpec(channels=layer.blocks[0].dim, stride=stride)
            available |= {f"{stage}.{i}": spec for i in range(len(layer.blocks))}
            available[stage] = spec
        self._declare(available)
        self.out_norms = nn.ModuleDict()
        if not out_norm:  # otherwise what a stage gives out is not what the next one reads
            self.separate_stages = STAGES[1:]
        else:
            self.out_norms.update({stage: nn.LayerNorm(available[stage].channels) for stage in STAGES})

    @property
    def library_module(self) -> nn.Module:
        """timm's model."""
        return self.model

    def _features(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        height, width = x.shape[-2:]
        x = F.pad(x, (0, -width % 4, 0, -height % 4))
        x = self.model.patch_embed(x)  # (B, h, w, C), as all maps below
        for stage, layer in zip(STAGES, self.model.layers, strict=True):
            x = layer.downsample(x)
            for i, block in enumerate(layer.blocks):
                x = _run_block(block, x)
                features = x.permute(0, 3, 1, 2).contiguous()  # (B, C, h, w)
                yield f"{stage}.{i}", features
            if stage in self.out_norms:
                features = self.out_norms[stage](x).permute(0, 3, 1, 2).contiguous()
            yield stage, features

    def _run_stage(self, stage: str, x: Tensor) -> Tensor:
        layer = self.model.layers[STAGES.index(stage)]
        x = layer.downsample(x.permute(0, 2, 3, 1))
        for block in layer.blocks:
            x = _run_block(block, x)
        return x.permute(0, 3, 1, 2).contiguous()


def _run_block(block: SwinTransformerBlock, x: Tensor) -> Tensor:
    """Run a block on a (B, h, w, C) map of any size.

    The map is padded to whole windows before it is shifted, as detectors with Swin do. timm's own forward
    shifts first, and where windows are not full the mask then lets opposite edges attend to each other.
    """
    height, width = x.shape[1:3]
    _set_shift(block, height, width)
    rows, columns = block.window_size
    padded = F.pad(block.norm1(x), (0, 0, 0, -width % columns, 0, -height % rows))
    x = x + block._attn(padded)[:, :height, :width]
    return x + block.mlp(block.norm2(x))


def _set_shift(block: SwinTransformerBlock, height: int, width: int) -> None:
    """Shift the windows of a block (if it is one that shifts) along the axes with more than one window."""
    block.shift_size = tuple(
        shift if side > window else 0
        for side, window, shift in zip(
            (height, width), block.window_size, block.target_shift_size, strict=True
        )
    )


@BACKBONE_REGISTRY.register()
def build_fss_swin_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SwinBackbone:
    """Build MODEL.FSS_SWIN with the weights MODEL.BACKBONE.WEIGHTS."""
    backbone = SwinBackbone(size=cfg.MODEL.FSS_SWIN.SIZE, out_norm=cfg.MODEL.FSS_SWIN.OUT_NORM)
    load_backbone_weights(backbone, cfg.MODEL.BACKBONE.WEIGHTS)
    return backbone
