"""The attentions of the few-shot DANet (Chen et al., 2022): light, dense, and of prototypes over channels."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "DenseAttention",
    "LightAttention",
    "PrototypicalChannelAttention",
    "average_attention",
    "row_attention",
    "soft_pool",
]

SQUEEZE = 8  # the maps that are compared have fewer channels by this factor


def row_attention(query: Tensor, keys: Tensor, *, scaled: bool = False) -> Tensor:
    """Similarity of each row of the query to each row of the supports (Chen et al., 2022, Eq. 2).

    A row of w pixels is one vector of c * w numbers. The softmax runs over the rows of one support, then the
    mean over the supports is taken. Computed in float32, because the products sum thousands of terms.

    Args:
        query: (B, c, h, w).
        keys: (B, K, c, h, w).
        scaled: divide the products by the square root of c * w.

    Returns:
        (B, h, h), [b, i, j] for query row i and support row j; each row sums to 1.
    """
    with torch.autocast(query.device.type, enabled=False):
        rows = query.float().transpose(1, 2).flatten(2)  # (B, h, c * w)
        theirs = keys.float().transpose(2, 3).flatten(3)  # (B, K, h, c * w)
        products = rows[:, None] @ theirs.transpose(2, 3)  # (B, K, h, h)
        if scaled:
            products = products / rows.shape[2] ** 0.5
        return products.softmax(dim=3).mean(dim=1)


def average_attention(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Values weighted by the mean over K supports of softmax(query keys^T), without storing a map.

    The result is linear in the map, so it is the mean of K fused attentions. Queries and keys are padded with
    zeros to the channels of the values, which changes no product: fused kernels need equal widths and would
    otherwise fall back to storing (N, N) for all images.

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
    """1x1 convolutions to the query and key maps that are compared, and to the values of the query."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = max(1, channels // SQUEEZE)
        self.query = nn.Conv2d(channels, width, 1)
        self.key = nn.Conv2d(channels, width, 1)
        self.value = nn.Conv2d(channels, channels, 1)


class LightAttention(_Projections):
    """Mixes rows and columns of the query by their similarity to those of the supports (Sec. 2.3, Eq. 2, 3).

    ``out(c, y, x) = alpha sum_j A_hor[y, j] V(c, j, x) + beta sum_j A_ver[x, j] V(c, y, j) + V(c, y, x)``
    with values V of the query. Eq. 3 as printed multiplies rows by the map of the columns and columns by
    that of the rows, which fits square maps only; we take it for a misprint. alpha and beta are trained and
    start at 0 (the paper leaves it open; as in the scene-segmentation DANet that it builds on).
    """

    def __init__(self, channels: int, *, scaled: bool = False) -> None:
        """
        Args:
            channels: channels of the features, in and out.
            scaled: divide products by the square root of their length (not in the paper).
        """
        super().__init__(channels)
        self.alpha = nn.Parameter(torch.zeros(()))
        self.beta = nn.Parameter(torch.zeros(()))
        self.scaled = scaled

    def forward(self, features: Tensor, keys: Tensor) -> Tensor:
        """
        Args:
            features: (B, C, h, w) of the query.
            keys: (B, K, c, h, w), output of `key` for the features of the supports.

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
    """Mixes pixels of the query by their similarity to those of the supports (Sec. 2.3, Eq. 2, 5).

    ``out_i = theta sum_j A[i, j] V_j + V_i`` with values V of the query; A is the mean over the supports of
    the softmax over support pixels j. theta is trained and starts at 0 (the paper leaves it open).
    """

    def __init__(self, channels: int) -> None:
        """
        Args:
            channels: channels of the features, in and out.
        """
        super().__init__(channels)
        self.theta = nn.Parameter(torch.zeros(()))

    def forward(self, features: Tensor, keys: Tensor) -> Tensor:
        """
        Args:
            features: (B, C, h, w) of the query.
            keys: (B, K, c, h, w), output of `key` for the features of the supports.

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


def soft_pool(features: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over all positions, weighted in each channel by the exponential of the value itself.

    SoftPool (Stergiou et al., ICCV 2021) with the whole map as one region; Eq. 7 of Chen et al., 2022. In
    float32, also under autocast.

    Args:
        features: (N, C, h, w).
        weights: (N, h, w), at least 0, factors of the exponentials; ignored for a map where all are 0.

    Returns:
        (N, C) float32, between mean and maximum of the positions with a weight.
    """
    features = features.flatten(2).float()  # (N, C, P)
    logits = features
    if weights is not None:
        weights = weights.flatten(1)[:, None]  # (N, 1, P)
        nowhere = (weights == 0).all(dim=2, keepdim=True)
        logits = features + weights.masked_fill(nowhere, 1).float().log()
    return (logits.softmax(dim=2) * features).sum(dim=2)


class PrototypicalChannelAttention(nn.Module):
    """A prototype in which strong responses have more weight (Chen et al., 2022, Sec. 2.4, Eq. 6, 7).

    Two layers, fully connected over the channels at every position, with a ReLU between; then soft pooling
    over all positions. There is no sigmoid (the paper writes none) and no bias (left open), so masked
    positions stay 0. As in the paper, these are pooled as well, with weight e^0 and value 0.
    """

    def __init__(self, channels: int, ratio: int = 16, *, masked: bool = False) -> None:
        """
        Args:
            channels: channels of features and prototype.
            ratio: the channels between the layers are fewer by this factor.
            masked: pool over the object only (not in the paper).

        Raises:
            ValueError: a ratio that leaves no channel.
        """
        if not 1 <= ratio <= channels:
            raise ValueError(f"ratio {ratio} leaves no channel of {channels}: give 1 to {channels}")
        super().__init__()
        width = channels // ratio
        self.squeeze = nn.Conv2d(channels, width, 1, bias=False)
        self.expand = nn.Conv2d(width, channels, 1, bias=False)
        self.masked = masked

    def respond(self, features: Tensor) -> Tensor:
        """F' of Eq. 6: map (N, C, h, w) to the same shape; 0 where the features are 0."""
        return self.expand(self.squeeze(features).relu())

    def forward(self, features: Tensor, masks: Tensor) -> Tensor:
        """
        Args:
            features: (N, C, h, w) of supports, 0 outside the object.
            masks: (N, h, w) of the object, in [0, 1].

        Returns:
            (N, C) float32 prototypes.
        """
        return soft_pool(self.respond(features), masks if self.masked else None)
