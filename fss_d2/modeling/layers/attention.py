"""Cross attention whose value is a mask."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .transformer import sine_position_code

PROJECTIONS = ("linear", "cosine")


class MaskAggregation(nn.Module):
    """Predicts a query mask as the attention-weighted mean of support mask values (DCAMA, Eq. 1).

    One module serves all layers of a pyramid level. Layers of one width share a pair of linear projections,
    as in the reference code, where a level has one width. A level whose blocks differ in width has a pair for
    each width. There is no value projection, output projection, norm or residual. The query and key
    projections start equal (reference code).

    The fused path (``fused``) does not store the attention maps; it agrees with the plain path up to
    rounding. Dropout on the attention weights takes the plain path on CPU, where torch has no fused kernel
    for it.

    Args:
        widths: channels of the layers; duplicates are merged.
        projection: "linear" (learned) or "cosine" (unit vectors, nothing learned, one head).
        temperature: divides the cosines of "cosine".
        position_encoding: add the sine code to the tokens first.
        dropout: on the tokens and on the attention weights while training.
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
        super().__init__()
        if projection not in PROJECTIONS:
            raise ValueError(f"unknown projection {projection!r}: choose from {', '.join(PROJECTIONS)}")
        self.num_heads = num_heads if projection == "linear" else 1
        self.scale = None if projection == "linear" else 1.0 / temperature
        self.position_encoding, self.dropout, self.fused = position_encoding, dropout, fused
        self.query, self.key = nn.ModuleDict(), nn.ModuleDict()
        if projection == "linear":
            for width in sorted(set(widths)):
                if width % num_heads:
                    raise ValueError(f"{num_heads} heads do not divide {width} channels: change num_heads")
                self.query[str(width)] = nn.Linear(width, width)
                self.key[str(width)] = nn.Linear(width, width)
                self.key[str(width)].load_state_dict(self.query[str(width)].state_dict())

    def queries(self, features: Tensor) -> Tensor:
        """Project query features (B, C, h, w) to query tokens (B, h*w, C)."""
        return self._project(features, self.query)

    def keys(self, features: Tensor) -> Tensor:
        """As `queries` of support features; positions count from 0 in every image, so images are a batch."""
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
        """Mean key tokens of object and background, averaged in float32: (..., 2, C).

        From keys (..., N, C) and mask values (..., N) in [0, 1].
        """
        shares = torch.stack([values, 1 - values], dim=-2)  # (..., 2, N)
        shares = shares / shares.sum(dim=-1, keepdim=True).clamp(min=1e-6)
        with torch.autocast(keys.device.type, enabled=False):
            means = (shares.float() @ keys.float()).to(keys.dtype)
        return means if self.query else F.normalize(means, dim=-1)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Aggregate mask values (B, Ns) in [0, 1] for every query token (B, Nq, C); mean over the heads.

        The keys (B, Ns, C) are the tokens of all supports in sequence. Returns (B, Nq); in [0, 1] unless
        attention weights are dropped.
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
        """Attention maps (B, heads, Nq, Ns), whose rows sum to 1, of queries (B, Nq, C) and keys (B, Ns, C).

        In float32 also under autocast: unscaled products would overflow float16.
        """
        q, k = self._heads(queries), self._heads(keys)
        scale = q.shape[3] ** -0.5 if self.scale is None else self.scale
        with torch.autocast(q.device.type, enabled=False):
            return torch.softmax(q.float() @ k.float().transpose(2, 3) * scale, dim=3)

    def _heads(self, tokens: Tensor) -> Tensor:
        B, N, C = tokens.shape
        return tokens.view(B, N, self.num_heads, C // self.num_heads).transpose(1, 2)  # (B, heads, N, d)
