"""Correlations of two images as 4D tensors, and the convolutions that squeeze them (HSNet, ICCV 2021).

A 4D tensor is (B, C, h, w, h', w'): the positions of the query come first, then those of the support. Nothing
large is copied where the memory holds (B, h, w, C, h', w'), as that of `correlate` does.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fss_d2.soft_masks import resize

__all__ = ["CenterPivotConv4d", "center_pivot_stack", "correlate", "resize_query", "unit_features"]

_EPS = 1e-5  # added to the length of a feature vector


def unit_features(features: Tensor) -> Tensor:
    """Features (..., C, h, w) over their length, to which 1e-5 is added, in float32; zeros stay zeros."""
    features = features.float()
    return features / (torch.linalg.vector_norm(features, dim=-3, keepdim=True) + _EPS)


def correlate(queries: Sequence[Tensor], supports: Sequence[Tensor]) -> Tensor:
    """Cosines of every position of a query with every position of a support; negative ones become 0.

    From unit features of L layers, (B, C_l, h, w) and (B, C_l, h', w'), to (B, L, h, w, h', w').
    """
    cosines: Tensor | None = None  # (B, h*w, L, h'*w'), filled layer by layer: one layer is there twice
    for layer, (query, support) in enumerate(zip(queries, supports, strict=True)):
        products = query.flatten(2).transpose(1, 2) @ support.flatten(2)  # (B, h*w, h'*w')
        if cosines is None:
            cosines = products.new_empty(*products.shape[:2], len(queries), products.shape[2])
        cosines[:, :, layer] = products
    cosines = cosines.relu_().unflatten(3, supports[0].shape[-2:]).unflatten(1, queries[0].shape[-2:])
    return cosines.permute(0, 3, 1, 2, 4, 5)


def resize_query(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize the query's positions of (B, C, h, w, h', w') to ``size``: bilinear, corners aligned."""
    B, C, _, _, *support = x.shape
    planes = x.permute(0, 1, 4, 5, 2, 3).flatten(1, 3)  # (B, C*h'*w', h, w)
    return resize(planes, size).unflatten(1, (C, *support)).permute(0, 1, 4, 5, 2, 3)


class CenterPivotConv4d(nn.Module):
    """A 4D convolution of which only the weights on two planes through its centre are kept (Eq. 4 of HSNet).

    On one plane the support's offset is 0, on the other the query's: two 2D convolutions, both with a bias,
    whose results are added. The stride is the support's; the positions 0, s, 2s, ... of it are kept.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        """``kernel`` is odd, and zeros surround the tensor: without a stride its size stays."""
        super().__init__()
        self.stride, padding = stride, kernel // 2
        self.query = nn.Conv2d(in_channels, out_channels, kernel, padding=padding)
        self.support = nn.Conv2d(in_channels, out_channels, kernel, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w, h', w') to (B, out_channels, h, w, ceil(h' / stride), ceil(w' / stride))."""
        batch = x.shape[0], *x.shape[2:4]
        supports = self.support(x.permute(0, 2, 3, 1, 4, 5).flatten(0, 2))  # (B*h*w, C, h', w')
        supports = supports.unflatten(0, batch).permute(0, 3, 1, 2, 4, 5)
        kept = x[..., :: self.stride, :: self.stride]
        batch = x.shape[0], *kept.shape[4:]
        queries = self.query(kept.permute(0, 4, 5, 1, 2, 3).flatten(0, 2))  # (B*h'*w', C, h, w)
        return supports + queries.unflatten(0, batch).permute(0, 3, 4, 5, 1, 2)


def center_pivot_stack(
    in_channels: int, widths: Sequence[int], kernels: Sequence[int], strides: Sequence[int], groups: int = 4
) -> nn.Sequential:
    """Centre-pivot convolution, GroupNorm, ReLU for each width; modules are 0, 1, 2, ..."""
    layers: list[nn.Module] = []
    for width, kernel, stride in zip(widths, kernels, strides, strict=True):
        layers.append(CenterPivotConv4d(in_channels, width, kernel, stride))
        layers += [nn.GroupNorm(groups, width), nn.ReLU(inplace=True)]
        in_channels = width
    return nn.Sequential(*layers)
