"""Any timm model that offers feature maps: convolutional pyramids and plain vision transformers."""

from collections.abc import Collection, Sequence
from contextvars import ContextVar
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
from fss_d2.soft_masks import resize

from .base import STAGES, STRIDES, FeatureBackbone, map_size
from .weights import load_backbone_weights


@config_keys
def add_keys(cfg: CfgNode) -> None:
    """Keys of timm backbones."""
    cfg.MODEL.TIMM = CfgNode()
    cfg.MODEL.TIMM.NAME = "tf_efficientnet_lite0"  # any timm model with feature maps
    # Keep the convolution between the last block and the classifier, and offer its map as "head". Of
    # EfficientNets and other models that have one.
    cfg.MODEL.TIMM.HEAD = False


HEAD = "head"  # name of the map that the classifier would read
_HEAD_MODULES = ("conv_head", "bn2")
_SEQUENCES = (nn.Sequential, nn.ModuleList)
_PROBE_SIDE = 65  # ceil(65 / stride) and floor(65 / stride) differ for every stride from 2 to 64

# Names of the blocks that the forward pass of this thread wants, and their outputs in order of execution.
_captured: ContextVar[tuple[frozenset[str], dict[str, Tensor]] | None] = ContextVar("captured", default=None)


class _Capture:
    """Forward hook of one block: stores its output if the forward pass of this thread wants it.

    It is registered once, when the backbone is built, so a forward pass changes nothing in the model.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, _module: nn.Module, _inputs: tuple[Tensor, ...], output: object) -> None:
        wanted, outputs = _captured.get() or ((), {})
        if self.name in wanted and isinstance(output, Tensor):
            outputs[self.name] = output.clone()  # some models (Xception) later change it in place


class TimmPyramidBackbone(FeatureBackbone):
    """A timm model with maps at several strides (EfficientNet, ConvNeXt, ResNet, RegNet, ...).

    Stages are timm's own features (`feature_info`): "res2".."res5" have strides 4, 8, 16, 32; a model may
    lack some, but not all. Blocks of "res4" are all units at stride 16 in order of execution, also those of
    further timm stages with that stride, each with its own number of channels. A stage whose units give no
    map (but tokens, for instance) has one block, the stage itself. Parameters live under `model.`.

    A model that rounds map sizes down (ConvNeXt) gets the image padded with zeros to a multiple of 32, and
    its maps are cropped, or resized if convolutions without padding made them smaller still. A model that is
    bound to one image size gets the image resized to it, and its maps are resized.

    With ``head`` the map that the classifier would read is offered as "head"; it belongs to no stage.

    The model must have `forward_intermediates`; its classifier is removed in place.
    """

    def __init__(self, model: nn.Module, *, head: bool = False) -> None:
        """Raises ValueError for a model without maps at the usual strides, or without the head asked for."""
        super().__init__()
        infos = model.feature_info
        kept = [getattr(model, name, None) for name in _HEAD_MODULES] if head else []
        if head and (None in kept or kept[0].in_channels != infos[-1]["num_chs"]):
            raise ValueError(
                f"{_name(model)} has no convolution between its last block and its classifier: set "
                "MODEL.TIMM.HEAD False, or choose an EfficientNet"
            )
        self._stage_index = {
            stage: max(i for i, info in enumerate(infos) if info["reduction"] == stride)
            for stage, stride in zip(STAGES, STRIDES, strict=True)
            if any(info["reduction"] == stride for info in infos)
        }
        if not self._stage_index:
            raise ValueError(f"{_name(model)} has no feature map of stride 4, 8, 16 or 32: choose another")
        model.prune_intermediate_layers(list(self._stage_index.values()), prune_norm=True, prune_head=True)
        for name, module in zip(_HEAD_MODULES, kept, strict=False):
            setattr(model, name, module)
        self.model, self._has_head = model, head
        self._channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        candidates = candidate_units(model)
        hooks = {unit: model.get_submodule(unit).register_forward_hook(_Capture(unit)) for unit in candidates}
        self._declare(self._probe(candidates))
        for unit in set(hooks) - set(self._modules_of.values()):
            hooks[unit].remove()
        self._chains = {} if self._native_size is not None else self._probe_chains()
        self.separate_stages = tuple(self._chains)

    def _probe(self, candidates: list[str]) -> dict[str, ShapeSpec]:
        """Run black images to find how sizes are rounded, and the stride and channels of every unit."""
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
        for stage, stride in zip(STAGES, STRIDES, strict=True):
            if stage not in self._stage_index:
                continue
            maps, units = self._run(torch.zeros(1, 3, *size), [stage], candidates)
            rounded_up, rounded_down = -(-size[1] // stride), size[1] // stride
            self._pads |= maps[stage].shape[-1] < rounded_up
            widths = (rounded_up, rounded_down)
            found = [name for name, unit in units.items() if unit.ndim == 4 and unit.shape[-1] in widths]
            for i, module_name in enumerate(found):
                self._modules_of[f"{stage}.{i}"] = module_name
                available[f"{stage}.{i}"] = ShapeSpec(channels=units[module_name].shape[1], stride=stride)
            spec = ShapeSpec(channels=maps[stage].shape[1], stride=stride)
            available |= {stage: spec} if found else {f"{stage}.0": spec, stage: spec}
        if self._has_head:
            stride = available[self._last_stage].stride
            available[HEAD] = ShapeSpec(channels=self.model.conv_head.out_channels, stride=stride)
        return available

    @property
    def _last_stage(self) -> str:
        return list(self._stage_index)[-1]

    @torch.no_grad()
    def _probe_chains(self) -> dict[str, list[str]]:
        """Find the modules that lead from one stage to the next, for each stage but the first.

        The guess is that they are neighbours in one container. A random image checks it; a stage for which
        the guess is wrong is left out.
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
        x = (x.permute(0, 2, 3, 1) if self._channels_last else x).clone()  # some modules change their input
        for name in chain:
            x = self.model.get_submodule(name)(x)
        return x.permute(0, 3, 1, 2).contiguous() if self._channels_last else x

    def _run_stage(self, stage: str, x: Tensor) -> Tensor:
        if self._pads:  # a model that rounds sizes down
            x = F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2))
        return self._run_chain(self._chains[stage], x)

    def _run(
        self, x: Tensor, stages: Collection[str], units: Sequence[str]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compute the maps of ``stages`` by name, and the outputs of units up to the deepest of them.

        Outputs of units are by module name, (B, C, h, w) if they are maps.
        """
        stages = [stage for stage in self._stage_index if stage in stages]
        outputs: dict[str, Tensor] = {}
        token = _captured.set((frozenset(units), outputs))
        try:
            maps = self.model.forward_intermediates(
                x, indices=[self._stage_index[s] for s in stages], stop_early=True, intermediates_only=True
            )
        finally:
            _captured.reset(token)
        if self._channels_last:
            outputs = {n: t.permute(0, 3, 1, 2) if t.ndim == 4 else t for n, t in outputs.items()}
        return dict(zip(stages, maps, strict=True)), outputs

    def _maps(self, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        size = (x.shape[-2], x.shape[-1])
        if self._native_size is not None:
            x = resize(x, self._native_size, align_corners=False)
        elif self._pads:
            x = F.pad(x, (0, -size[1] % 32, 0, -size[0] % 32))
        units = {name: self._modules_of[name] for name in names if name in self._modules_of}
        wanted = {self._last_stage if name == HEAD else name.split(".")[0] for name in names}
        stages, outputs = self._run(x, wanted, list(units.values()))
        if HEAD in names:
            stages[HEAD] = self.model.bn2(self.model.conv_head(stages[self._last_stage]))
        maps = {}
        for name in names:
            value = outputs[units[name]] if name in units else stages[name.split(".")[0]]
            height, width = map_size(size, self.available[name].stride)
            if self._native_size is None:
                value = value[..., :height, :width]
            maps[name] = resize(value, (height, width), align_corners=False)
        return maps


class TimmPlainBackbone(FeatureBackbone):
    """A plain vision transformer of timm (ViT, DINOv2, DINOv3, CLIP, ...) as a pyramid without parameters.

    The blocks, at least four, all at the stride of the patch, are split by depth into four runs of equal
    length: block i of L belongs to stage floor(4 i / L). The patch tokens of every block go through the final
    norm of the model if it has one (as in DINOv2's `get_intermediate_layers`), become a map, and are resized
    bilinearly to stride 4, 8, 16 or 32 for "res2".."res5". A stage is its last block.

    The image is resized (not padded, so that maps stay aligned with it) to the next multiple of the patch or,
    for models bound to one image size, to that size. Parameters live under `model.`.

    The model must have `forward_intermediates`; its classifier is removed in place. ``any_size`` says whether
    it takes any multiple of its patch (`dynamic_img_size`).
    """

    def __init__(self, model: nn.Module, *, any_size: bool) -> None:
        super().__init__()
        infos = model.feature_info
        if len(infos) < len(STAGES):
            raise ValueError(f"{_name(model)} has fewer than 4 blocks: choose another")
        model.prune_intermediate_layers(list(range(len(infos))), prune_norm=False, prune_head=True)
        self.model = model
        self._native_size = None if any_size else tuple(model.pretrained_cfg["input_size"][-2:])
        self._patch: int = infos[0]["reduction"]

        self._index: dict[str, int] = {}
        available: dict[str, ShapeSpec] = {}
        for s, (stage, stride) in enumerate(zip(STAGES, STRIDES, strict=True)):
            members = [i for i in range(len(infos)) if 4 * i // len(infos) == s]
            names = [f"{stage}.{n}" for n in range(len(members))]
            self._index |= dict(zip([*names, stage], [*members, members[-1]], strict=True))
            spec = ShapeSpec(channels=infos[0]["num_chs"], stride=stride)
            available |= dict.fromkeys([*names, stage], spec)
        self._declare(available)

    def _maps(self, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        size = (x.shape[-2], x.shape[-1])
        height, width = map_size(size, self._patch)
        seen = self._native_size or (height * self._patch, width * self._patch)
        indices = sorted({self._index[name] for name in names})
        x = resize(x, seen, align_corners=False)
        maps = self.model.forward_intermediates(
            x, indices=indices, norm=True, stop_early=True, intermediates_only=True
        )
        by_index = dict(zip(indices, maps, strict=True))
        sizes = {name: map_size(size, self.available[name].stride) for name in names}
        return {n: resize(by_index[self._index[n]], sizes[n], align_corners=False) for n in names}


def _name(model: nn.Module) -> str:
    return str(model.pretrained_cfg.get("architecture", type(model).__name__))


def candidate_units(model: nn.Module) -> list[str]:
    """Return the names of the submodules that look like blocks, in the order in which they are registered.

    If timm's stages are attributes of the model ("layer1", "s2"), they hold the blocks. If they are members
    of a container ("stages.0", "blocks.4", "features.7"), they and their siblings hold blocks in sequences,
    or are blocks themselves. A single layer (a module without children) is not a block.
    """
    modules = dict(model.named_modules())
    roots: dict[str, bool] = {}  # name -> whether it is a member of a container
    for info in model.feature_info:
        parent, _, _ = info["module"].rpartition(".")
        if parent in modules and parent:
            roots |= {f"{parent}.{child}": True for child, _ in modules[parent].named_children()}
        elif info["module"] in modules and info["module"]:
            roots[info["module"]] = False

    units: list[str] = []
    for root, is_member in roots.items():
        module = modules[root]
        children = [(f"{root}.{key}", child) for key, child in module.named_children()]
        found = [
            unit for key, child in children if isinstance(child, _SEQUENCES) for unit in _flatten(key, child)
        ]
        if isinstance(module, _SEQUENCES) or (not found and not is_member):
            found = [unit for key, child in children for unit in _flatten(key, child)]
        units += found or ([root] if children else [])
    return units


def _flatten(name: str, module: nn.Module) -> list[str]:
    """Return the names of the composite modules in nested sequences, or of the module itself."""
    if isinstance(module, _SEQUENCES):
        return [unit for key, child in module.named_children() for unit in _flatten(f"{name}.{key}", child)]
    return [name] if any(True for _ in module.children()) else []


def neighbours(model: nn.Module, first: str, last: str) -> list[str]:
    """Modules after ``first`` up to and including ``last`` in their common container; [] without one."""
    container, _, key = last.rpartition(".")
    before, _, start = first.rpartition(".")
    siblings = [name for name, _ in model.get_submodule(container).named_children()]
    if before != container or not {start, key} <= set(siblings):
        return []
    between = siblings[siblings.index(start) + 1 : siblings.index(key) + 1]
    return [f"{container}.{name}".lstrip(".") for name in between]


def create_timm_backbone(name: str, *, head: bool = False) -> TimmPyramidBackbone | TimmPlainBackbone:
    """Create a timm model with random weights; ValueError for an unknown name, or maps that it lacks.

    ``head`` is that of `TimmPyramidBackbone`.
    """
    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        close = get_close_matches(architecture, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "see timm.list_models()"
        raise ValueError(f"{name!r} is no timm model: {hint}")
    try:
        model, any_size = timm.create_model(name, num_classes=0, dynamic_img_size=True), True
    except TypeError:  # only transformers with position tables know the argument
        model, any_size = timm.create_model(name, num_classes=0), False
    if not hasattr(model, "forward_intermediates"):
        raise ValueError(f"{name!r} offers no feature maps: choose another model")
    if not head and len({info["reduction"] for info in model.feature_info}) == 1:
        return TimmPlainBackbone(model, any_size=any_size)
    return TimmPyramidBackbone(model, head=head)


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmPyramidBackbone | TimmPlainBackbone:
    """Build MODEL.TIMM with the weights MODEL.BACKBONE.WEIGHTS."""
    try:
        backbone = create_timm_backbone(cfg.MODEL.TIMM.NAME, head=cfg.MODEL.TIMM.HEAD)
    except ValueError as error:
        raise ValueError(f"MODEL.TIMM.NAME {error}") from error
    load_backbone_weights(backbone, cfg.MODEL.BACKBONE.WEIGHTS)
    return backbone
