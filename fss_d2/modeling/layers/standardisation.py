"""Standardised channels that keep their absolute level."""

import torch
from torch import Tensor, nn

__all__ = ["FixedStandardisation"]

_EPSILON = 1e-3


class FixedStandardisation(nn.Module):
    """Brings each channel to mean 0 and deviation 1 by fixed statistics, then scales and shifts it.

    Unlike a batch norm, whose statistics follow the batch, it keeps how high a map is compared with those of
    other images. The statistics are of the maps given while `collects` is set, the identity before.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.collects = False
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))
        self.register_buffer("count", torch.zeros(()))  # of values of each channel
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same shape, in float32."""
        x = x.float()
        if self.training and self.collects:
            self._add(x.detach())
        # New tensors, because the statistics may change before a gradient needs them.
        mean, deviation = self.mean.clone(), self.variance.sqrt() + _EPSILON
        standard = (x - mean[:, None, None]) / deviation[:, None, None]
        return standard * self.weight[:, None, None] + self.bias[:, None, None]

    @torch.no_grad()
    def _add(self, x: Tensor) -> None:
        """Take the values of (B, C, h, w) into the statistics of all so far."""
        variance, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
        new = x.numel() // x.shape[1]
        total = self.count + new
        shift, share = mean - self.mean, new / total
        self.variance.copy_(
            self.variance * (1 - share) + variance * share + shift.square() * share * (1 - share)
        )
        self.mean.add_(shift * share)
        self.count.copy_(total)

    @torch.no_grad()
    def average_over_processes(self) -> None:
        """Give all processes of a training the same statistics; each has seen as much as the others."""
        statistics = torch.stack([self.mean, self.variance + self.mean.square()])
        torch.distributed.all_reduce(statistics)
        mean, square = statistics / torch.distributed.get_world_size()
        self.mean.copy_(mean)
        self.variance.copy_((square - mean.square()).clamp(min=0))
