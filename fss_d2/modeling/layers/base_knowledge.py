"""What a fold's base classes have in common, as a map of where there are objects (CKMM of JC2A)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .activation import min_max
from .blocks import resize

__all__ = ["BaseKnowledge"]

SIMILARITIES = ("dot", "cosine")
NORMALIZATIONS = ("min_max", "none", "sigmoid")


class BaseKnowledge(nn.Module):
    """Class-agnostic knowledge mining of JC2A (Huang et al., 2022, Sec. 3.4).

    A buffer holds one prototype a base class, the mean of the frozen backbone's features on its training
    instances (Eq. 11, 12); nothing here is learned. The map is the mean similarity of a pixel to all of them
    (Eq. 13), high on objects of any class, also of novel ones.

    The prototypes are built before training (`fss_d2.engine.base_prototypes`) and travel in the checkpoint.

    Attributes:
        in_features: the backbone outputs that `forward` reads, joined in this order.
        prototypes: buffer (num_classes, channels of all in_features).
    """

    prototypes: Tensor
    filled: Tensor

    def __init__(
        self,
        channels: Mapping[str, int],
        num_classes: int,
        *,
        similarity: str = "dot",
        normalization: str = "min_max",
    ) -> None:
        """
        Args:
            channels: backbone output -> its channels; maps are joined at the first one's size.
            num_classes: base classes of the fold.
            similarity: "dot" (the paper) or "cosine".
            normalization: of the map, an image at a time: "min_max" to [0, 1] as PFENet's prior (the paper
                leaves it open), "sigmoid" or "none".

        Raises:
            ValueError: no feature, no class, or an unknown similarity or normalization.
        """
        for key, value, known in (
            ("SIMILARITY", similarity, SIMILARITIES),
            ("NORMALIZATION", normalization, NORMALIZATIONS),
        ):
            if value not in known:
                raise ValueError(
                    f"unknown MODEL.BASE_KNOWLEDGE.{key} {value!r}: choose from {', '.join(known)}"
                )
        if not channels or num_classes < 1:
            raise ValueError(
                f"MODEL.BASE_KNOWLEDGE.IN_FEATURES {tuple(channels)} must name a backbone output, "
                f"NUM_CLASSES {num_classes} must be at least 1"
            )
        super().__init__()
        self.in_features = tuple(channels)
        self.similarity = similarity
        self.normalization = normalization
        self.register_buffer("prototypes", torch.zeros(num_classes, sum(channels.values())))
        self.register_buffer("filled", torch.tensor(False))

    @property
    def num_classes(self) -> int:
        """Number of base classes."""
        return self.prototypes.shape[0]

    def fill(self, prototypes: Tensor) -> None:
        """Set the prototypes: (num_classes, C), zeros for a class without instances, which is left out.

        Raises:
            ValueError: another shape than the buffer's, values that are not finite, or nothing but zeros.
        """
        fits = prototypes.shape == self.prototypes.shape
        if not (fits and prototypes.isfinite().all() and prototypes.any()):
            raise ValueError(
                f"prototypes {tuple(prototypes.shape)} are not finite, all zero, or not "
                f"{tuple(self.prototypes.shape)}: set MODEL.BASE_KNOWLEDGE.NUM_CLASSES and IN_FEATURES to "
                "what they were built with"
            )
        with torch.no_grad():
            self.prototypes.copy_(prototypes)
            self.filled.fill_(True)

    def join(self, features: Mapping[str, Tensor]) -> Tensor:
        """Maps (B, C_i, h_i, w_i) of `in_features`, by name, joined: (B, C, h_0, w_0) float32."""
        maps = [features[name].float() for name in self.in_features]
        return torch.cat([resize(m, maps[0].shape[-2:]) for m in maps], dim=1)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """How much each pixel looks like an object of some base class.

        Args:
            features: of the frozen backbone, (B, C_i, h_i, w_i) each; those of `in_features` are read.

        Returns:
            (B, 1, h_0, w_0) float32, at the first map's size; in [0, 1] unless `normalization` is "none".

        Raises:
            ValueError: the prototypes were never built.
        """
        if not self.filled:
            raise ValueError(
                "the prototypes of the base classes (MODEL.BASE_KNOWLEDGE) were never built: give a trained "
                "checkpoint in MODEL.WEIGHTS, or train, which builds them from DATASETS.TRAIN"
            )
        with torch.autocast(self.prototypes.device.type, enabled=False):  # 1,500 products overflow float16
            return self._normalise(self._similarity(features)[:, None])

    def _similarity(self, features: Mapping[str, Tensor]) -> Tensor:
        """Mean over the classes; both similarities are linear in the prototypes, so one vector does."""
        known = self.prototypes[self.prototypes.any(dim=1)]  # a class without instances has zeros
        if self.similarity == "cosine":
            mean = F.normalize(known, dim=1).mean(dim=0)
            return torch.einsum("bchw,c->bhw", F.normalize(self.join(features), dim=1), mean)
        maps = [features[name] for name in self.in_features]
        parts = known.mean(dim=0).split([m.shape[1] for m in maps])
        products = [torch.einsum("bchw,c->bhw", m.float(), c) for m, c in zip(maps, parts, strict=True)]
        size = products[0].shape[-2:]  # a resize is linear: one channel is resized instead of all
        return sum(resize(p[:, None], size)[:, 0] for p in products)

    def _normalise(self, similarity: Tensor) -> Tensor:
        if self.normalization == "sigmoid":
            return similarity.sigmoid()
        if self.normalization == "none":
            return similarity
        return min_max(similarity)
