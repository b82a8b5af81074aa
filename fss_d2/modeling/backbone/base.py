"""What every backbone here has in common: named feature maps, of which the caller selects some."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence

from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn

__all__ = ["STAGES", "FeatureBackbone", "map_size"]

STAGES = ("res2", "res3", "res4", "res5")


def map_size(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Return the (height, width) of a feature map of an image of `size`, both rounded up."""
    height, width = size
    return -(-height // stride), -(-width // stride)


class FeatureBackbone(Backbone):
    """A Detectron2 backbone that names every block as well as every stage.

    A stage ("res4") is the activation that the next stage reads. A block ("res4.0", "res4.1", ...) is
    one residual unit, convolution or transformer layer of the stage, shallow to deep. `select` says which
    of them `forward` returns; nothing behind the deepest selected one is computed, and no other map is kept.

    A subclass builds its layers, calls `_declare` and implements `_features`. Where stages can run one by
    one, it also implements `_run_stage` and names them in `separate_stages`.
    """

    available: dict[str, ShapeSpec]
    """Channels and stride of everything selectable, in the order in which it is computed."""

    separate_stages: tuple[str, ...] = ()
    """Stages that `run_stage` can run; never the first."""

    def _declare(self, available: Mapping[str, ShapeSpec]) -> None:
        """State what is selectable, in order of computation, and select the stages among it."""
        self.available = dict(available)
        self.select([name for name in STAGES if name in self.available])

    @abstractmethod
    def _features(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, map) as the maps get computed; the caller stops asking when it has enough."""

    def _run_stage(self, stage: str, x: Tensor) -> Tensor:
        """As `run_stage`; the stage is one of `separate_stages`."""
        raise NotImplementedError

    @property
    def library_module(self) -> nn.Module:
        """The module whose state-dict keys are those of the library (and so of its published weights)."""
        return self

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

        Raises:
            KeyError: for a name that is not in `available`; the message lists the stages and their blocks.
            ValueError: for an empty selection, or one string instead of a sequence.
        """
        if isinstance(names, str) or not names:
            raise ValueError(f"select() takes a sequence of at least one feature name, not {names!r}")
        for name in names:
            if name not in self.available:
                raise KeyError(
                    f"no feature {name!r} in {type(self).__name__}: choose from {self._describe_choices()}"
                )
        self._selected = tuple(dict.fromkeys(names))

    def run_stage(self, stage: str, x: Tensor) -> Tensor:
        """Run one stage on what the stage before it gave, changed or not; gradients flow.

        Args:
            stage: a stage but the first, such as "res5".
            x: (B, C, h, w) output of the stage before it, of any size.

        Returns:
            (B, C', h', w'), h' = ceil(h / (ratio of strides)); of an unchanged input the map that `forward`
            gives (but for what a backbone that pads its images makes of the padding).

        Raises:
            NotImplementedError: a stage that is not one of `separate_stages`.
        """
        if stage not in self.separate_stages:
            choices = ", ".join(self.separate_stages) or "another backbone: none of its stages runs alone"
            raise NotImplementedError(
                f"{type(self).__name__} cannot run {stage!r} on the stage before it: choose {choices}"
            )
        return self._run_stage(stage, x)

    def _describe_choices(self) -> str:
        parts = []
        for stage in STAGES:
            if stage in self.available:
                blocks = self.blocks(stage)
                parts.append(f"{stage} ({blocks[0]} ... {blocks[-1]})")
        return ", ".join(parts)

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and stride of the selected maps."""
        return {name: self.available[name] for name in self._selected}

    @property
    def size_divisibility(self) -> int:
        """0: any image size is accepted."""
        return 0

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Compute the selected maps.

        Args:
            x: normalised images (B, 3, H, W), any H and W.

        Returns:
            name -> (B, C, ceil(H / stride), ceil(W / stride)), in the order of selection.
        """
        maps: dict[str, Tensor] = {}
        for name, value in self._features(x):
            if name in self._selected:
                maps[name] = value
            if len(maps) == len(self._selected):
                break
        return {name: maps[name] for name in self._selected}
