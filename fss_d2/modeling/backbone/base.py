"""What every backbone here has in common: named feature maps, some of which the caller selects."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn

from fss_d2.soft_masks import resize

STAGES = ("res2", "res3", "res4", "res5")
STRIDES = (4, 8, 16, 32)  # of the stages of most backbones
SHRUNK = {"res4": 2, "res5": 4}  # how much smaller than res3 these stages are without dilation


def map_size(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Return (height, width) of the feature map of an image of ``size`` (height, width), both rounded up."""
    height, width = size
    return -(-height // stride), -(-width // stride)


class FeatureBackbone(Backbone):
    """A Detectron2 backbone that names every block as well as every stage.

    A stage ("res4") is the activation that the next stage reads. A block ("res4.0", "res4.1", ...) is one
    residual unit, convolution or transformer layer of the stage, shallow to deep. `select` sets which of them
    `forward` returns. `forward` computes nothing behind the deepest of these and keeps no other map.

    `forward` changes no state of the model in evaluation mode, so several threads may run one model at once.

    A subclass builds its layers, calls `_declare` and implements `_features`, or `_maps` if it must know all
    names before it starts. If its stages can run one by one, it also implements `_run_stage` and names them
    in `separate_stages`.
    """

    available: dict[str, ShapeSpec]
    """Channels and stride of everything selectable, in the order in which it is computed."""

    separate_stages: tuple[str, ...] = ()
    """Stages that `run_stage` can run; never the first."""

    def _declare(self, available: Mapping[str, ShapeSpec]) -> None:
        """Set what is selectable, in order of computation, and select the stages."""
        self.available = dict(available)
        self.select([name for name in STAGES if name in self.available])

    def _features(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, map) in order of computation; the caller stops when it has what it needs."""
        raise NotImplementedError

    def _maps(self, x: Tensor, names: Sequence[str]) -> Mapping[str, Tensor]:
        """Compute at least the maps with these names; there is at least one name, each from `available`."""
        maps: dict[str, Tensor] = {}
        for name, value in self._features(x):
            if name in names:
                maps[name] = value
            if len(maps) == len(names):
                break
        return maps

    def _run_stage(self, stage: str, x: Tensor) -> Tensor:
        """As `run_stage`, which has checked the stage."""
        raise NotImplementedError

    @property
    def library_module(self) -> nn.Module:
        """The module whose state-dict keys are those of the library, and so of its published weights."""
        return getattr(self, "model", self)

    @property
    def selected(self) -> tuple[str, ...]:
        """Names that `forward` returns, in the order of selection."""
        return self._selected

    def blocks(self, stage: str) -> list[str]:
        """Return the names of the blocks of a stage, shallow to deep; KeyError for an unknown stage."""
        stages = [name for name in STAGES if name in self.available]
        if stage not in stages:
            raise KeyError(f"no stage {stage!r} in {type(self).__name__}: choose from {', '.join(stages)}")
        return [name for name in self.available if name.startswith(stage + ".")]

    def select(self, names: Sequence[str]) -> None:
        """Set what `forward` returns: stage and block names, at least one; repeated names count once.

        Raises KeyError for a name that is not in `available`; the message lists the stages and their blocks.
        """
        self._selected = self._checked(names)

    def _checked(self, names: Sequence[str]) -> tuple[str, ...]:
        if isinstance(names, str) or not names:
            raise ValueError(f"select() takes a sequence of at least one feature name, not {names!r}")
        for name in names:
            if name not in self.available:
                raise KeyError(
                    f"no feature {name!r} in {type(self).__name__}: choose from {self._describe_choices()}"
                )
        return tuple(dict.fromkeys(names))

    def run_stage(self, stage: str, x: Tensor) -> Tensor:
        """Run one of `separate_stages` on the output (B, C, h, w) of the stage before it, changed or not.

        Gradients flow. Returns (B, C', h', w') with h' = ceil(h / (ratio of strides)). For an unchanged input
        this is the map of `forward`, apart from the influence of padding in a backbone that pads its images.
        Raises NotImplementedError for any other stage.
        """
        if stage not in self.separate_stages:
            choices = ", ".join(self.separate_stages) or "another backbone: none of its stages runs alone"
            raise NotImplementedError(
                f"{type(self).__name__} cannot run {stage!r} on the stage before it: choose {choices}"
            )
        return self._run_stage(stage, x)

    def _describe_choices(self) -> str:
        parts = [(stage, self.blocks(stage)) for stage in STAGES if stage in self.available]
        return ", ".join(f"{stage} ({blocks[0]} ... {blocks[-1]})" for stage, blocks in parts)

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and stride of the selected maps."""
        return {name: self.available[name] for name in self._selected}

    @property
    def size_divisibility(self) -> int:
        """0: any image size is accepted."""
        return 0

    def forward(self, x: Tensor, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Compute the selected maps of normalised images (B, 3, H, W), any H and W.

        ``names`` is a selection for this call alone. Returns name -> (B, C, ceil(H / stride), ceil(W /
        stride)), in the order of selection; a VGG in HSNet's layout rounds down. Raises the errors of
        `select`.
        """
        names = self._selected if names is None else self._checked(names)
        maps = self._maps(x, names)
        return {name: maps[name] for name in names}


def stage_before(backbone: FeatureBackbone, stage: str, needed_by: str = "") -> str:
    """Return the stage whose map ``backbone.run_stage(stage, ...)`` takes; ValueError if it cannot run alone.

    ``needed_by`` are config keys for the error; one of them is True and needs the stage alone.
    """
    if stage not in backbone.separate_stages:
        able = ", ".join(backbone.separate_stages) or "none of its stages"
        fix = f": set {needed_by} False, or choose another stage" if needed_by else ""
        raise ValueError(
            f"{type(backbone).__name__} cannot run {stage!r} apart from the rest (it can: {able}){fix}"
        )
    stages = [name for name in STAGES if name in backbone.available]
    return stages[stages.index(stage) - 1]


def stage_parameters(backbone: FeatureBackbone, stage: str) -> list[nn.Parameter]:
    """Return the parameters that ``backbone.run_stage(stage, ...)`` reads; finds them by running it once."""
    channels = backbone.available[stage_before(backbone, stage)].channels
    parameters = list(backbone.parameters())
    trained, was_training = [p.requires_grad for p in parameters], backbone.training
    backbone.eval().requires_grad_(True)  # in eval mode batch norms keep their statistics
    with torch.enable_grad():
        result = backbone.run_stage(stage, torch.zeros(1, channels, 8, 8, device=parameters[0].device))
        gradients = torch.autograd.grad(result.sum(), parameters, allow_unused=True)
    backbone.train(was_training)
    for parameter, flag in zip(parameters, trained, strict=True):
        parameter.requires_grad_(flag)
    return [p for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None]


def shrink_factors(strides: Mapping[str, int]) -> dict[str, int]:
    """Return the stages that are finer than without dilation, and how much smaller than res3 they should be.

    ``strides`` are those of res3, res4 and res5.
    """
    return {stage: factor for stage, factor in SHRUNK.items() if strides[stage] < factor * strides["res3"]}


def shrink_maps(features: Mapping[str, Tensor], factors: Mapping[str, int]) -> dict[str, Tensor]:
    """Resize the stages of `shrink_factors`: bilinear, corners aligned (second version of MM-Former's code).

    Returns all of ``features`` ("res3" and others, (B, C, h, w) each). A resized map has res3's height and
    width over its factor, rounded down, but at least 1.
    """
    height, width = features["res3"].shape[-2:]
    shrunk = {
        stage: resize(features[stage], (max(height // factor, 1), max(width // factor, 1)))
        for stage, factor in factors.items()
    }
    return {**features, **shrunk}
