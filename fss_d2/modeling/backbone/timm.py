"""Any timm model that offers feature maps: convolutional pyramids and plain vision transformers."""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from itertools import pairwise

import timm
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import Tensor, nn

from fss_d2.modeling.keys import config_keys

from ...checkpoint.pretrained import load_backbone_weights
from .base import STAGES, FeatureBackbone, map_size
from .timm_units import candidate_units, neighbours

__all__ = ["TimmPlainBackbone", "TimmPyramidBackbone", "build_timm_backbone", "create_timm_backbone"]


@config_keys
def add_keys(cfg: CfgNode) -> None:
    """Keys of timm backbones."""
    cfg.MODEL.TIMM = CfgNode()
    cfg.MODEL.TIMM.NAME = "tf_efficientnet_lite0"  # any timm model with feature maps


_STRIDES = (4, 8, 16, 32)
_PROBE_SIDE = 65  # tells maps of size ceil(65 / stride) from floor(65 / stride), for every stride to 64


class TimmPyramidBackbone(FeatureBackbone):
    """A timm model with maps at several strides (EfficientNet, ConvNeXt, ResNet, RegNet, ...).

    Stages are timm's own features (`feature_info`): "res2".."res5" have strides 4, 8, 16, 32; a model may
    lack some. Blocks of "res4" are all units at stride 16 in order of execution, also those of further
    timm stages with that stride, each with its own number of channels. A stage whose units give no map
    (tokens, for instance) has one block, the stage itself. Parameters live under `model.`.

    Models that round map sizes down (ConvNeXt) get the image padded with zeros to a multiple of 32, the
    maps being cropped (and resized where convolutions without padding made them smaller still); models
    bound to one image size get the image resized to it, the maps being resized.

    Args:
        model: a timm model with `forward_intermediates`; its classifier is removed in place.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        infos = model.feature_info
        self._stage_index = {
            stage: max(i for i, info in enumerate(infos) if info["reduction"] == stride)
            for stage, stride in zip(STAGES, _STRIDES, strict=True)
            if any(info["reduction"] == stride for info in infos)
        }
        if not self._stage_index:
            raise ValueError(
                f"MODEL.TIMM.NAME {_name(model)} has no feature map of stride 4, 8, 16 or 32: choose another"
            )
        model.prune_intermediate_layers(list(self._stage_index.values()), prune_norm=True, prune_head=True)
        self.model = model
        self._channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        self._declare(self._probe(candidate_units(model)))
        self._chains = {} if self._native_size is not None else self._probe_chains()
        self.separate_stages = tuple(self._chains)

    @property
    def library_module(self) -> nn.Module:
        """timm's model."""
        return self.model

    def _probe(self, candidates: list[str]) -> dict[str, ShapeSpec]:
        """Run black images to find how sizes round, and stride and channels of every unit."""
        self.model.eval()
        try:
            self._native_size = None
            available = self._probe_at((_PROBE_SIDE, _PROBE_SIDE), candidates)
        except (RuntimeError, AssertionError, ValueError):  # a model bound to its own image size
            self._native_size = tuple(self.model.pretrained_cfg["input_size"][-2:])
            available = self._probe_at(self._native_size, candidates)
        self.model.train()
        return available

    @torch.no_grad()
    def _probe_at(self, size: tuple[int, int], candidates: list[str]) -> dict[str, ShapeSpec]:
        available: dict[str, ShapeSpec] = {}
        self._modules_of: dict[str, str] = {}  # block name -> name of the module that gives it
        self._pads = False
        for stage, stride in zip(STAGES, _STRIDES, strict=True):
            if stage not in self._stage_index:
                continue
            maps, units = self._run(torch.zeros(1, 3, *size), [stage], candidates)
            rounded_up, rounded_down = -(-size[1] // stride), size[1] // stride
            self._pads |= maps[stage].shape[-1] < rounded_up
            found = [
                name
                for name, unit in units.items()
                if unit.ndim == 4 and unit.shape[-1] in (rounded_up, rounded_down)
            ]
            for i, module_name in enumerate(found):
                self._modules_of[f"{stage}.{i}"] = module_name
                available[f"{stage}.{i}"] = ShapeSpec(channels=units[module_name].shape[1], stride=stride)
            spec = ShapeSpec(channels=maps[stage].shape[1], stride=stride)
            if not found:
                available[f"{stage}.0"] = spec
            available[stage] = spec
        return available

    @torch.no_grad()
    def _probe_chains(self) -> dict[str, list[str]]:
        """Find, for each stage but the first, the modules that lead from the one before to it.

        They are taken to be neighbours in one container; a random image tells whether that is so, and a stage
        for which it is not is left out.
        """
        stages = [stage for stage in STAGES if stage in self._stage_index]
        image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        self.model.eval()
        maps, _ = self._run(image, stages, [])
        modules = [info["module"] for info in self.model.feature_info]
        chains: dict[str, list[str]] = {}
        for before, stage in pairwise(stages):
            first, last = (modules[self._stage_index[name]] for name in (before, stage))
            chain = neighbours(self.model, first, last)
            try:
                found = self._run_chain(chain, maps[before])
            except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError, IndexError):
                continue
            error = 1e-4 * float(maps[stage].abs().max())
            if found.shape == maps[stage].shape and torch.allclose(found, maps[stage], rtol=0, atol=error):
                chains[stage] = chain
        self.model.train()
        return chains

    def _run_chain(self, chain: Sequence[str], x: Tensor) -> Tensor:
        x = (x.permute(0, 2, 3, 1) if self._channels_last else x).clone()  # some change their input
        for name in chain:
            x = self.model.get_submodule(name)(x)
        return x.permute(0, 3, 1, 2).contiguous() if self._channels_last else x

    def _run_stage(self, stage: str, x: Tensor) -> Tensor:
        if self._pads:  # a model that rounds sizes down; the maps' own padding is cropped off
            x = F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2))
        return self._run_chain(self._chains[stage], x)

    def _run(
        self, x: Tensor, stages: Sequence[str], modules: Sequence[str]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compute the maps of `stages`, and of modules up to the deepest of them, by module name."""
        units: dict[str, Tensor] = {}
        hooks = [self._record(name, units) for name in modules]
        stages = [stage for stage in self._stage_index if stage in stages]
        try:
            maps = self.model.forward_intermediates(
                x, indices=[self._stage_index[s] for s in stages], stop_early=True, intermediates_only=True
            )
        finally:
            for hook in hooks:
                hook.remove()
        return dict(zip(stages, maps, strict=True)), units

    def _record(self, name: str, units: dict[str, Tensor]) -> torch.utils.hooks.RemovableHandle:
        """Put the output of a submodule into `units`, as (B, C, h, w) where it is a map.

        A copy: some models (Xception) go on to change the output in place.
        """

        def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: object) -> None:
            if isinstance(output, Tensor):
                is_turned = self._channels_last and output.ndim == 4
                units[name] = (output.permute(0, 3, 1, 2) if is_turned else output).clone()

        return self.model.get_submodule(name).register_forward_hook(hook)

    def _features(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        size = (x.shape[-2], x.shape[-1])
        if self._native_size is not None:
            x = _resize(x, self._native_size)
        elif self._pads:
            x = F.pad(x, (0, -size[1] % 32, 0, -size[0] % 32))
        modules = {name: self._modules_of[name] for name in self.selected if name in self._modules_of}
        maps, units = self._run(x, {name.split(".")[0] for name in self.selected}, list(modules.values()))
        for name in self.selected:
            value = units[modules[name]] if name in modules else maps[name.split(".")[0]]
            height, width = map_size(size, self.available[name].stride)
            if self._native_size is None:
                value = value[..., :height, :width]
            yield name, _resize(value, (height, width))


class TimmPlainBackbone(FeatureBackbone):
    """A plain vision transformer of timm (ViT, DINOv2, DINOv3, CLIP, ...) as a pyramid without parameters.

    The blocks, all at the stride of the patch, are split by depth into four runs of equal length: block i of
    L belongs to stage floor(4 i / L). Every block's patch tokens go through the model's final norm (as in
    DINOv2's `get_intermediate_layers`; a model without one gives them raw), become a map, and are resized
    bilinearly to stride 4, 8, 16 or 32 for "res2".."res5". A stage is its last block.

    The image is resized (not padded, so that maps stay aligned with it) to the next multiple of the patch
    or, for models bound to one image size, to that size. Parameters live under `model.`.

    Args:
        model: a timm transformer with `forward_intermediates`; its classifier is removed in place.
        any_size: whether the model takes any multiple of its patch (`dynamic_img_size`).
    """

    def __init__(self, model: nn.Module, *, any_size: bool) -> None:
        super().__init__()
        infos = model.feature_info
        if len(infos) < len(STAGES):
            raise ValueError(f"MODEL.TIMM.NAME {_name(model)} has fewer than 4 blocks: choose another")
        model.prune_intermediate_layers(list(range(len(infos))), prune_norm=False, prune_head=True)
        self.model = model
        self._native_size = None if any_size else tuple(model.pretrained_cfg["input_size"][-2:])
        self._patch: int = infos[0]["reduction"]

        self._index: dict[str, int] = {}
        available: dict[str, ShapeSpec] = {}
        for s, (stage, stride) in enumerate(zip(STAGES, _STRIDES, strict=True)):
            members = [i for i in range(len(infos)) if 4 * i // len(infos) == s]
            names = [f"{stage}.{n}" for n in range(len(members))]
            self._index |= dict(zip([*names, stage], [*members, members[-1]], strict=True))
            spec = ShapeSpec(channels=infos[0]["num_chs"], stride=stride)
            available |= dict.fromkeys([*names, stage], spec)
        self._declare(available)

    @property
    def library_module(self) -> nn.Module:
        """timm's model."""
        return self.model

    def _features(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        size = (x.shape[-2], x.shape[-1])
        height, width = map_size(size, self._patch)
        x = _resize(x, self._native_size or (height * self._patch, width * self._patch))
        indices = sorted({self._index[name] for name in self.selected})
        maps = self.model.forward_intermediates(
            x, indices=indices, norm=True, stop_early=True, intermediates_only=True
        )
        by_index = dict(zip(indices, maps, strict=True))
        for name in self.selected:
            yield name, _resize(by_index[self._index[name]], map_size(size, self.available[name].stride))


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (B, C, H, W) bilinearly, pixel areas aligned."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def _name(model: nn.Module) -> str:
    return str(model.pretrained_cfg.get("architecture", type(model).__name__))


def create_timm_backbone(name: str) -> TimmPyramidBackbone | TimmPlainBackbone:
    """Create a timm model with random weights as a backbone.

    Raises:
        ValueError: for an unknown name, or a model without feature maps.
    """
    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        close = get_close_matches(architecture, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "see timm.list_models()"
        raise ValueError(f"MODEL.TIMM.NAME {name!r} is no timm model: {hint}")
    try:
        model, any_size = timm.create_model(name, num_classes=0, dynamic_img_size=True), True
    except TypeError:  # only transformers with position tables know the argument
        model, any_size = timm.create_model(name, num_classes=0), False
    if not hasattr(model, "forward_intermediates"):
        raise ValueError(f"MODEL.TIMM.NAME {name!r} offers no feature maps: choose another model")
    if len({info["reduction"] for info in model.feature_info}) == 1:
        return TimmPlainBackbone(model, any_size=any_size)
    return TimmPyramidBackbone(model)


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmPyramidBackbone | TimmPlainBackbone:
    """Build MODEL.TIMM with the weights MODEL.BACKBONE.WEIGHTS."""
    backbone = create_timm_backbone(cfg.MODEL.TIMM.NAME)
    load_backbone_weights(backbone, cfg.MODEL.BACKBONE.WEIGHTS)
    return backbone
