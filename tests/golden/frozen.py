"""Episodes of INSID3 and FROST given as features: what the encoder yields is stored, masks are as drawn."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.layers import ShapeSpec
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from fss_d2.modeling.backbone.base import FeatureBackbone
from fss_d2.modeling.meta_arch.contract import QueryFeatures, SupportSet
from fss_d2.modeling.meta_arch.training_free import TrainingFree

FOLDER = Path(__file__).parent


class Encoder(FeatureBackbone):
    """Yields the features of the black picture, whatever it is given."""

    def __init__(self, black: Tensor) -> None:
        super().__init__()
        self.black = black[None]
        self._declare({"res5": ShapeSpec(channels=len(black), stride=16)})

    def _features(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        yield "res5", self.black


@dataclass(frozen=True)
class Golden:
    """One stored episode and what the authors' code makes of it."""

    meta: dict[str, Any]
    arrays: dict[str, Tensor]

    @classmethod
    def load(cls, name: str) -> "Golden":
        """Read a file by its name without the ending."""
        with np.load(FOLDER / f"{name}.npz") as file:
            arrays = {key: torch.from_numpy(file[key]) for key in file.files if key != "meta"}
            return cls(json.loads(str(file["meta"])), arrays)

    def __getitem__(self, name: str) -> Tensor:
        return self.arrays[name]

    @property
    def backbone(self) -> Encoder:
        """The encoder that the features came from."""
        return Encoder(self["zero_features"].float() / 16)

    def encode(self, model: TrainingFree) -> tuple[QueryFeatures, SupportSet]:
        """The target and the references, by the model."""
        shots, side = self.meta["shots"], self.meta["image_size"]
        features = self["features"].float() / 16
        masks = F.interpolate(self["masks"][None].float(), (side, side), mode="nearest")
        given = {"res5": features[:shots]}
        if len(features) > shots + 1:
            given["mirrored.res5"] = features[shots : 2 * shots]
        images = torch.zeros(1, shots, 3, side, side)
        support = model.encode_support(images, (masks > 0).to(torch.uint8), given)
        return model.encode_query(self.target, {"res5": features[-1:]}), support

    @property
    def target(self) -> Tensor:
        """The target picture (1, 3, S, S); black where it is not stored."""
        side = self.meta["image_size"]
        if "target_rgb" not in self.arrays:
            return torch.zeros(1, 3, side, side)
        picture = Image.fromarray(self["target_rgb"].numpy())
        pixels = np.array(picture.resize((side, side), Image.Resampling.BILINEAR))
        return torch.from_numpy(pixels).permute(2, 0, 1)[None]

    def wrong_share(self, logits: Tensor) -> float:
        """Share of the pixels of the final mask that logits (1, 2, S, S) get wrong, in two steps."""
        found = (logits[:, 1:] > logits[:, :1]).float()
        size = tuple(self.meta["out_size"])
        found = F.interpolate(found, size, mode="bilinear", align_corners=False)[0, 0] > 0.5
        return float((found != self["final"].bool()).float().mean())


def close(ours: Tensor, golden: Tensor, tolerance: float) -> None:
    """Largest error over the largest value."""
    assert ours.shape == golden.shape
    error = (ours - golden).abs().max() / golden.abs().max().clamp(min=1e-12)
    assert error <= tolerance, f"{error:.2e}"
