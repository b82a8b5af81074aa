"""The common features of a fold's base classes, as a map of where there are objects (CKMM of JC2A)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .activation import min_max
from .blocks import resize

__all__ = ["NORMALIZATIONS", "SIMILARITIES", "BaseKnowledge"]

SIMILARITIES = ("dot", "cosine")
NORMALIZATIONS = ("min_max", "none", "sigmoid")


class BaseKnowledge(nn.Module):
    """Class-agnostic knowledge mining of JC2A (Huang et al., 2022, Sec. 3.4).

    A buffer holds one prototype per base class, the mean of the frozen backbone's features on its training
    instances (Eq. 11, 12); nothing here is learned. The map is the mean similarity of a pixel to all of them
    (Eq. 13). It is high on objects of any class, including novel ones.

    The prototypes are built before training (`fss_d2.engine.base_prototypes`) and stored in the checkpoint.

    Attributes:
        in_features: backbone outputs that `forward` reads, joined in this order.
        prototypes: buffer (num_classes, channels of all in_features).
    """

    prototypes: Tensor
    filled: Tensor
    mean: Tensor

    def __init__(
        self,
        channels: Mapping[str, int],
        num_classes: int,
        *,
        similarity: str = "dot",
        normalization: str = "min_max",
        hint: str = "fill them",
    ) -> None:
        """
        Args:
            channels: backbone output -> its channels; maps are joined at the size of the first.
            num_classes: base classes of the fold.
            similarity: "dot" (the paper) or "cosine".
            normalization: of the map of each image: "min_max" to [0, 1] as PFENet's prior (the paper leaves
                it open), "sigmoid" or "none".
            hint: for the error if the prototypes were never built: what to do.

        Raises:
            ValueError: no feature, no class, or an unknown similarity or normalization.
        """
        for name, value, known in (
            ("similarity", similarity, SIMILARITIES),
            ("normalization", normalization, NORMALIZATIONS),
        ):
            if value not in known:
                raise ValueError(f"unknown {name} {value!r}: choose from {', '.join(known)}")
        if not channels or num_classes < 1:
            raise ValueError(
                f"channels {dict(channels)} must name a backbone output, num_classes {num_classes} must be "
                "at least 1"
            )
        super().__init__()
        self.in_features = tuple(channels)
        self.similarity = similarity
        self.normalization = normalization
        self.hint = hint
        self.register_buffer("prototypes", torch.zeros(num_classes, sum(channels.values())))
        self.register_buffer("filled", torch.tensor(False))
        # Made of the prototypes at the first call of `forward` after these change: see `_prepare`.
        self.register_buffer("mean", torch.zeros(self.prototypes.shape[1]), persistent=False)
        self._is_prepared = False

    @property
    def num_classes(self) -> int:
        """Number of base classes."""
        return self.prototypes.shape[0]

    def fill(self, prototypes: Tensor) -> None:
        """Set the prototypes: (num_classes, C), zeros for a class without instances, which is left out.

        Raises:
            ValueError: another shape than that of the buffer, values that are not finite, or only zeros.
        """
        fits = prototypes.shape == self.prototypes.shape
        if not (fits and prototypes.isfinite().all() and prototypes.any()):
            raise ValueError(
                f"prototypes {tuple(prototypes.shape)} are not finite, all zero, or not "
                f"{tuple(self.prototypes.shape)}: build them with the same number of classes and features"
            )
        with torch.no_grad():
            self.prototypes.copy_(prototypes)
            self.filled.fill_(True)
        self._is_prepared = False

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._is_prepared = False

    def join(self, features: Mapping[str, Tensor]) -> Tensor:
        """Join maps (B, C_i, h_i, w_i) of `in_features`, given by name: (B, C, h_0, w_0) float32."""
        maps = [features[name].float() for name in self.in_features]
        return torch.cat([resize(m, maps[0].shape[-2:]) for m in maps], dim=1)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Resemblance of each pixel to an object of any base class.

        Args:
            features: of the frozen backbone, (B, C_i, h_i, w_i) each; those of `in_features` are read.

        Returns:
            (B, 1, h_0, w_0) float32, at the first map's size; in [0, 1] unless `normalization` is "none".

        Raises:
            ValueError: the prototypes were never built.
        """
        with torch.autocast(self.prototypes.device.type, enabled=False):  # 1,500 products overflow float16
            if not self._is_prepared:
                self._prepare()
            return self._normalise(self._similarity(features)[:, None])

    @torch.no_grad()
    def _prepare(self) -> None:
        """Check that there are prototypes, and average them; reads a GPU's values back, so only once."""
        if not self.filled:
            raise ValueError(f"the prototypes of the base classes were never built: {self.hint}")
        known = self.prototypes[self.prototypes.any(dim=1)]  # a class without instances has zeros
        known = F.normalize(known, dim=1) if self.similarity == "cosine" else known
        self.mean.copy_(known.mean(dim=0))
        self._is_prepared = True

    def _similarity(self, features: Mapping[str, Tensor]) -> Tensor:
        """Mean over the classes (B, h_0, w_0); both similarities are linear in the prototypes."""
        if self.similarity == "cosine":
            return torch.einsum("bchw,c->bhw", F.normalize(self.join(features), dim=1), self.mean)
        maps = [features[name] for name in self.in_features]
        parts = self.mean.split([m.shape[1] for m in maps])
        products = [torch.einsum("bchw,c->bhw", m.float(), c) for m, c in zip(maps, parts, strict=True)]
        size = products[0].shape[-2:]  # a resize is linear: one channel is resized instead of all
        return sum(resize(p[:, None], size)[:, 0] for p in products)

    def _normalise(self, similarity: Tensor) -> Tensor:
        if self.normalization == "sigmoid":
            return similarity.sigmoid()
        if self.normalization == "none":
            return similarity
        return min_max(similarity)
