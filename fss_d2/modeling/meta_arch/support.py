"""What a method keeps of the supports of an episode."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

__all__ = ["SupportSet"]


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
