"""What a method keeps of the supports of an episode."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fss_d2.modeling.layers import resize

__all__ = ["SupportSet", "stack_supports"]


@dataclass(frozen=True)
class SupportSet:
    """Encoded supports of a batch of episodes; made by `FewShotSegmentor.encode_support`.

    Images are not kept unless the method needs them for the query.

    Attributes:
        method: class name of the model that made it.
        shots: number of supports of each episode.
        size: (height, width) of the support images.
        tensors: the method's own tensors, episodes first in each.
    """

    method: str
    shots: int
    size: tuple[int, int]
    tensors: Mapping[str, Tensor]

    @property
    def batch_size(self) -> int:
        """Number of episodes."""
        return next(iter(self.tensors.values())).shape[0]

    def to(self, device: torch.device | str) -> "SupportSet":
        """Return a support set whose tensors are on ``device``."""
        return replace(self, tensors={name: t.to(device) for name, t in self.tensors.items()})

    def expand(self, batch_size: int) -> "SupportSet":
        """Repeat a set of one episode for many queries; no memory is copied.

        Raises:
            ValueError: the set has another number of episodes than 1 or ``batch_size``.
        """
        if self.batch_size == batch_size:
            return self
        if self.batch_size != 1:
            raise ValueError(f"a support set of {self.batch_size} episodes cannot serve {batch_size} queries")
        return replace(self, tensors={n: t.expand(batch_size, *t.shape[1:]) for n, t in self.tensors.items()})

    def state(self) -> dict[str, Any]:
        """Return plain strings, numbers and CPU tensors, which `torch.load` reads with ``weights_only``."""
        tensors = {name: t.detach().cpu() for name, t in self.tensors.items()}
        return {"method": self.method, "shots": self.shots, "size": list(self.size), "tensors": tensors}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "SupportSet":
        """Rebuild a support set from `state`.

        Raises:
            ValueError: something is missing.
        """
        missing = {"method", "shots", "size", "tensors"} - set(state)
        if missing:
            raise ValueError(f"support set lacks {', '.join(sorted(missing))}: save SupportSet.state()")
        height, width = state["size"]
        return cls(state["method"], int(state["shots"]), (int(height), int(width)), dict(state["tensors"]))


def stack_supports(episodes: Sequence[Mapping[str, Any]]) -> tuple[Tensor, Tensor]:
    """Stack the supports of episodes, each one's brought to the size of its first.

    Args:
        episodes: of B dicts "support", a list of K dicts of "image" (3, H, W) and "mask" (H, W).

    Returns:
        (B, K, 3, H, W) and (B, K, H, W).
    """
    pairs = [_stack_shots(episode["support"]) for episode in episodes]
    return torch.stack([images for images, _ in pairs]), torch.stack([masks for _, masks in pairs])


def _stack_shots(shots: Sequence[Mapping[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """K supports at the first one's size: (K, 3, H, W) and (K, H, W)."""
    size = shots[0]["image"].shape[1:]
    if all(shot["image"].shape[1:] == size for shot in shots):
        return torch.stack([shot["image"] for shot in shots]), torch.stack([shot["mask"] for shot in shots])
    images = [resize(shot["image"][None].float(), size, align_corners=False)[0] for shot in shots]
    masks = [
        F.interpolate(shot["mask"][None, None].float(), size=size, mode="nearest")[0, 0] for shot in shots
    ]
    return torch.stack(images), torch.stack(masks).to(shots[0]["mask"].dtype)
