"""What passes between the three parts of a method: `encode_support`, `encode_query` and `match`."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Self

from fss_d2.modeling.encoding import Encoding
from fss_d2.modeling.evidence import DEEP, Evidence
from fss_d2.modeling.fusion import CROSS_GUIDED, POOLS, VOTES, cross_guided, mean_log_probability
from fss_d2.modeling.layers import resize
from fss_d2.modeling.presence import Guide

__all__ = [
    "Encoding",
    "Masks",
    "NegativeSet",
    "Output",
    "QueryFeatures",
    "SupportSet",
    "Target",
    "checked_shape",
    "episode_name",
    "group_episodes",
    "resize_support",
    "stack_supports",
]

# Fields of `SupportSet` that are kept of each support: every tensor is (B, K, ...).
_OF_SUPPORTS = ("encoded", "evidence", "queries", "masks")
_SURE = 1e-4  # least probability of a label after a vote


@dataclass(frozen=True)
class Masks(Encoding):
    """Masks (B, K, H, W) of supports, in {0, 1, 255}."""

    masks: Tensor


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
    # What `match` reads: the supports of each episode taken together, with the negatives; every tensor is
    # (B, ...). Where supports are matched one by one, it is (B, K, ...): what `match` reads of each.
    joined: Encoding
    evidence: Evidence | None = None  # of each support; every tensor is (B, K, ...)
    guide: Guide | None = None  # what `match` reads of the evidence
    negatives: NegativeSet | None = None
    queries: Encoding | None = None  # this to the last: of cross-guided averaging; each support as a query
    masks: Masks | None = None
    weights: Tensor | None = None  # (B, K) of the supports

    @property
    def batch_size(self) -> int:
        """Number of episodes."""
        return next(iter(self.joined.flat().values())).shape[0]

    def select(self, indices: Sequence[int]) -> "SupportSet":
        """The supports with these indices, at least one, in this order; not joined yet."""
        if not indices or not all(0 <= i < self.shots for i in indices):
            raise ValueError(f"supports {list(indices)} of {self.shots}: give some of 0 to K - 1")
        parts = {n: getattr(self, n) for n in _OF_SUPPORTS}
        some = {n: part and part.map(lambda t: t[:, list(indices)]) for n, part in parts.items()}
        return replace(self, shots=len(indices), **some)

    @staticmethod
    def concatenate(sets: Sequence["SupportSet"]) -> "SupportSet":
        """The supports and negatives of all sets, of the same episodes in the same order; not joined yet.

        Raises ValueError for sets of different image sizes or numbers of episodes, and for no set.
        """
        sizes = sorted({support.size for support in sets})
        counts = sorted({support.batch_size for support in sets})
        if len(sizes) > 1:
            raise ValueError(f"support sets of sizes {', '.join(map(str, sizes))}: encode them at one size")
        if len(counts) != 1:
            numbers = f"support sets of {', '.join(map(str, counts))} episodes" if sets else "no support sets"
            raise ValueError(f"{numbers} to merge: give sets of the same episodes")
        parts = {n: [part for s in sets if (part := getattr(s, n)) is not None] for n in _OF_SUPPORTS}
        whole = {
            n: type(every[0]).concatenate(every) if len(every) == len(sets) else None
            for n, every in parts.items()
        }
        negatives = [support.negatives for support in sets if support.negatives is not None]
        return replace(
            sets[0],
            shots=sum(support.shots for support in sets),
            negatives=NegativeSet.concatenate(negatives) if negatives else None,
            **whole,
        )

    def to(self, device: torch.device | str) -> "SupportSet":
        """Return the set with its tensors on ``device``."""

        def moved(t: Tensor) -> Tensor:
            return t.to(device)

        parts = {name: getattr(self, name) for name in (*_OF_SUPPORTS, "guide", "negatives")}
        parts = {name: value and value.map(moved) for name, value in parts.items()}
        joined = parts["encoded"] if self.joined is self.encoded else self.joined.map(moved)
        weights = None if self.weights is None else moved(self.weights)
        return replace(self, joined=joined, weights=weights, **parts)

    def for_queries(self, count: int) -> "SupportSet":
        """The set with what `match` reads for a number of queries; one episode is repeated, without a copy.

        Raises ValueError for a set of another number of episodes than 1 or ``count``.
        """
        if self.batch_size == count:
            return self
        if self.batch_size != 1:
            raise ValueError(f"a support set of {self.batch_size} episodes cannot serve {count} queries")

        def repeated(t: Tensor) -> Tensor:
            return t.expand(count, *t.shape[1:])

        guide = self.guide and self.guide.map(repeated)
        weights = None if self.weights is None else repeated(self.weights)
        return replace(self, joined=self.joined.map(repeated), guide=guide, weights=weights)

    def each(self) -> list[Encoding]:
        """`joined` of each support, where supports are matched one by one."""
        return [self.joined.map(lambda t, k=k: t[:, k]) for k in range(self.shots)]

    def state(self) -> dict[str, Any]:
        """Return plain strings, numbers and CPU tensors, which `torch.load` reads with ``weights_only``.

        What the model makes again, see `restore_support`, is not among them.
        """
        negatives = self.negatives
        crossed = {n: part.state() for n in ("queries", "masks") if (part := getattr(self, n)) is not None}
        return crossed | {
            "method": self.method,
            "shots": self.shots,
            "size": list(self.size),
            "encoded": self.encoded.state(),
            "evidence": self.evidence and self.evidence.state(),
            "negatives": negatives
            and [part and part.state() for part in (negatives.evidence, negatives.encoded)],
        }

    @classmethod
    def from_state(
        cls, state: Mapping[str, Any], device: torch.device, join: Callable[["SupportSet"], "SupportSet"]
    ) -> "SupportSet":
        """Rebuild a set from `state` on a device; ``join`` makes what is not in it.

        Raises ValueError if an entry is missing or does not fit.
        """
        missing = {"method", "shots", "size", "encoded", "evidence", "negatives"} - set(state)
        if missing:
            raise ValueError(f"support set lacks {', '.join(sorted(missing))}: save SupportSet.state()")
        try:
            (height, width), method = state["size"], state["method"]
            encoded = Encoding.from_state(state["encoded"], device)
            others = {n: state.get(n) for n in _OF_SUPPORTS[1:]}
            others = {n: part and Encoding.from_state(part, device) for n, part in others.items()}
            negatives = None
            if state["negatives"]:
                kept = (part and Encoding.from_state(part, device) for part in state["negatives"])
                negatives = NegativeSet(method, *kept)
            size = int(height), int(width)
            whole = cls(method, int(state["shots"]), size, encoded, encoded, negatives=negatives, **others)
            return join(whole)
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

    def log_probability(self) -> Tensor:
        """(B, 2, H, W) float32: logarithms of the probabilities of background and object."""
        return self.logits.float().log_softmax(dim=1)

    @staticmethod
    def fused(kind: str, outputs: Sequence["Output"], weights: Tensor | None = None) -> "Output":
        """Join the outputs of K shots by one of `FUSIONS`; the logits are log-probabilities.

        ``weights`` (B, K) are those of cross-guided averaging. Maps are averaged, and levels as "average".
        """
        first = outputs[0]
        if kind in VOTES:
            found = torch.stack([o.logits[:, 1] > o.logits[:, 0] for o in outputs], dim=1)  # (B, K, H, W)
            share = VOTES[kind](found).clamp(_SURE, 1 - _SURE)
            logits = torch.stack([1 - share, share], dim=1).log()
        elif kind == CROSS_GUIDED:
            mean = cross_guided([o.logits.float() for o in outputs], weights)
            logits = replace(first, logits=mean).log_probability()
        else:
            logits = POOLS[kind]([o.log_probability() for o in outputs])
        levels = [
            mean_log_probability([level.float() for level in each])
            for each in zip(*(o.levels for o in outputs), strict=True)
        ]
        maps = {name: torch.stack([o.maps[name] for o in outputs]).mean(dim=0) for name in first.maps}
        own = [o.own_presence for o in outputs if o.own_presence is not None]
        return Output(logits, maps, levels, own_presence=torch.stack(own).mean(dim=0) if own else None)

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


def checked_shape(what: str, images: Tensor, masks: Tensor) -> tuple[int, int]:
    """The number of episodes and of images each; ValueError for shapes that do not go together."""
    if images.dim() != 5 or images.shape[2] != 3 or images.shape[1] == 0:
        raise ValueError(f"{what} images are {tuple(images.shape)}: give (B, K, 3, H, W) with K >= 1")
    if masks.shape != (*images.shape[:2], *images.shape[3:]):
        raise ValueError(f"{what} masks {tuple(masks.shape)} do not fit images {tuple(images.shape)}")
    return images.shape[0], images.shape[1]


def episode_name(episode: Mapping[str, Any]) -> str:
    """What errors call an episode."""
    return f"episode {episode.get('episode_index', '?')} (query {episode.get('image_id', '?')})"


def group_episodes(episodes: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Indices of the episodes that can run as one batch, group by group."""
    groups: dict[tuple, list[int]] = defaultdict(list)
    for i, episode in enumerate(episodes):
        if not episode.get("support"):
            raise ValueError(f"{episode_name(episode)}: no support, give at least one image with its mask")
        supports = episode["support"]
        groups[len(supports), episode["image"].shape, supports[0]["image"].shape].append(i)
    return list(groups.values())
