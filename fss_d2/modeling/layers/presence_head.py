"""Is the object in a picture at all? A small network judges the maps from which its mask was made."""

import torch
from torch import Tensor, nn

__all__ = ["PresenceHead"]

_DROPOUT = 0.2


class PresenceHead(nn.Module):
    """Two linear layers on the maps' maxima, their means inside the mask, and three numbers of the mask."""

    def __init__(self, channels: int, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 * channels + 3, width), nn.ReLU(), nn.Dropout(_DROPOUT), nn.Linear(width, 1)
        )

    def forward(self, maps: Tensor, probability: Tensor) -> Tensor:
        """Judge maps (B, channels, h, w) and the object's probability (B, 1, h, w): logits (B,) float32."""
        inside = probability > 0.5
        sums = (maps * probability).sum(dim=(2, 3))
        pooled = [
            maps.amax(dim=(2, 3)),
            sums / probability.sum(dim=(2, 3)).clamp(min=1e-3),
            probability.mean(dim=(2, 3)),
            probability.amax(dim=(2, 3)),
            (probability * inside).sum(dim=(2, 3)) / (inside.sum(dim=(2, 3)) + 1),
        ]
        return self.layers(torch.cat(pooled, dim=1))[:, 0].float()
