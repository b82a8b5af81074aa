"""From backbone features to mask proposals: pixel decoder and mask decoder."""

from collections.abc import Mapping

from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from fss_d2.modeling.backbone.base import shrink_factors, shrink_maps
from fss_d2.modeling.proposals.mask_decoder import MaskedTransformerDecoder, MaskPredictions
from fss_d2.modeling.proposals.pixel_decoder import MSDeformAttnPixelDecoder

__all__ = ["ProposalHead"]


class ProposalHead(nn.Module):
    """The segmenter of potential objects without its backbone (MM-Former, Sec. 3.2)."""

    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
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
            input_shape: channels and stride of res2, res3, res4, res5 (`output_shape` of the backbone).
            dim, num_heads: channels and attention heads of both decoders.
            encoder_layers, encoder_feedforward, sampling: see `MSDeformAttnPixelDecoder`.
            num_queries, decoder_layers, decoder_feedforward, num_classes: see `MaskedTransformerDecoder`.
            resize_dilated: resize res4 and res5 of a dilated backbone to half and a quarter of res3's size
                (bilinear, corners aligned: second version of MM-Former's code); False leaves them unchanged.

        Raises:
            ValueError: numbers that do not fit together; see the two decoders.
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
            {stage: shape.channels for stage, shape in input_shape.items()},
            dim=dim,
            num_heads=num_heads,
            num_layers=encoder_layers,
            feedforward=encoder_feedforward,
            sampling=sampling,
        )
        strides = {stage: shape.stride for stage, shape in input_shape.items()}
        self.shrunk = shrink_factors(strides) if resize_dilated else {}

    def forward(self, features: Mapping[str, Tensor]) -> MaskPredictions:
        """Predict proposals from res2, res3, res4, res5 of the backbone, (B, C, h, w) each, of any size."""
        mask_features, levels = self.decode_pixels(features)
        return self.predictor(levels, mask_features)

    def decode_pixels(self, features: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Run the pixel decoder alone: mask features at stride 4 and the maps of `LEVELS`."""
        return self.pixel_decoder(shrink_maps(features, self.shrunk))
