"""Cross attention whose value is a mask."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .transformer import sine_position_code

__all__ = ["MaskAggregation"]

PROJECTIONS = ("linear", "cosine")


class MaskAggregation(nn.Module):
    """Predicts a query mask as the attention-weighted mean of support mask values (DCAMA, Eq. 1).

    One module serves all layers of a pyramid level. Layers of one width share a pair of linear
    projections, as in the reference code, where a level has one width. A level whose blocks differ in
    width has a pair for each width. There is no value projection, output projection, norm or residual.
    The query and key projections start equal (reference code).

    The fused path does not store the attention maps; it agrees with the plain path up to rounding. Dropout
    on the attention weights takes the plain path on CPU, where torch has no fused kernel for it.
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        num_heads: int = 8,
        projection: str = "linear",
        temperature: float = 0.1,
        position_encoding: bool = True,
        dropout: float = 0.5,
        fused: bool = True,
    ) -> None:
        """
        Args:
            widths: channels of the layers; duplicates are merged.
            num_heads: heads of "linear"; "cosine" has one head.
            projection: "linear" (learned) or "cosine" (unit vectors, nothing learned).
            temperature: divides the cosines of "cosine".
            position_encoding: add the sine code to the tokens first.
            dropout: on the tokens and on the attention weights while training.
            fused: use torch's fused attention where it exists.

        Raises:
            ValueError: an unknown projection, or a width that the heads do not divide.
        """
        super().__init__()
        if projection not in PROJECTIONS:
            raise ValueError(f"unknown projection {projection!r}: choose from {', '.join(PROJECTIONS)}")
        self.num_heads = num_heads if projection == "linear" else 1
        self.scale = None if projection == "linear" else 1.0 / temperature
        self.position_encoding = position_encoding
        self.dropout = dropout
        self.fused = fused
        self.query = nn.ModuleDict()
        self.key = nn.ModuleDict()
        if projection == "linear":
            for width in sorted(set(widths)):
                self._add_projections(width)

    def _add_projections(self, width: int) -> None:
        if width % self.num_heads:
            raise ValueError(f"{self.num_heads} heads do not divide {width} channels: change num_heads")
        self.query[str(width)] = nn.Linear(width, width)
        self.key[str(width)] = nn.Linear(width, width)
        self.key[str(width)].load_state_dict(self.query[str(width)].state_dict())

    def queries(self, features: Tensor) -> Tensor:
        """Project query features (B, C, h, w) to query tokens (B, h*w, C)."""
        return self._project(features, self.query)

    def keys(self, features: Tensor) -> Tensor:
        """Project support features (B, C, h, w) to key tokens (B, h*w, C).

        Positions count from 0 in every support image, so several images go in as a batch.
        """
        return self._project(features, self.key)

    def _project(self, features: Tensor, projections: nn.ModuleDict) -> Tensor:
        B, C, h, w = features.shape
        tokens = features.flatten(2).transpose(1, 2)  # (B, h*w, C)
        if self.position_encoding:
            tokens = tokens + sine_position_code(h * w, C, tokens.device).to(tokens.dtype)
        tokens = F.dropout(tokens, self.dropout, self.training)
        if not projections:
            return F.normalize(tokens, dim=2).contiguous()
        return projections[str(C)](tokens)

    def region_means(self, keys: Tensor, values: Tensor) -> Tensor:
        """Mean key tokens of object and background, averaged in float32.

        Args:
            keys: (..., N, C).
            values: (..., N) mask values in [0, 1].

        Returns:
            (..., 2, C).
        """
        shares = torch.stack([values, 1 - values], dim=-2)  # (..., 2, N)
        shares = shares / shares.sum(dim=-1, keepdim=True).clamp(min=1e-6)
        with torch.autocast(keys.device.type, enabled=False):
            means = (shares.float() @ keys.float()).to(keys.dtype)
        return means if self.query else F.normalize(means, dim=-1)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Aggregate mask values for every query token; mean over the heads.

        Args:
            queries: (B, Nq, C) from `queries`.
            keys: (B, Ns, C) from `keys`, the tokens of all supports in sequence.
            values: (B, Ns) mask values in [0, 1].

        Returns:
            (B, Nq); in [0, 1] unless attention weights are dropped.
        """
        p = self.dropout if self.training else 0.0
        if self.fused and not (p > 0 and queries.device.type == "cpu"):
            return self._fused(queries, keys, values, p)
        weights = F.dropout(self.weights(queries, keys), p)
        with torch.autocast(queries.device.type, enabled=False):
            aggregated = weights @ values[:, None, :, None].to(weights.dtype)  # (B, heads, Nq, 1)
        return aggregated.squeeze(3).mean(dim=1)

    def _fused(self, queries: Tensor, keys: Tensor, values: Tensor, p: float) -> Tensor:
        q, k = self._heads(queries), self._heads(keys)
        # Fused kernels need a contiguous value as wide as a head; column 0 is the result.
        v = values[:, None, :, None].to(k.dtype).expand(k.shape).contiguous()
        return F.scaled_dot_product_attention(q, k, v, dropout_p=p, scale=self.scale)[..., 0].mean(dim=1)

    def weights(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Attention maps, in float32 also under autocast: unscaled products would overflow float16.

        Args:
            queries: (B, Nq, C).
            keys: (B, Ns, C).

        Returns:
            (B, heads, Nq, Ns) float32; rows sum to 1.
        """
        q, k = self._heads(queries), self._heads(keys)
        scale = q.shape[3] ** -0.5 if self.scale is None else self.scale
        with torch.autocast(q.device.type, enabled=False):
            return torch.softmax(q.float() @ k.float().transpose(2, 3) * scale, dim=3)

    def _heads(self, tokens: Tensor) -> Tensor:
        B, N, C = tokens.shape
        return tokens.view(B, N, self.num_heads, C // self.num_heads).transpose(1, 2)  # (B, heads, N, d)
