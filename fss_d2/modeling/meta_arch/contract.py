"""What passes between the three parts of a method: `encode_support`, `encode_query` and `match`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Self

from fss_d2.modeling.encoding import Encoding
from fss_d2.modeling.evidence import DEEP, Evidence
from fss_d2.modeling.layers import resize
from fss_d2.modeling.presence import Guide, guide_of

__all__ = [
    "Encoding",
    "NegativeSet",
    "Output",
    "QueryFeatures",
    "SupportSet",
    "Target",
    "resize_support",
    "stack_supports",
]

Join = Callable[[Encoding, Encoding | None], Encoding]


@dataclass(frozen=True)
class NegativeSet:
    """Encoded negatives of a batch of episodes: pictures, or regions of them, that do not show the object.

    Made by `FewShotSegmentor.encode_negatives`; there is at least one.
    """

    method: str  # class name of the model that made it
    evidence: Evidence  # the "objects" are the regions
    encoded: Encoding | None = None  # what a method keeps besides; every tensor is (B, N, ...)

    def __len__(self) -> int:
        """The number N of negatives of each episode."""
        return self.evidence.objects[DEEP].shape[1]

    def map(self, function: Callable[[Tensor], Tensor]) -> "NegativeSet":
        """Apply a function to every tensor."""
        encoded = None if self.encoded is None else self.encoded.map(function)
        return replace(self, evidence=self.evidence.map(function), encoded=encoded)

    def select(self, indices: Sequence[int]) -> "NegativeSet":
        """The negatives with these indices, at least one, in this order."""
        if not indices or not all(0 <= i < len(self) for i in indices):
            raise ValueError(f"negatives {list(indices)} of {len(self)}: give some of 0 to N - 1")
        return self.map(lambda t: t[:, list(indices)])

    @staticmethod
    def concatenate(sets: Sequence["NegativeSet"]) -> "NegativeSet":
        """The negatives of all sets, of the same episodes."""
        encoded = [negatives.encoded for negatives in sets if negatives.encoded is not None]
        return replace(
            sets[0],
            evidence=Evidence.concatenate([negatives.evidence for negatives in sets]),
            encoded=type(encoded[0]).concatenate(encoded) if encoded else None,
        )


@dataclass(frozen=True)
class SupportSet:
    """Encoded supports of a batch of episodes; made by `FewShotSegmentor.encode_support`.

    `evidence` and `guide` are for the presence of the object; a set encoded in training has none.
    """

    method: str  # class name of the model that made it
    shots: int  # number K of supports of each episode
    size: tuple[int, int]  # (height, width) of the support images
    encoded: Encoding  # what the method keeps of each support; every tensor is (B, K, ...)
    joined: Encoding  # what `match` reads: the supports of each episode taken together, with the negatives
    evidence: Evidence | None = None  # of each support; every tensor is (B, K, ...)
    guide: Guide | None = None  # what `match` reads of the evidence
    negatives: NegativeSet | None = None

    @property
    def batch_size(self) -> int:
        """Number of episodes."""
        return next(iter(self.joined.flat().values())).shape[0]

    def joined_by(self, join: Join) -> "SupportSet":
        """The set with `joined` and `guide` made anew from what is kept of each support and negative."""
        negatives = self.negatives
        joined = join(self.encoded, None if negatives is None else negatives.encoded)
        guide = None if self.evidence is None else guide_of(self.evidence, negatives and negatives.evidence)
        return replace(self, joined=joined, guide=guide)

    def to(self, device: torch.device | str) -> "SupportSet":
        """Return the set with its tensors on ``device``."""

        def moved(t: Tensor) -> Tensor:
            return t.to(device)

        encoded = self.encoded.map(moved)
        joined = encoded if self.joined is self.encoded else self.joined.map(moved)
        others = {name: getattr(self, name) for name in ("evidence", "guide", "negatives")}
        others = {name: value and value.map(moved) for name, value in others.items()}
        return replace(self, encoded=encoded, joined=joined, **others)

    def for_queries(self, count: int) -> tuple[Encoding, Guide | None]:
        """`joined` and `guide` for a number of queries; a set of one episode is repeated, without a copy.

        Raises ValueError for a set of another number of episodes than 1 or ``count``.
        """
        if self.batch_size == count:
            return self.joined, self.guide
        if self.batch_size != 1:
            raise ValueError(f"a support set of {self.batch_size} episodes cannot serve {count} queries")

        def repeated(t: Tensor) -> Tensor:
            return t.expand(count, *t.shape[1:])

        return self.joined.map(repeated), self.guide and self.guide.map(repeated)

    def state(self) -> dict[str, Any]:
        """Return plain strings, numbers and CPU tensors, which `torch.load` reads with ``weights_only``.

        `joined` and `guide` are not among them: the model makes them again, see `restore_support`.
        """
        negatives = self.negatives
        return {
            "method": self.method,
            "shots": self.shots,
            "size": list(self.size),
            "encoded": self.encoded.state(),
            "evidence": self.evidence and self.evidence.state(),
            "negatives": negatives
            and [part and part.state() for part in (negatives.evidence, negatives.encoded)],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], device: torch.device, join: Join) -> "SupportSet":
        """Rebuild a set from `state` on a device, with `joined` made by ``join``.

        Raises ValueError if an entry is missing or does not fit.
        """
        missing = {"method", "shots", "size", "encoded", "evidence", "negatives"} - set(state)
        if missing:
            raise ValueError(f"support set lacks {', '.join(sorted(missing))}: save SupportSet.state()")
        try:
            (height, width), method = state["size"], state["method"]
            encoded = Encoding.from_state(state["encoded"], device)
            evidence = state["evidence"] and Encoding.from_state(state["evidence"], device)
            negatives = None
            if state["negatives"]:
                kept = (part and Encoding.from_state(part, device) for part in state["negatives"])
                negatives = NegativeSet(method, *kept)
            size = int(height), int(width)
            whole = cls(method, int(state["shots"]), size, encoded, encoded, evidence, negatives=negatives)
            return whole.joined_by(join)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"this is no support set ({error}): encode it again") from error


@dataclass(frozen=True)
class QueryFeatures:
    """An encoded batch of queries, to be matched with any number of support sets; made by `encode_query`."""

    method: str  # class name of the model that made it
    images: Tensor  # (B, 3, H, W) RGB, 0 to 255, as given
    encoded: Encoding  # what the method keeps of each query; every tensor is (B, ...)
    evidence: Evidence | None = None  # for the presence of objects; None in training

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
    presence: Tensor | None = None  # (B,) float32 logit that the query shows the object; None in training
    own_presence: Tensor | None = None  # (B,) the same of a method that judges itself, one signal of it

    def probability(self) -> Tensor:
        """(B, H, W): probability of the object."""
        return (self.logits[:, 1] - self.logits[:, 0]).float().sigmoid()

    def lowered(self, by: Tensor) -> Self:
        """The output with the lead of the object lowered by logits (B, H, W)."""
        half = by.to(self.logits.dtype) / 2
        return replace(self, logits=self.logits + torch.stack([half, -half], dim=1))

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
