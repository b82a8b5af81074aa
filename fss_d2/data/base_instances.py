"""Training images with the masks of a fold's base classes, as at test time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.data import transforms as T
from torch import Tensor
from torch.utils.data import Dataset

from .images import read_image
from .masks import load_mask, upright_mask
from .samples import transform_sample
from .segments import Segment

__all__ = ["BaseInstances", "Instances"]


@dataclass(frozen=True)
class Instances:
    """An image (3, H, W) uint8 with the masks (N, H, W) in {0, 1, 255} of the base classes that it shows.

    `classes`: (N,) int64, places in the list of base classes.
    """

    image: Tensor
    masks: Tensor
    classes: Tensor


class BaseInstances(Dataset[Instances]):
    """The images of a training set as at test time, with the masks of its base classes and of no other.

    Args:
        records: dataset dicts.
        class_ids: the base classes.
        resize: brings an image to the network's size.
        min_pixels: of the original mask that an instance must have.
    """

    def __init__(
        self,
        records: Sequence[Mapping[str, Any]],
        class_ids: Sequence[int],
        resize: T.Augmentation,
        min_pixels: int,
    ) -> None:
        self.place = {class_id: i for i, class_id in enumerate(class_ids)}
        self.records = [r for r in records if not self.place.keys().isdisjoint(r["classes"])]
        self.resize = resize
        self.min_pixels = min_pixels

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Instances:
        record = self.records[index]
        image, orientation = read_image(record["file_name"])
        found = []
        for class_id in sorted(self.place.keys() & set(record["classes"])):
            mask = upright_mask(load_mask(record, class_id), image, orientation, record)
            if np.count_nonzero(mask == 1) >= max(self.min_pixels, 1):
                found.append(Segment(self.place[class_id], mask))
        sample = transform_sample(self.resize, image, np.zeros(image.shape[:2], np.uint8), found)
        masks = [torch.from_numpy(segment.mask) for segment in sample.segments]
        return Instances(
            sample.image,
            torch.stack(masks) if masks else sample.mask[None][:0],
            torch.tensor([segment.label for segment in sample.segments], dtype=torch.int64),
        )
