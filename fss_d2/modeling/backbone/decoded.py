"""The features of a backbone after a frozen pixel decoder: MM-Former's Table 3b for every method."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from detectron2.layers import ShapeSpec
from torch import Tensor, nn
from typing_extensions import Self

from fss_d2.io.state_dict import check_values, read_state_dict

from .base import STAGES, FeatureBackbone, shrink_factors, shrink_maps

DECODED = ("res5", "res4", "res3")  # order of the decoder's maps
KEY = "MODEL.BACKBONE.PIXEL_DECODER_WEIGHTS"


class PixelDecoderBackbone(FeatureBackbone):
    """The stages of another backbone after the pixel decoder of a proposal segmenter; both are frozen.

    "res2" is the mask features of the decoder, "res3" to "res5" are its refined maps. All have ``dim``
    channels and the sizes of the wrapped stages. Each stage has one block, the stage itself ("res3.0"). No
    stage runs alone, because the decoder reads them together.

    Args:
        backbone: gives res2 to res5.
        decoder: takes these maps by name; returns the mask features and the list of res5, res4, res3
            (`MSDeformAttnPixelDecoder`).
        dim: channels of the decoder's maps.
        resize_dilated: resize res4 and res5 of a dilated backbone to their sizes without dilation, as the
            proposal segmenter does: res3's size over 2 and 4, rounded down.
    """

    def __init__(
        self, backbone: FeatureBackbone, decoder: nn.Module, dim: int, *, resize_dilated: bool = True
    ) -> None:
        super().__init__()
        backbone.select(STAGES)
        self.backbone = backbone.requires_grad_(False)
        self.decoder = decoder.requires_grad_(False)
        strides = {stage: shape.stride for stage, shape in backbone.output_shape().items()}
        self.shrunk = shrink_factors(strides) if resize_dilated else {}
        available = {}
        for stage, stride in strides.items():
            factor = self.shrunk.get(stage)
            spec = ShapeSpec(channels=dim, stride=factor * strides["res3"] if factor else stride)
            available |= {f"{stage}.0": spec, stage: spec}
        self._declare(available)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode in any case: the decoder was trained on these features."""
        return super().train(False)

    def _features(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        fine, levels = self.decoder(shrink_maps(self.backbone(x), self.shrunk))
        maps = {"res2": fine, **dict(zip(DECODED, levels, strict=True))}
        for stage in STAGES:
            yield f"{stage}.0", maps[stage]
            yield stage, maps[stage]


def load_stage1_weights(backbone: PixelDecoderBackbone, path: str) -> None:
    """Load backbone and pixel decoder from a checkpoint of the proposal segmenter or MM-Former, "" for none.

    Raises ValueError if the file is no checkpoint, or if its tensors under "backbone." and
    "proposals.pixel_decoder." are not exactly those of backbone and decoder.
    """
    if not path:
        return
    state = read_state_dict(Path(path).expanduser(), KEY)
    _load(backbone.backbone, state, "backbone.", path, "MODEL.BACKBONE.NAME and the keys of that backbone")
    _load(backbone.decoder, state, "proposals.pixel_decoder.", path, "the sizes in MODEL.PROPOSALS")


def _load(module: nn.Module, state: Mapping[str, Tensor], prefix: str, path: str, keys: str) -> None:
    """Load what ``state`` has under ``prefix``, which must be all tensors of the module and no others."""
    found = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
    own = module.state_dict()
    if not found.keys() & own.keys():
        raise ValueError(
            f"{KEY} {path}: no name under {prefix} is that of a tensor of this model. Give a checkpoint of "
            f"MODEL.META_ARCHITECTURE PotentialObjectsSegmenter, and check {keys}"
        )
    odd = sorted(found.keys() ^ own.keys()) or [n for n in own if found[n].shape != own[n].shape]
    if odd:
        raise ValueError(
            f"{KEY} {path}: {prefix}{odd[0]} is missing, unknown or of another shape than in this model "
            f"({len(odd) - 1} other tensors as well). Check {keys}"
        )
    check_values(
        {prefix + name: t for name, t in found.items()}, {prefix + n: t for n, t in own.items()}, path
    )
    module.load_state_dict(found)
