"""The learned part of DPCN: feature filtering, dynamic convolution, decoder."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.layers import ASPP
from torch import Tensor, nn
from torch.nn import functional as F

from fss_d2.modeling.layers import (
    DynamicConvolution,
    FeatureReduction,
    ResidualPair,
    classifier,
    resize,
    shot_prototypes,
    soft_mask,
)

__all__ = ["DPCNHead", "FeatureFilter"]


class FeatureFilter(nn.Module):
    """Refines the pseudo mask and weights the query's features with it (FFM; DPCN, Sec. 3.4)."""

    def __init__(self, dim: int, kernel: int = 1) -> None:
        """
        Args:
            dim: channels C.
            kernel: side of the convolution's kernel, odd; the paper does not say.

        Raises:
            ValueError: an even kernel.
        """
        if kernel % 2 == 0:
            raise ValueError(f"MODEL.DPCN.FFM_KERNEL {kernel} must be odd")
        super().__init__()
        self.score = nn.Conv2d(dim, 1, kernel, padding=kernel // 2)

    def forward(self, query: Tensor, mask: Tensor, prototype: Tensor) -> tuple[Tensor, Tensor]:
        """Filter features (B, C, h, w) with a mask (B, 1, h, w) and a prototype (B, C, 1, 1) (Eq. 3, 4).

        Returns:
            The filtered features (B, C, h, w) and the refined mask (B, 1, h, w) in (0, 1).
        """
        refined = self.score(query * mask + prototype).sigmoid()
        return query * refined + query, refined


class DPCNHead(nn.Module):
    """From middle features and activation maps to scores (DPCN, Sec. 3.4 and 3.5).

    Supports and query have a reduction of their own each (as PFENet). The decoder's inside is not in the
    paper: 1x1 convolution, residual pair, ASPP without norms or dropout, PFENet's classifier.
    """

    def __init__(
        self,
        in_channels: int,
        num_maps: int,
        *,
        dim: int = 256,
        dropout: float = 0.5,
        filter_kernel: int | None = 1,
        dynamic: Mapping[str, Any] | None = None,
        dilations: Sequence[int] = (6, 12, 18),
        knowledge: bool = False,
    ) -> None:
        """
        Args:
            in_channels: of all middle features together.
            num_maps: activation maps.
            dim: channels C inside.
            dropout: of channels of the reduced middle features.
            filter_kernel: of `FeatureFilter`; None for no filter (Table 3).
            dynamic: arguments of `DynamicConvolution`, the channels apart; None for none (Table 3).
            dilations: of the three dilated branches of the ASPP.
            knowledge: one more map comes in, JC2A's class-agnostic one.

        Raises:
            ValueError: dilations that are not three, or as `FeatureFilter` and `DynamicConvolution`.
        """
        if len(dilations) != 3:
            raise ValueError(f"MODEL.DPCN.ASPP_DILATIONS {tuple(dilations)}: give three numbers")
        super().__init__()
        self.down_query = FeatureReduction(in_channels, dim, dropout)
        self.down_support = FeatureReduction(in_channels, dim, dropout)
        self.filter = None if filter_kernel is None else FeatureFilter(dim, filter_kernel)
        self.dynamic = None if dynamic is None else DynamicConvolution(dim, **dynamic)
        blocks = 1 if self.dynamic is None else len(self.dynamic.generators)
        # Unfiltered, the pseudo mask takes the refined one's place; as the mean of one map it is that map.
        self.gives_mask = self.filter is not None or num_maps > 1
        maps = num_maps + knowledge + self.gives_mask
        self.decoder = nn.Sequential(
            nn.Conv2d((blocks + 1) * dim + maps, dim, 1, bias=False),
            nn.ReLU(),
            ResidualPair(dim),
            ASPP(dim, dim, list(dilations), norm="", activation=F.relu),
            classifier(dim),
        )

    def encode(self, maps: Sequence[Tensor], masks: Tensor) -> dict[str, Tensor]:
        """What the head needs of the supports of B episodes.

        Args:
            maps: middle features (B*K, C_i, h_i, w_i), the first gives the size.
            masks: (B, K, H, W) in {0, 1, 255}.

        Returns:
            "prototype" (B, C), mean of the shots' own (Eq. 2); with dynamic convolution "foreground", see
            `DynamicConvolution.pool`.
        """
        features = self.down_support(maps).unflatten(0, masks.shape[:2])  # (B, K, C, h, w)
        weights = soft_mask(masks, features.shape[-2:])
        encoded = {"prototype": shot_prototypes(features, weights).mean(dim=1)}
        if self.dynamic is not None:
            encoded["foreground"] = self.dynamic.encode(features, weights)
        return encoded

    def forward(
        self,
        maps: Sequence[Tensor],
        support: Mapping[str, Tensor],
        activations: Tensor,
        knowledge: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Score the queries.

        Args:
            maps: middle features (B, C_i, h_i, w_i), the first gives the size (h, w).
            support: see `encode`.
            activations: (B, num_maps, h', w') in [0, 1].
            knowledge: (B, 1, h'', w''), see ``knowledge`` of the class.

        Returns:
            (B, 2, h, w) logits, and the maps on the way: "activations", "pseudo_mask" (their mean) and, with
            the filter, "refined_mask", (B, n, h, w) each.
        """
        query = self.down_query(maps)
        prototype = support["prototype"][:, :, None, None]
        activations = resize(activations, query.shape[-2:])
        mask = activations.mean(dim=1, keepdim=True)
        aux = {"activations": activations, "pseudo_mask": mask}
        if self.filter is not None:
            query, mask = self.filter(query, mask, prototype)
            aux["refined_mask"] = mask
        blocks = [query] if self.dynamic is None else self.dynamic(query, support["foreground"])
        parts = [*blocks, prototype.expand_as(query), activations]  # Eq. 9, in its order
        if knowledge is not None:
            parts.append(resize(knowledge, query.shape[-2:]))
        if self.gives_mask:
            parts.append(mask)
        return self.decoder(torch.cat(parts, dim=1)), aux
