"""What a proposal head gives."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

__all__ = ["LEVELS", "MaskPredictions"]

LEVELS = ("res5", "res4", "res3")  # of the pixel decoder's maps, low resolution first


@dataclass(frozen=True)
class MaskPredictions:
    """Masks of N proposals for each of B images, in training after every decoder layer.

    Attributes:
        masks: logits (B, N, h, w) at stride 4: in training of the start queries and after every layer, the
            last one last; otherwise the last one alone.
        queries: (B, N, C) the normalised queries behind the last masks.
        levels: the pixel decoder's maps (B, C, h_l, w_l), in the order of `LEVELS`.
        classes: with mask classification, logits (B, N, classes + 1) beside each of ``masks``; the last is
            "no object". Empty otherwise.
    """

    masks: Sequence[Tensor]
    queries: Tensor
    levels: Sequence[Tensor]
    classes: Sequence[Tensor] = ()
