"""Multi-scale deformable attention (Zhu et al., Deformable DETR, ICLR 2021) without compiled code.

Each head of each token reads a few points of every feature map and takes their weighted sum. That sum has two
implementations, equal up to rounding. CPU seconds on one thread for a 480 x 480 image (4725 tokens, 8 heads
of 32 channels, 3 levels, 4 points within a few pixels of the token), the best of 4 repeats in each of two
runs on a machine in use, and the memory that autograd keeps for the backward pass:

====================  ===========  =====================  =====
implementation        forward      forward and backward   kept
====================  ===========  =====================  =====
`sample_by_grid`      0.13, 0.19   0.47, 0.55             68 MB
`sample_by_gather`    0.03, 0.04   0.15, 0.20             34 MB
====================  ===========  =====================  =====
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

__all__ = [
    "SAMPLINGS",
    "MultiScaleDeformableAttention",
    "reference_points",
    "sample_by_gather",
    "sample_by_grid",
]

Shapes = Sequence[tuple[int, int]]


def reference_points(shapes: Shapes, device: torch.device) -> Tensor:
    """Pixel centres of all levels, row by row: (N, 2) as (x, y) in (0, 1), N is the sum of h * w."""
    points = []
    for height, width in shapes:
        y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
        x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
        points.append(torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=2))
    return torch.cat([level.flatten(0, 1) for level in points])


def _sizes(shapes: Shapes, like: Tensor) -> Tensor:
    """(width, height) of each level, (L, 1, 2), made on the device: copying a list there waits for a GPU."""
    numbers = [like.new_full((), side) for height, width in shapes for side in (width, height)]
    return torch.stack(numbers).view(-1, 1, 2)


def sample_by_grid(value: Tensor, locations: Tensor, weights: Tensor, shapes: Shapes) -> Tensor:
    """Weighted sum of bilinear samples (zero outside the map), by ``grid_sample`` level by level.

    Args:
        value: (B, T, M, D) of M heads; the T tokens are those of ``shapes``, level by level, row by row.
        locations: (B, N, M, L, P, 2) as (x, y); 0 and 1 are the outer edges of the level's map.
        weights: (B, N, M, L, P).
        shapes: (height, width) of the L levels.

    Returns:
        (B, N, M * D).
    """
    B, N, M, L, P = weights.shape
    grid = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # (B*M, N, L, P, 2)
    weights = weights.transpose(1, 2).flatten(0, 1)  # (B*M, N, L, P)
    total = value.new_zeros(())
    maps = value.permute(0, 2, 3, 1).flatten(0, 1)  # (B*M, D, T)
    for level, part in enumerate(maps.split([h * w for h, w in shapes], dim=2)):
        samples = F.grid_sample(part.unflatten(2, shapes[level]), grid[:, :, level], align_corners=False)
        total = total + (samples * weights[:, None, :, level]).sum(dim=3)  # (B*M, D, N)
    return total.reshape(B, -1, N).transpose(1, 2)


def sample_by_gather(value: Tensor, locations: Tensor, weights: Tensor, shapes: Shapes) -> Tensor:
    """The same as `sample_by_grid`, as one weighted sum of 4 * L * P table rows per token and head.

    The values are a table with a row of D numbers per image, token and head. Samples are not stored,
    only the indices and weights of their 4 rows.
    """
    B, N, M, L, P = weights.shape
    table = value.flatten(0, 2)  # (B*T*M, D)
    rows, row_weights = _corner_rows(locations, weights, shapes, tokens=value.shape[1])
    total = F.embedding_bag(rows, table.detach(), mode="sum", per_sample_weights=row_weights)
    if table.requires_grad and torch.is_grad_enabled():
        total = _TableGradient.apply(total, table, rows, row_weights.detach())
    return total.view(B, N, -1)


def _corner_rows(locations: Tensor, weights: Tensor, shapes: Shapes, *, tokens: int) -> tuple[Tensor, Tensor]:
    """Table rows of the 4 pixels around each point, and attention times bilinear weight (0 outside the map).

    Returns:
        int32 and float (B*N*M, 4*L*P).
    """
    B, N, M, L, P = weights.shape
    device = locations.device

    def per_point(levels: Sequence[int]) -> Tensor:
        """One number per level, repeated for every point; broadcasting over L or P alone is slow."""
        parts = [torch.full((P,), number, dtype=torch.int32, device=device) for number in levels]
        return torch.cat(parts).repeat(M)  # (M*L*P,)

    heights, widths = zip(*shapes, strict=True)
    starts = [sum(h * w for h, w in shapes[:level]) for level in range(L)]
    heads = torch.arange(M, dtype=torch.int32, device=device).repeat_interleave(L * P)
    images = torch.arange(B, dtype=torch.int32, device=device)[:, None, None] * (tokens * M)
    x, y = locations.flatten(2, 4).unbind(dim=3)  # (B, N, M*L*P)
    columns = _two_pixels(x, per_point(widths))
    lines = _two_pixels(y, per_point(heights))
    first = images + (per_point(starts) * M + heads)  # (B, 1, M*L*P): pixel (0, 0) of the level
    step = per_point(widths) * M
    weights = weights.flatten(2)

    line_rows = [first + line * step for line, _ in lines]
    line_weights = [weights * weight for _, weight in lines]
    rows = [row + column * M for row in line_rows for column, _ in columns]
    row_weights = [line * weight for line in line_weights for _, weight in columns]

    def together(corners: list[Tensor]) -> Tensor:
        """The four corners of all points side by side: 4 x (B, N, M*L*P) to (B*N*M, 4*L*P)."""
        return torch.stack([corner.view(B * N * M, L * P) for corner in corners], dim=1).flatten(1)

    return together(rows), together(row_weights)


def _two_pixels(coordinate: Tensor, size: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(Index in the map, weight) of the pixels before and after a coordinate in [0, 1] along one axis."""
    position = coordinate * size - 0.5
    low = position.detach().floor()
    fraction = position - low
    pixels = []
    for pixel, weight in ((low, 1 - fraction), (low + 1, fraction)):
        inside = pixel.fmax(torch.zeros_like(pixel)).fmin(
            size - 1.0
        )  # with fmax, fmin a NaN gives a valid index
        pixels.append((inside.int(), weight * (inside == pixel)))
    return pixels


class _TableGradient(torch.autograd.Function):
    """Returns a sum of table rows unchanged; its backward pass computes the gradient of the table.

    The gradient of a row is a weighted sum of the output's gradients. ``embedding_bag`` computes it as well,
    after the pairs (output, row) are sorted by row. With the backward pass of ``embedding_bag`` instead,
    forward and backward together take twice as long.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, total: Tensor, table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        """Return ``total`` (R, C), the sums of rows (R, n) of table (T, C) by weights (R, n), unchanged."""
        ctx.save_for_backward(rows, weights)
        ctx.table_rows = len(table)
        return total.view_as(total)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Map the gradient (R, C) of the sums to those of ``total`` and ``table``; the rest have none."""
        rows, weights = ctx.saved_tensors
        ordered, order = rows.flatten().sort(stable=True)
        starts = torch.searchsorted(
            ordered, torch.arange(ctx.table_rows, dtype=rows.dtype, device=rows.device)
        )
        sources = order.div(rows.shape[1], rounding_mode="floor")
        table = F.embedding_bag(
            sources, grad.contiguous(), starts, mode="sum", per_sample_weights=weights.flatten()[order]
        )
        return grad, table, None, None


Sampler = Callable[[Tensor, Tensor, Tensor, Shapes], Tensor]
SAMPLERS: dict[str, Sampler] = {"grid": sample_by_grid, "gather": sample_by_gather}
SAMPLINGS = ("auto", *SAMPLERS)


class MultiScaleDeformableAttention(nn.Module):
    """Deformable attention of tokens over several maps (Deformable DETR, Eq. (3)); computed in float32.

    Args:
        dim: channels C of the tokens.
        num_heads: M heads of C / M channels each.
        num_levels: L.
        num_points: P, points per head on each level.
        sampling: "grid", "gather", or "auto": gather on a CPU, where it is faster in training too, else grid.

    Raises:
        ValueError: a dim that the heads do not divide, or unknown sampling.
    """

    def __init__(
        self,
        dim: int = 256,
        *,
        num_heads: int = 8,
        num_levels: int = 3,
        num_points: int = 4,
        sampling: str = "auto",
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"{num_heads} heads do not divide {dim} channels: change num_heads or dim")
        if sampling not in SAMPLINGS:
            raise ValueError(f"unknown sampling {sampling!r}: choose from {', '.join(SAMPLINGS)}")
        self.shape = (num_heads, num_levels, num_points)
        self.sampling = sampling
        points = math.prod(self.shape)
        self.sampling_offsets = nn.Linear(dim, points * 2)
        self.attention_weights = nn.Linear(dim, points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set equal weights, and points at 1 .. P pixels (maximum norm) along one direction per head."""
        M, L, P = self.shape
        angle = torch.arange(M, dtype=torch.float32) * (2 * math.pi / M)
        direction = torch.stack([angle.cos(), angle.sin()], dim=1)  # (M, 2) as (x, y)
        direction = direction / direction.abs().amax(dim=1, keepdim=True)
        offsets = torch.einsum("mc,p->mpc", direction, torch.arange(1.0, P + 1))
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets[:, None].expand(M, L, P, 2).flatten())
        for zero in (self.sampling_offsets.weight, *self.attention_weights.parameters()):
            nn.init.zeros_(zero)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(self, query: Tensor, reference: Tensor, value: Tensor, shapes: Shapes) -> Tensor:
        """Attend to ``value``.

        Args:
            query: (B, N, C).
            reference: (N, 2), the centre of each query's points, as (x, y) in [0, 1].
            value: (B, T, C), the pixels of all levels, row by row.
            shapes: (height, width) of each level; their areas add up to T.

        Returns:
            (B, N, C) float32.
        """
        with torch.autocast(query.device.type, enabled=False):
            B, N, C = query.shape
            M, L, P = self.shape
            query, value = query.float(), self.value_proj(value.float())
            offsets = self.sampling_offsets(query).view(B, N, M, L, P, 2)
            locations = reference[:, None, None, None] + offsets / _sizes(shapes, offsets)
            weights = self.attention_weights(query).view(B, N, M, L * P).softmax(dim=3).view(B, N, M, L, P)
            sample = SAMPLERS[self._choose(query.device)]
            return self.output_proj(sample(value.unflatten(2, (M, -1)), locations, weights, shapes))

    def _choose(self, device: torch.device) -> str:
        if self.sampling != "auto":
            return self.sampling
        return "gather" if device.type == "cpu" else "grid"
