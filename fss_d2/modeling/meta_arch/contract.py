"""What passes between the three parts of a method: `encode_support`, `encode_query` and `match`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Self

from fss_d2.modeling.layers import resize

__all__ = ["Encoding", "Output", "QueryFeatures", "SupportSet", "Target", "resize_support", "stack_supports"]

_ENCODINGS: dict[str, type["Encoding"]] = {}


class Encoding:
    """Base of the frozen dataclasses in which a method keeps encoded images.

    Every field is a tensor, a dict of tensors, or None. The first dimension of every tensor is the episode;
    of encoded supports, the second is the support.
    """

    def __init_subclass__(cls) -> None:
        _ENCODINGS[_name(cls)] = cls

    def flat(self) -> dict[str, Tensor]:
        """All tensors: of a field under the field's name, of a dict under "field.key"."""
        tensors: dict[str, Tensor] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                tensors[f.name] = value
            elif value is not None:
                tensors |= {f"{f.name}.{key}": tensor for key, tensor in value.items()}
        return tensors

    @classmethod
    def from_flat(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Rebuild an encoding from what `flat` gave; raises TypeError for an unknown or a missing field."""
        values: dict[str, Any] = {}
        for name, tensor in tensors.items():
            first, _, key = name.partition(".")
            if key:
                values.setdefault(first, {})[key] = tensor
            else:
                values[first] = tensor
        return cls(**values)

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Apply a function to every tensor."""
        return type(self).from_flat({name: function(tensor) for name, tensor in self.flat().items()})

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Join the supports of several encodings of the same episodes, in order."""
        if len(parts) == 1:
            return parts[0]
        flat = [part.flat() for part in parts]
        # Tensor by tensor, so that the parts' memory can be freed on the way.
        return cls.from_flat({n: torch.cat([part.pop(n) for part in flat], dim=1) for n in list(flat[0])})


def _name(encoding: type[Encoding]) -> str:
    """The name of an encoding in files, such as "dcama.ShotEncoding"."""
    return f"{encoding.__module__.rpartition('.')[2]}.{encoding.__name__}"


@dataclass(frozen=True)
class SupportSet:
    """Encoded supports of a batch of episodes; made by `FewShotSegmentor.encode_support`."""

    method: str  # class name of the model that made it
    shots: int  # number K of supports of each episode
    size: tuple[int, int]  # (height, width) of the support images
    encoded: Encoding  # what the method keeps of each support; every tensor is (B, K, ...)
    joined: Encoding  # what `match` reads: the supports of each episode taken together

    @property
    def batch_size(self) -> int:
        """Number of episodes."""
        return next(iter(self.joined.flat().values())).shape[0]

    def to(self, device: torch.device | str) -> "SupportSet":
        """Return the set with its tensors on ``device``."""
        encoded = self.encoded.map(lambda t: t.to(device))
        joined = encoded if self.joined is self.encoded else self.joined.map(lambda t: t.to(device))
        return replace(self, encoded=encoded, joined=joined)

    def for_queries(self, count: int) -> Encoding:
        """`joined` for a number of queries; a set of one episode is repeated for all, without a copy.

        Raises ValueError for a set of another number of episodes than 1 or ``count``.
        """
        if self.batch_size == count:
            return self.joined
        if self.batch_size != 1:
            raise ValueError(f"a support set of {self.batch_size} episodes cannot serve {count} queries")
        return self.joined.map(lambda t: t.expand(count, *t.shape[1:]))

    def state(self) -> dict[str, Any]:
        """Return plain strings, numbers and CPU tensors, which `torch.load` reads with ``weights_only``.

        `joined` is not among them: the model makes it again from `encoded`, see `restore_support`.
        """
        tensors = {name: tensor.detach().cpu() for name, tensor in self.encoded.flat().items()}
        encoded = [_name(type(self.encoded)), tensors]
        return {"method": self.method, "shots": self.shots, "size": list(self.size), "encoded": encoded}

    @classmethod
    def from_state(
        cls, state: Mapping[str, Any], device: torch.device, join: Callable[[Encoding], Encoding]
    ) -> "SupportSet":
        """Rebuild a set from `state` on a device, with `joined` made by ``join``.

        Raises ValueError if an entry is missing or does not fit.
        """
        missing = {"method", "shots", "size", "encoded"} - set(state)
        if missing:
            raise ValueError(f"support set lacks {', '.join(sorted(missing))}: save SupportSet.state()")
        try:
            height, width = state["size"]
            name, tensors = state["encoded"]
            encoded = _ENCODINGS[name].from_flat({n: t.to(device) for n, t in tensors.items()})
            size = int(height), int(width)
            return cls(state["method"], int(state["shots"]), size, encoded, join(encoded))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"this is no support set ({error}): encode it again") from error


@dataclass(frozen=True)
class QueryFeatures:
    """An encoded batch of queries, to be matched with any number of support sets; made by `encode_query`."""

    method: str  # class name of the model that made it
    images: Tensor  # (B, 3, H, W) RGB, 0 to 255, as given
    encoded: Encoding  # what the method keeps of each query; every tensor is (B, ...)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images."""
        return self.images.shape[-2], self.images.shape[-1]


@dataclass(frozen=True)
class Output:
    """What `match` gives. A method whose losses need more derives a dataclass from it."""

    logits: Tensor  # (B, 2, H, W) of background and object
    maps: Mapping[str, Tensor] = field(default_factory=dict)  # name -> (B, C, h, w), for drawing only
    levels: Sequence[Tensor] = ()  # (B, 2, h, w) each: logits of inner levels, for the auxiliary loss
    unrefined: Tensor | None = None  # (B, 2, H, W): the logits before TEST.REFINEMENT, where there is one

    def probability(self) -> Tensor:
        """(B, H, W): probability of the object."""
        return (self.logits[:, 1] - self.logits[:, 0]).float().sigmoid()

    @property
    def own_logits(self) -> Tensor:
        """(B, 2, H, W): what the network itself gave, without refinement."""
        return self.logits if self.unrefined is None else self.unrefined


@dataclass(frozen=True)
class Target:
    """What a batch of queries is trained on. The segments and labels are empty where they were not loaded."""

    mask: Tensor  # (B, H, W) int64: 1 object, 0 background, 255 neither
    segments: Sequence[Tensor] = ()  # for each image (M, H, W) masks of everything annotated
    labels: Sequence[Tensor] = ()  # for each image (M,) classes of the segments, on the CPU

    @property
    def shows_object(self) -> Tensor:
        """(B,) bool: whether a pixel shows the object."""
        return (self.mask == 1).flatten(1).any(dim=1)


def stack_supports(episodes: Sequence[Mapping[str, Any]]) -> tuple[Tensor, Tensor]:
    """Stack the supports of B episodes to (B, K, 3, H, W) and (B, K, H, W).

    An episode has "support", a list of K dicts of "image" (3, H, W) and "mask" (H, W); each support is
    resized to the first one of its episode.
    """
    pairs = [_stack_shots(episode["support"]) for episode in episodes]
    return torch.stack([images for images, _ in pairs]), torch.stack([masks for _, masks in pairs])


def _stack_shots(shots: Sequence[Mapping[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """K supports at the first one's size: (K, 3, H, W) and (K, H, W)."""
    size = shots[0]["image"].shape[1:]
    if all(shot["image"].shape[1:] == size for shot in shots):
        return torch.stack([shot["image"] for shot in shots]), torch.stack([shot["mask"] for shot in shots])
    images, masks = zip(*(resize_support(s["image"].float(), s["mask"], size) for s in shots), strict=True)
    return torch.stack(images), torch.stack(masks)


def resize_support(image: Tensor, mask: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Bring an image (3, h, w) and its mask (h, w) to ``size``; unchanged where they have that size."""
    if tuple(image.shape[1:]) == tuple(size):
        return image, mask
    image = resize(image[None].float(), size, align_corners=False)[0]
    return image, F.interpolate(mask[None, None].float(), size=tuple(size), mode="nearest")[0, 0].to(
        mask.dtype
    )
