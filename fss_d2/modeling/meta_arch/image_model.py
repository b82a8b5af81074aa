"""What every meta-architecture here has: a backbone, frozen or not, and normalised images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.modeling import Backbone
from torch import Tensor, nn
from typing_extensions import Self

from fss_d2.modeling.keys import require

__all__ = ["ImageModel", "ImageOptions"]

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class ImageOptions:
    """How images reach the backbone, and whether the backbone is trained; see the keys of MODEL.BACKBONE.

    Raises ValueError for a normalisation of other than three numbers, or a deviation that is not above 0.
    """

    pixel_mean: Triple = (0.0, 0.0, 0.0)  # RGB, on the scale of the images (0 to 255)
    pixel_std: Triple = (1.0, 1.0, 1.0)
    freeze_backbone: bool = True
    bn_train_stats: bool = False

    def __post_init__(self) -> None:
        _check_pixels("pixel_mean", self.pixel_mean, "pixel_std", self.pixel_std)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "ImageOptions":
        """Read the keys that all models share."""
        mean, std = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
        _check_pixels("MODEL.PIXEL_MEAN", mean, "MODEL.PIXEL_STD", std)
        return cls(
            pixel_mean=tuple(mean),
            pixel_std=tuple(std),
            freeze_backbone=cfg.MODEL.BACKBONE.FREEZE,
            bn_train_stats=cfg.MODEL.BACKBONE.BN_TRAIN_STATS,
        )


def _check_pixels(mean_name: str, mean: Sequence[float], std_name: str, std: Sequence[float]) -> None:
    require(len(mean) == 3, mean_name, mean, "three numbers (RGB)")
    require(len(std) == 3 and min(std) > 0, std_name, std, "three numbers above 0 (RGB)")


class ImageModel(nn.Module):
    """A module with a backbone, which is frozen by default, and further modules that are trained."""

    iteration: int = 0  # of the training, set before each step (`engine.train_loop.SetModelIteration`)
    idle_parameters: bool = False  # some trained parameters get no gradient in some iterations
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, backbone: Backbone, options: ImageOptions) -> None:
        super().__init__()
        self.backbone = backbone
        self.freeze_backbone, self.bn_train_stats = options.freeze_backbone, options.bn_train_stats
        for name, values in (("pixel_mean", options.pixel_mean), ("pixel_std", options.pixel_std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1).float(), persistent=False)
        if self.freeze_backbone:
            backbone.requires_grad_(False)

    @property
    def trainable(self) -> bool:
        """Whether there are parameters to train outside of the backbone."""
        return any(p.requires_grad for p in self._own_parameters())

    @property
    def has_weights(self) -> bool:
        """Whether there are parameters, trained or frozen, outside of the backbone."""
        return any(True for _ in self._own_parameters())

    def _own_parameters(self) -> Iterator[nn.Parameter]:
        return (p for name, p in self.named_parameters() if not name.startswith("backbone."))

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

    def extract(self, images: Tensor, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """The backbone's maps (N, C, h, w) of normalised images (N, 3, H, W); without gradient if frozen.

        ``names`` are those of the maps; None takes the selected ones.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_backbone):
            return self.backbone(images) if names is None else self.backbone(images, names)
