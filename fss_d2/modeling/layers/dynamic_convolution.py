"""Convolution of a query with kernels made from the support's object (dynamic convolution module of DPCN)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["GENERATIONS", "KERNELS", "DynamicConvolution", "DynamicQuery", "foreground_vectors"]

KERNELS = ("vertical", "horizontal", "square")
GENERATIONS = ("serial", "parallel", "serial_kernels")


def foreground_vectors(features: Tensor, weights: Tensor) -> Tensor:
    """Feature vectors of the object in all supports of an episode (Eq. 5, 11), row by row, shot by shot.

    A shot whose mask is nowhere above 0.5 gives the vector at its largest value. The number of vectors
    depends on the masks, so on a GPU this waits for them.

    Args:
        features: (K, C, h, w).
        weights: (K, h, w) soft masks in [0, 1].

    Returns:
        (N, C), N at least 1: one zero vector if all masks are empty.
    """
    inside = weights > 0.5
    for shot in range(len(weights)):
        if not inside[shot].any() and weights[shot].any():
            inside[shot].view(-1)[weights[shot].argmax()] = True
    vectors = features.permute(0, 2, 3, 1)[inside]
    return vectors if len(vectors) else features.new_zeros(1, features.shape[1])


class DynamicConvolution(nn.Module):
    """Depthwise convolutions of the query with kernels made from the supports' object (DPCN, Sec. 3.5).

    The vectors of the object, any number of them, are averaged along their order to S (and S^2) vectors. Two
    1D convolutions along these make a kernel per channel: S x 1, 1 x S and S x S. The paper leaves open:
    the 1D convolutions have width 3 (with width 1 the repeated vectors of "serial" would make a square
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
            kernels: some of "vertical", "horizontal", "square", each once (Table 5), in order of the results.
            generation: source of the square kernel: "serial", the S averaged vectors (Eq. 6); "parallel", all
                vectors (Table A1); "serial_kernels", the other kernels (text of Appendix B).

        Raises:
            ValueError: an even size, unknown or repeated kernels, an unknown generation, or one without the
                kernels it needs.
        """
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size {kernel_size} must be odd and at least 1")
        names = tuple(kernels)
        if not names or set(names) - set(KERNELS) or len(set(names)) < len(names):
            raise ValueError(f"kernels {names}: list some of {', '.join(KERNELS)}, each once")
        if generation not in GENERATIONS:
            raise ValueError(f"unknown generation {generation!r}: choose from {', '.join(GENERATIONS)}")
        if generation == "serial_kernels" and names == ("square",):
            raise ValueError(
                "generation 'serial_kernels' makes the square kernel from the others: add 'vertical' or "
                "'horizontal' to kernels"
            )
        super().__init__()
        self.kernel_size = kernel_size
        self.generation = generation
        self.generators = nn.ModuleDict({name: _generator(dim) for name in names})

    def encode(self, features: Tensor, weights: Tensor) -> Tensor:
        """Apply `pool` to the object of supports (B, K, C, h, w) with soft masks (B, K, h, w)."""
        return self.pool([foreground_vectors(f, w) for f, w in zip(features, weights, strict=True)])

    def pool(self, foreground: Sequence[Tensor]) -> Tensor:
        """Average the vectors of the object, B times (N_i, C), to those that make the kernels: (B, P, C).

        P is S, or S + S^2 in "parallel" generation of a square kernel. In float32, also under autocast.
        """
        S = self.kernel_size
        apart = self.generation == "parallel" and "square" in self.generators
        lengths = (S, S * S) if apart else (S,)
        columns = (vectors.T[None].float() for vectors in foreground)  # (1, C, N_i)
        pooled = [torch.cat([F.adaptive_avg_pool1d(c, n) for n in lengths], dim=2) for c in columns]
        return torch.cat(pooled).transpose(1, 2)

    def make_kernels(self, pooled: Tensor) -> dict[str, Tensor]:
        """Make kernels (B, C, S, 1), (B, C, 1, S), (B, C, S, S) by name from the output of `pool` (Eq. 7)."""
        S = self.kernel_size
        shapes = {"vertical": (S, 1), "horizontal": (1, S), "square": (S, S)}
        lines = pooled[:, :S].transpose(1, 2)  # (B, C, S)
        rest = pooled[:, S:].transpose(1, 2)  # (B, C, P - S)
        made = {name: make(lines) for name, make in self.generators.items() if name != "square"}
        if "square" in self.generators:
            sources = {"serial": [lines], "parallel": [rest], "serial_kernels": list(made.values())}
            source = torch.cat(sources[self.generation], dim=2)
            made["square"] = self.generators["square"](F.adaptive_avg_pool1d(source, S * S))
        return {name: made[name].unflatten(2, shapes[name]) for name in self.generators}

    def forward(self, query: Tensor, foreground: Tensor | Sequence[Tensor]) -> list[Tensor]:
        """Convolve each query with the kernels of its episode (Eq. 8).

        Args:
            query: (B, C, h, w).
            foreground: vectors of the object, B times (N_i, C), or the output of `pool` for them.

        Returns:
            (B, C, h, w) for each kernel.
        """
        pooled = foreground if isinstance(foreground, Tensor) else self.pool(foreground)
        return [_convolve(query, kernel) for kernel in self.make_kernels(pooled).values()]


class DynamicQuery(nn.Module):
    """Dynamic convolution as a plug-in for other methods (DPCN, Table 6).

    The convolved maps of the query are joined and reduced to C channels by a 1x1 convolution without bias and
    a ReLU (the paper leaves this open).
    """

    def __init__(self, dim: int, **dynamic_convolution: object) -> None:
        """
        Args:
            dim: channels C of query and support.
            dynamic_convolution: further arguments of `DynamicConvolution`.

        Raises:
            ValueError: wrong arguments of `DynamicConvolution`.
        """
        super().__init__()
        self.convolution = DynamicConvolution(dim, **dynamic_convolution)
        joined = len(self.convolution.generators) * dim
        self.merge = nn.Sequential(nn.Conv2d(joined, dim, 1, bias=False), nn.ReLU())

    def encode(self, features: Tensor, weights: Tensor) -> Tensor:
        """See `DynamicConvolution.encode`."""
        return self.convolution.encode(features, weights)

    def forward(self, query: Tensor, foreground: Tensor | Sequence[Tensor]) -> Tensor:
        """As `DynamicConvolution.forward`, but returns one map (B, C, h, w)."""
        return self.merge(torch.cat(self.convolution(query, foreground), dim=1))


def _generator(dim: int) -> nn.Sequential:
    """Two 1D convolutions that map (B, C, n) to the same shape."""
    return nn.Sequential(nn.Conv1d(dim, dim, 3, padding=1), nn.ReLU(), nn.Conv1d(dim, dim, 3, padding=1))


def _convolve(query: Tensor, kernels: Tensor) -> Tensor:
    """Convolve (B, C, h, w) depthwise with kernels (B, C, kh, kw), one per channel of each image."""
    B, C, kh, kw = kernels.shape
    rows = query.reshape(1, B * C, *query.shape[-2:])
    weights = kernels.reshape(B * C, 1, kh, kw)
    return F.conv2d(rows, weights, padding=(kh // 2, kw // 2), groups=B * C).view_as(query)
