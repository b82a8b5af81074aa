"""Light and dense attention of the few-shot DANet: query features mixed as query and support resemble."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["DenseAttention", "LightAttention", "average_attention", "row_attention"]

SQUEEZE = 8  # channels of the maps compared are fewer by this factor


def row_attention(query: Tensor, keys: Tensor, *, scaled: bool = False) -> Tensor:
    """How much each row of the query resembles each row of the supports (Chen et al., 2022, Eq. 2).

    A row of w pixels is one vector of c * w numbers. The softmax runs over the rows of one support; the mean
    over the supports is taken after it. Computed in float32: the products are sums of thousands of terms.

    Args:
        query: (B, c, h, w).
        keys: (B, K, c, h, w).
        scaled: divide the products by the root of c * w.

    Returns:
        (B, h, h), [b, i, j] of query row i and support row j; each row sums to 1.
    """
    with torch.autocast(query.device.type, enabled=False):
        rows = query.float().transpose(1, 2).flatten(2)  # (B, h, c * w)
        theirs = keys.float().transpose(2, 3).flatten(3)  # (B, K, h, c * w)
        products = rows[:, None] @ theirs.transpose(2, 3)  # (B, K, h, h)
        if scaled:
            products = products / rows.shape[2] ** 0.5
        return products.softmax(dim=3).mean(dim=1)


def average_attention(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Values weighted by the mean over K supports of softmax(query keys^T), without writing a map out.

    The result is linear in the map, so the mean of the maps times the values is the mean of K fused
    attentions. Queries and keys are filled up with zeros to the values' channels, which changes no product:
    fused kernels ask for equal widths and would otherwise fall back to writing out (N, N) for all images.

    Args:
        query: (B, N, c).
        keys: (B, K, N, c).
        values: (B, N, C), shared by the supports; C >= c.

    Returns:
        (B, N, C).
    """
    lack = (0, values.shape[2] - query.shape[2])
    query, values = F.pad(query, lack)[:, None], values[:, None]  # one head
    shots = [
        F.scaled_dot_product_attention(query, F.pad(some, lack)[:, None], values, scale=1.0)
        for some in keys.unbind(dim=1)
    ]
    return torch.stack(shots).mean(dim=0)[:, 0] if len(shots) > 1 else shots[0][:, 0]


class _Projections(nn.Module):
    """1x1 convolutions to what is compared, of query and supports, and to the query's values."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = max(1, channels // SQUEEZE)
        self.query = nn.Conv2d(channels, width, 1)
        self.key = nn.Conv2d(channels, width, 1)
        self.value = nn.Conv2d(channels, channels, 1)


class LightAttention(_Projections):
    """Rows and columns of the query mixed as they resemble those of the supports (Sec. 2.3, Eq. 2, 3).

    ``out(c, y, x) = alpha sum_j A_hor[y, j] V(c, j, x) + beta sum_j A_ver[x, j] V(c, y, j) + V(c, y, x)``;
    the values V are the query's. Eq. 3 as printed multiplies rows with the columns' map and columns with the
    rows', which fits square maps only: taken for a misprint. alpha and beta are learnt and start at 0
    (left open by the paper; as in the scene-segmentation DANet that it builds on).
    """

    def __init__(self, channels: int, *, scaled: bool = False) -> None:
        """
        Args:
            channels: of the features, in and out.
            scaled: divide products by the root of their length (not in the paper).
        """
        super().__init__(channels)
        self.alpha = nn.Parameter(torch.zeros(()))
        self.beta = nn.Parameter(torch.zeros(()))
        self.scaled = scaled

    def forward(self, features: Tensor, keys: Tensor) -> Tensor:
        """
        Args:
            features: (B, C, h, w) of the query.
            keys: (B, K, c, h, w), `key` of the supports' features.

        Returns:
            (B, C, h, w).
        """
        query, values = self.query(features), self.value(features)
        across = row_attention(query, keys, scaled=self.scaled)  # (B, h, h)
        down = row_attention(query.mT, keys.mT, scaled=self.scaled)  # (B, w, w)
        by_row = across.to(values.dtype) @ values.transpose(1, 2).flatten(2)  # (B, h, C * w)
        by_row = by_row.unflatten(2, (values.shape[1], -1)).transpose(1, 2)  # (B, C, h, w)
        by_column = values.flatten(1, 2) @ down.mT.to(values.dtype)  # (B, C * h, w)
        return self.alpha * by_row + self.beta * by_column.view_as(values) + values


class DenseAttention(_Projections):
    """Pixels of the query mixed as each resembles those of the supports (Sec. 2.3, Eq. 2, 5).

    ``out_i = theta sum_j A[i, j] V_j + V_i`` with the query's values V, and A the mean over the supports of
    the softmax over support pixels j. theta is learnt and starts at 0 (left open by the paper).
    """

    def __init__(self, channels: int) -> None:
        """
        Args:
            channels: of the features, in and out.
        """
        super().__init__(channels)
        self.theta = nn.Parameter(torch.zeros(()))

    def forward(self, features: Tensor, keys: Tensor) -> Tensor:
        """
        Args:
            features: (B, C, h, w) of the query.
            keys: (B, K, c, h, w), `key` of the supports' features.

        Returns:
            (B, C, h, w).
        """
        values = self.value(features)
        mixed = average_attention(
            self.query(features).flatten(2).mT,  # (B, N, c)
            keys.flatten(3).mT,  # (B, K, N, c)
            values.flatten(2).mT,  # (B, N, C)
        )
        return self.theta * mixed.mT.view_as(values) + values
