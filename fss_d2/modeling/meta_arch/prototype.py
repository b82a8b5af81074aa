"""The training-free baseline: masked average pooling and cosine similarity."""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor
from torch.nn import functional as F

from fss_d2.modeling.build import build_few_shot_backbone
from fss_d2.modeling.keys import config_keys
from fss_d2.modeling.layers import area_fraction, masked_average, resize

from .few_shot import FewShotSegmentor
from .support import SupportSet

__all__ = ["Prototype"]


@config_keys
def add_keys(cfg: CfgNode) -> None:
    """Keys of the training-free baseline."""
    cfg.MODEL.PROTOTYPE = CfgNode()
    cfg.MODEL.PROTOTYPE.IN_FEATURES = ("res4", "res5")  # resized to the first one and joined
    cfg.MODEL.PROTOTYPE.TEMPERATURE = 0.05  # of the two cosines in the softmax


@META_ARCH_REGISTRY.register()
class Prototype(FewShotSegmentor):
    """Cosine similarity to one object and one background prototype; nothing is learned.

    Feature levels are brought to the first one's size, scaled to unit length each and joined, so that every
    level has the same say. A prototype is the mean over all its pixels in all supports together (not the
    mean of one prototype a support): a support that shows little of the object then adds little noise.
    A cell counts by the share of its pixels in the mask; pixels marked 255 are in neither prototype.
    """

    trainable = False

    @configurable
    def __init__(self, *, in_features: Sequence[str], temperature: float = 0.05, **base: Any) -> None:
        """
        Args:
            in_features: backbone outputs, the first gives the size.
            temperature: divides the cosines to give logits.
            base: see `FewShotSegmentor`.

        Raises:
            ValueError: no backbone output, or a temperature that is not positive.
            KeyError: the backbone lacks an output.
        """
        if not in_features or temperature <= 0:
            raise ValueError(
                f"MODEL.PROTOTYPE.IN_FEATURES {tuple(in_features)} needs a name, "
                f"MODEL.PROTOTYPE.TEMPERATURE {temperature} must be above 0"
            )
        super().__init__(**base)
        self.in_features = tuple(in_features)
        self.temperature = temperature
        self.backbone.select(self.in_features)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments from MODEL.PROTOTYPE and the backbone's keys."""
        return {
            **cls.base_arguments(cfg),
            "backbone": build_few_shot_backbone(cfg),
            "in_features": cfg.MODEL.PROTOTYPE.IN_FEATURES,
            "temperature": cfg.MODEL.PROTOTYPE.TEMPERATURE,
        }

    def _joined_features(self, images: Tensor) -> Tensor:
        features = self.extract(images)
        size = features[self.in_features[0]].shape[-2:]
        levels = [resize(features[name], size, align_corners=False) for name in self.in_features]
        return torch.cat([F.normalize(level, dim=1) for level in levels], dim=1)  # (N, sum of C, h, w)

    def _encode(self, images: Tensor, masks: Tensor) -> dict[str, Tensor]:
        features = self._joined_features(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        size = tuple(features.shape[-2:])
        pooled = [masked_average(features, area_fraction(masks == value, size)) for value in (0, 1)]
        return {"prototypes": F.normalize(torch.stack(pooled, dim=1), dim=2)}  # (B, 2, C)

    def _decode(self, images: Tensor, support: SupportSet) -> tuple[Tensor, dict[str, Tensor]]:
        features = F.normalize(self._joined_features(images), dim=1)
        cosine = torch.einsum("bchw,bnc->bnhw", features, support.tensors["prototypes"])
        logits = resize(cosine / self.temperature, images.shape[-2:], align_corners=self.align_corners)
        return logits, {"cosine": cosine}
