"""From an episode (ids) to the model's input (pixels)."""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetFromList
from detectron2.data import transforms as T

from .episode import Episode, ImageId
from .masks import IGNORE, load_sample
from .transforms import build_augmentations, build_resize

__all__ = ["FRAMES", "EpisodeMapper", "Sample", "transform_sample"]

FRAMES = ("original", "network", "pfenet_square")

_SUPPORT_REDRAWS = 10  # augmentations tried before a support that loses its object is resized only


@dataclass(frozen=True)
class Sample:
    """One transformed image: image (3, H, W) uint8 RGB, mask (H, W) uint8 in {0, 1, 255}.

    `valid_size`: (height, width) of the part, top left, that is not padding; None where all is image.
    """

    image: torch.Tensor
    mask: torch.Tensor
    valid_size: tuple[int, int] | None = None


def transform_sample(augmentation: T.Augmentation, image: np.ndarray, mask: np.ndarray) -> Sample:
    """Take an image (H, W, 3) uint8 and its mask (H, W) uint8 through an augmentation together."""
    inputs = T.AugInput(image, sem_seg=mask)
    transform = augmentation(inputs)
    pixels = torch.from_numpy(inputs.image.transpose(2, 0, 1).copy())  # (3, H, W)
    return Sample(pixels, torch.from_numpy(inputs.sem_seg.copy()), getattr(transform, "valid_size", None))


class EpisodeMapper:
    """Reads, augments and resizes the query and the supports of an episode.

    The same episode gives the same tensors in every process and worker: its augmentations are drawn from
    generators seeded by (episode.seed, 0 for the query or the support's number), and the state of the
    global generators is put back afterwards.

    A support whose object is lost by augmentation is drawn anew up to ten times, then resized only. An object
    so small that the resize itself loses it gives an all-background mask, as in the reference codes: models
    must bear that. A query may lose its object, too.
    """

    @configurable
    def __init__(
        self,
        *,
        records: Sequence[Mapping[str, Any]],
        resize: T.Augmentation,
        augmentations: Sequence[T.Augmentation] = (),
        augment_supports: bool = True,
        frame: str = "original",
        is_train: bool = False,
    ) -> None:
        """
        Args:
            records: dataset dicts, one for each image.
            resize: brings an image to the network's size where nothing is augmented.
            augmentations: replace `resize` in training; empty = none.
            augment_supports: augment supports as well (independently of the query).
            frame: in which frame evaluation compares: "original", "network" or "pfenet_square".
            is_train: augment, and give no "target".

        Raises:
            ValueError: unknown frame, or two records of one image id.
        """
        if frame not in FRAMES:
            raise ValueError(f"unknown TEST.FRAME {frame!r}; choose one of {', '.join(FRAMES)}")
        self.resize = resize
        self.augmentation = T.AugmentationList(augmentations) if augmentations and is_train else None
        self.augment_supports = augment_supports
        self.frame = frame
        self.is_train = is_train
        self._records = DatasetFromList(list(records), copy=False)  # one buffer that forked workers share
        self._place = {record["image_id"]: i for i, record in enumerate(records)}
        if len(self._place) != len(records):
            raise ValueError(f"{len(records) - len(self._place)} image ids occur twice; make them unique")

    @classmethod
    def from_config(
        cls, cfg: CfgNode, is_train: bool, records: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Arguments from cfg.INPUT and cfg.TEST.FRAME."""
        return {
            "records": records,
            "resize": build_resize(cfg),
            "augmentations": build_augmentations(cfg) if is_train and cfg.INPUT.TRAIN_AUGMENTATIONS else (),
            "augment_supports": cfg.INPUT.AUGMENT_SUPPORTS,
            "frame": cfg.TEST.FRAME,
            "is_train": is_train,
        }

    def __call__(self, episode: Episode) -> dict[str, Any]:
        """Load an episode.

        Returns:
            A dict of
            - image: (3, H, W) uint8 RGB; sem_seg: (H, W) uint8 in {0, 1, 255}, at the network's size;
            - height, width: of the frame in which the scores are wanted;
            - target: (height, width) uint8 in {0, 1, 255}; evaluation only;
            - valid_size: (h, w) of `image` without padding; only where letterboxed, in the original frame;
            - class_id, image_id, episode_index;
            - support: K dicts of image (3, H, W) uint8, mask (H, W) uint8 in {0, 1, 255}, image_id.

        Raises:
            KeyError: an image id is not in the dataset.
            FileNotFoundError, ValueError: a file is missing or wrong; names the file.
        """
        class_id = episode.class_id
        image, mask = load_sample(self._record(episode.query), class_id)
        query = self._prepare(image, mask, (episode.seed, 0), self.is_train, redraws=0)
        supports = []
        for number, image_id in enumerate(episode.supports, start=1):
            sample = self._prepare(
                *load_sample(self._record(image_id), class_id),
                (episode.seed, number),
                self.is_train and self.augment_supports,
                redraws=_SUPPORT_REDRAWS,
            )
            supports.append({"image": sample.image, "mask": sample.mask, "image_id": image_id})
        return {
            "image": query.image,
            "sem_seg": query.mask,
            **self._frame_of(mask, query),
            "class_id": class_id,
            "image_id": episode.query,
            "episode_index": episode.index,
            "support": supports,
        }

    def _record(self, image_id: ImageId) -> Mapping[str, Any]:
        if image_id not in self._place:
            raise KeyError(
                f"image {image_id!r} of an episode is not in the dataset; draw the episodes from it"
            )
        return self._records[self._place[image_id]]

    def _prepare(
        self, image: np.ndarray, mask: np.ndarray, seed: tuple[int, int], augment: bool, redraws: int
    ) -> Sample:
        if self.augmentation is None or not augment:
            return transform_sample(self.resize, image, mask)
        with _seeded(seed):
            for _ in range(redraws + 1):
                sample = transform_sample(self.augmentation, image, mask)
                if redraws == 0 or (sample.mask == 1).any():
                    return sample
        return transform_sample(self.resize, image, mask)

    def _frame_of(self, mask: np.ndarray, query: Sample) -> dict[str, Any]:
        """Size, and in evaluation target, of the frame in which predictions are compared."""
        if self.is_train or self.frame == "network":
            target = query.mask
        elif self.frame == "original":
            target = torch.from_numpy(mask)
        else:  # PFENet: the label top left in a square of ignored pixels
            side = max(mask.shape)
            target = torch.full((side, side), IGNORE, dtype=torch.uint8)
            target[: mask.shape[0], : mask.shape[1]] = torch.from_numpy(mask)
        frame: dict[str, Any] = {"height": target.shape[0], "width": target.shape[1]}
        if not self.is_train:
            frame["target"] = target
            if self.frame == "original" and query.valid_size is not None:
                frame["valid_size"] = query.valid_size
        return frame


@contextmanager
def _seeded(seed: tuple[int, int]) -> Iterator[None]:
    """Seed numpy's and Python's global generators, which Detectron2's augmentations use, for a while."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    number = int(np.random.SeedSequence(seed).generate_state(1)[0])
    np.random.seed(number)
    random.seed(number)
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
