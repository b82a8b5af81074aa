"""Convolution of a query with kernels made from the support's object (dynamic convolution module of DPCN)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["DynamicConvolution", "DynamicQuery", "foreground_vectors"]

KERNELS = ("vertical", "horizontal", "square")
GENERATIONS = ("serial", "parallel", "serial_kernels")


def foreground_vectors(features: Tensor, weights: Tensor) -> Tensor:
    """Feature vectors of the object in all supports of an episode (Eq. 5, 11), row by row, shot by shot.

    A shot whose mask stays at or below 0.5 everywhere gives the vector under its largest value.

    Args:
        features: (K, C, h, w).
        weights: (K, h, w) soft masks in [0, 1].

    Returns:
        (N, C), N at least 1: one zero vector where all masks are empty.
    """
    inside = weights > 0.5
    for shot in range(len(weights)):
        if not inside[shot].any() and weights[shot].any():
            inside[shot].view(-1)[weights[shot].argmax()] = True
    vectors = features.permute(0, 2, 3, 1)[inside]
    return vectors if len(vectors) else features.new_zeros(1, features.shape[1])


class DynamicConvolution(nn.Module):
    """Depthwise convolutions of the query whose kernels the supports' object gives (DPCN, Sec. 3.5).

    The object's vectors, any number of them, are averaged along their order to S (and S^2) vectors, and two
    1D convolutions along these make a kernel for every channel: S x 1, 1 x S and S x S. What the paper leaves
    open: the 1D convolutions have width 3 (with 1, the repeated vectors of "serial" would make a square
    kernel of constant rows) and a ReLU between them; kernels are not normalised.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int = 5,
        kernels: Sequence[str] = KERNELS,
        generation: str = "serial",
    ) -> None:
        """
        Args:
            dim: channels C of query and support.
            kernel_size: S, odd (Table 4).
            kernels: among "vertical", "horizontal", "square", each once (Table 5); the order of the results.
            generation: what the square kernel is made from: "serial", the S averaged vectors (Eq. 6);
                "parallel", all vectors (Table A1); "serial_kernels", the other kernels (words of Appendix B).

        Raises:
            ValueError: an even size, unknown or repeated kernels, an unknown generation, or one without the
                kernels it needs.
        """
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"MODEL.DPCN.KERNEL_SIZE {kernel_size} must be odd and at least 1")
        names = tuple(kernels)
        if not names or set(names) - set(KERNELS) or len(set(names)) < len(names):
            raise ValueError(f"MODEL.DPCN.KERNELS {names}: list some of {', '.join(KERNELS)}, each once")
        if generation not in GENERATIONS:
            choices = ", ".join(GENERATIONS)
            raise ValueError(f"unknown MODEL.DPCN.KERNEL_GENERATION {generation!r}: choose from {choices}")
        if generation == "serial_kernels" and names == ("square",):
            raise ValueError(
                "MODEL.DPCN.KERNEL_GENERATION 'serial_kernels' makes the square kernel from the others: add "
                "'vertical' or 'horizontal' to MODEL.DPCN.KERNELS"
            )
        super().__init__()
        self.kernel_size = kernel_size
        self.generation = generation
        self.generators = nn.ModuleDict({name: _generator(dim) for name in names})

    def encode(self, features: Tensor, weights: Tensor) -> Tensor:
        """`pool` the object of supports (B, K, C, h, w) with soft masks (B, K, h, w)."""
        return self.pool([foreground_vectors(f, w) for f, w in zip(features, weights, strict=True)])

    def pool(self, foreground: Sequence[Tensor]) -> Tensor:
        """All that the kernels need of the object's vectors, B times (N_i, C): (B, P, C).

        P is S, or S + S^2 in "parallel" generation of a square kernel.
        """
        S = self.kernel_size
        apart = self.generation == "parallel" and "square" in self.generators
        lengths = (S, S * S) if apart else (S,)
        columns = (vectors.T[None].float() for vectors in foreground)  # (1, C, N_i)
        pooled = [torch.cat([F.adaptive_avg_pool1d(c, n) for n in lengths], dim=2) for c in columns]
        return torch.cat(pooled).transpose(1, 2)

    def make_kernels(self, pooled: Tensor) -> dict[str, Tensor]:
        """Kernels by name from `pool`'s (B, P, C): (B, C, S, 1), (B, C, 1, S), (B, C, S, S) (Eq. 7)."""
        S = self.kernel_size
        shapes = {"vertical": (S, 1), "horizontal": (1, S), "square": (S, S)}
        lines, rest = pooled.transpose(1, 2).split(
            [S, pooled.shape[1] - S], dim=2
        )  # (B, C, S), (B, C, P - S)
        made = {name: make(lines) for name, make in self.generators.items() if name != "square"}
        if "square" in self.generators:
            sources = {"serial": [lines], "parallel": [rest], "serial_kernels": list(made.values())}
            source = torch.cat(sources[self.generation], dim=2)
            made["square"] = self.generators["square"](F.adaptive_avg_pool1d(source, S * S))
        return {name: made[name].unflatten(2, shapes[name]) for name in self.generators}

    def forward(self, query: Tensor, foreground: Tensor | Sequence[Tensor]) -> list[Tensor]:
        """Convolve each query with its episode's kernels (Eq. 8).

        Args:
            query: (B, C, h, w).
            foreground: the object's vectors, B times (N_i, C), or what `pool` made of them.

        Returns:
            For each kernel (B, C, h, w).
        """
        pooled = foreground if isinstance(foreground, Tensor) else self.pool(foreground)
        return [_convolve(query, kernel) for kernel in self.make_kernels(pooled).values()]


class DynamicQuery(nn.Module):
    """Dynamic convolution as a plug-in (DPCN, Table 6): the query's features, reworked for its episode.

    The convolved maps are joined and brought back to C channels by a 1x1 convolution without bias and a ReLU;
    the paper does not say how.
    """

    def __init__(self, dim: int, **dynamic_convolution: object) -> None:
        """
        Args:
            dim: channels C of query and support.
            dynamic_convolution: further arguments of `DynamicConvolution`.

        Raises:
            ValueError: as `DynamicConvolution`.
        """
        super().__init__()
        self.convolution = DynamicConvolution(dim, **dynamic_convolution)
        joined = len(self.convolution.generators) * dim
        self.merge = nn.Sequential(nn.Conv2d(joined, dim, 1, bias=False), nn.ReLU())

    def encode(self, features: Tensor, weights: Tensor) -> Tensor:
        """See `DynamicConvolution.encode`."""
        return self.convolution.encode(features, weights)

    def forward(self, query: Tensor, foreground: Tensor | Sequence[Tensor]) -> Tensor:
        """As `DynamicConvolution.forward`, but one map (B, C, h, w)."""
        return self.merge(torch.cat(self.convolution(query, foreground), dim=1))


def _generator(dim: int) -> nn.Sequential:
    """Two 1D convolutions, (B, C, n) to the same."""
    return nn.Sequential(nn.Conv1d(dim, dim, 3, padding=1), nn.ReLU(), nn.Conv1d(dim, dim, 3, padding=1))


def _convolve(query: Tensor, kernels: Tensor) -> Tensor:
    """Depthwise: query (B, C, h, w) with kernels (B, C, kh, kw), one for each channel of each image."""
    B, C, kh, kw = kernels.shape
    rows = query.reshape(1, B * C, *query.shape[-2:])
    weights = kernels.reshape(B * C, 1, kh, kw)
    return F.conv2d(rows, weights, padding=(kh // 2, kw // 2), groups=B * C).view_as(query)
