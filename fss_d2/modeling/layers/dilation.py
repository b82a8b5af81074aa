"""Maps of a dilated backbone at the sizes they have without dilation."""

from collections.abc import Mapping

from torch import Tensor

from .blocks import resize

__all__ = ["shrink_factors", "shrink_maps"]

SHRUNK = {"res4": 2, "res5": 4}  # how much smaller than res3 they are without dilation


def shrink_factors(strides: Mapping[str, int]) -> dict[str, int]:
    """The stages finer than without dilation, and how much smaller than res3 they should be.

    Args:
        strides: of res3, res4, res5.
    """
    return {stage: factor for stage, factor in SHRUNK.items() if strides[stage] < factor * strides["res3"]}


def shrink_maps(features: Mapping[str, Tensor], factors: Mapping[str, int]) -> dict[str, Tensor]:
    """Resize the stages of `shrink_factors`: bilinear, corners aligned (second version of MM-Former's code).

    Args:
        features: "res3" and others, (B, C, h, w) each.
        factors: a resized map has res3's height and width over its factor, rounded down, but at least 1.

    Returns:
        all maps; those without a factor as they are.
    """
    height, width = features["res3"].shape[-2:]
    shrunk = {
        stage: resize(features[stage], (max(height // factor, 1), max(width // factor, 1)))
        for stage, factor in factors.items()
    }
    return {**features, **shrunk}
