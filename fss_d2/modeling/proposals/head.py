"""From backbone features to mask proposals: pixel decoder and mask decoder."""

from collections.abc import Mapping

from torch import Tensor, nn

from fss_d2.modeling.layers import resize
from fss_d2.modeling.proposals.mask_decoder import MaskedTransformerDecoder
from fss_d2.modeling.proposals.pixel_decoder import MSDeformAttnPixelDecoder
from fss_d2.modeling.proposals.predictions import MaskPredictions

__all__ = ["ProposalHead"]

SHRUNK = {"res4": 2, "res5": 4}  # how much smaller than res3 the pixel decoder expects them


class ProposalHead(nn.Module):
    """The segmenter of potential objects without its backbone (MM-Former, Sec. 3.2)."""

    def __init__(
        self,
        in_channels: Mapping[str, int],
        *,
        strides: Mapping[str, int] | None = None,
        dim: int = 256,
        num_queries: int = 100,
        encoder_layers: int = 6,
        encoder_feedforward: int = 1024,
        decoder_layers: int = 9,
        decoder_feedforward: int = 2048,
        num_heads: int = 8,
        num_classes: int = 0,
        sampling: str = "auto",
        resize_dilated: bool = True,
    ) -> None:
        """
        Args:
            in_channels: of res2, res3, res4, res5.
            strides: of the same; without them no stage counts as dilated.
            dim, num_heads: of both decoders.
            encoder_layers, encoder_feedforward, sampling: see `MSDeformAttnPixelDecoder`.
            num_queries, decoder_layers, decoder_feedforward, num_classes: see `MaskedTransformerDecoder`.
            resize_dilated: bring res4 and res5 of a dilated backbone to half and a quarter of res3's size
                (bilinear, corners aligned: second version of MM-Former's code); False takes them as they are.

        Raises:
            ValueError: numbers that do not go together; see the two decoders.
        """
        super().__init__()
        self.predictor = MaskedTransformerDecoder(
            dim,
            num_queries=num_queries,
            num_layers=decoder_layers,
            num_heads=num_heads,
            feedforward=decoder_feedforward,
            num_classes=num_classes,
        )
        self.pixel_decoder = MSDeformAttnPixelDecoder(
            in_channels,
            dim=dim,
            num_heads=num_heads,
            num_layers=encoder_layers,
            feedforward=encoder_feedforward,
            sampling=sampling,
        )
        self.shrunk = _dilated(strides) if resize_dilated and strides else {}

    def forward(self, features: Mapping[str, Tensor]) -> MaskPredictions:
        """
        Args:
            features: res2, res3, res4, res5 of the backbone, (B, C, h, w) each; of any size.
        """
        mask_features, levels = self.decode_pixels(features)
        return self.predictor(levels, mask_features)

    def decode_pixels(self, features: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The pixel decoder alone: mask features at stride 4 and the maps of res5, res4, res3."""
        height, width = features["res3"].shape[-2:]
        shrunk = {
            stage: resize(features[stage], (max(height // factor, 1), max(width // factor, 1)))
            for stage, factor in self.shrunk.items()
        }
        return self.pixel_decoder({**features, **shrunk})


def _dilated(strides: Mapping[str, int]) -> dict[str, int]:
    """The stages finer than without dilation, and how much smaller than res3 they shall be."""
    return {stage: factor for stage, factor in SHRUNK.items() if strides[stage] < factor * strides["res3"]}
