"""What every meta-architecture here has: a backbone, frozen or not, and the normalisation of its images."""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import Backbone
from torch import Tensor, nn
from typing_extensions import Self

__all__ = ["ImageModel"]


class ImageModel(nn.Module):
    """A module with a backbone that stays as it is while the rest is trained, unless told otherwise.

    Attributes:
        trainable: the model has something to learn.
        iteration: of the training, set before each step (`fss_d2.engine.hooks.TellIteration`).
        idle_parameters: some parameters that learn get no gradient in some iterations.
    """

    trainable: bool = True
    iteration: int = 0
    idle_parameters: bool = False

    def __init__(
        self,
        *,
        backbone: Backbone,
        pixel_mean: Sequence[float] = (0.0, 0.0, 0.0),
        pixel_std: Sequence[float] = (1.0, 1.0, 1.0),
        freeze_backbone: bool = True,
        bn_train_stats: bool = False,
    ) -> None:
        """
        Args:
            backbone: the feature extractor.
            pixel_mean, pixel_std: normalisation, RGB, on the scale of the images (0 to 255).
            freeze_backbone: no gradient for the backbone, and eval mode also while training.
            bn_train_stats: keep a frozen backbone in train mode while training (batch statistics).

        Raises:
            ValueError: a normalisation that is not three numbers each, or divides by 0.
        """
        if len(pixel_mean) != 3 or len(pixel_std) != 3 or min(pixel_std) <= 0:
            raise ValueError(
                f"MODEL.PIXEL_MEAN {list(pixel_mean)} and PIXEL_STD {list(pixel_std)}: give three numbers "
                f"each (RGB), the deviations above 0"
            )
        super().__init__()
        self.backbone = backbone
        self.freeze_backbone = freeze_backbone
        self.bn_train_stats = bn_train_stats
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(3, 1, 1).float(), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(3, 1, 1).float(), persistent=False)
        if freeze_backbone:
            backbone.requires_grad_(False)

    @staticmethod
    def image_arguments(cfg: CfgNode) -> dict[str, Any]:
        """Read this class's arguments, the backbone apart."""
        return {
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "freeze_backbone": cfg.MODEL.BACKBONE.FREEZE,
            "bn_train_stats": cfg.MODEL.BACKBONE.BN_TRAIN_STATS,
        }

    @classmethod
    def learns(cls, cfg: CfgNode) -> bool:
        """Whether a model built from a config would be `trainable`, without building it."""
        return cls.trainable

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.pixel_mean.device

    def train(self, mode: bool = True) -> Self:
        """Set the mode; a frozen backbone stays in eval mode."""
        super().train(mode)
        if self.freeze_backbone and not self.bn_train_stats:
            self.backbone.eval()
        return self

    def normalise(self, images: Tensor) -> Tensor:
        """Bring (..., 3, H, W) RGB images, 0 to 255, to the model's device, mean 0 and deviation 1."""
        return (images.to(self.device, torch.float32) - self.pixel_mean) / self.pixel_std

    def extract(self, images: Tensor) -> dict[str, Tensor]:
        """Selected backbone features of normalised images (N, 3, H, W); without gradient if frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_backbone):
            return self.backbone(images)
