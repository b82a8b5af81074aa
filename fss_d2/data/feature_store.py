"""Backbone maps kept on disc: one file for each picture and each thing that was done to its pixels."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.data import transforms as T
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fss_d2.io.files import atomic_path

from .images import read_image
from .samples import Sample
from .views import SupportView

__all__ = ["FeatureStore"]

_SUFFIX = ".safetensors"  # which are memory-mapped when they are read


@dataclass(frozen=True)
class FeatureStore:
    """A folder of entries, the maps of one picture each; several processes may use it at once.

    An entry is named after the picture's file (path, size and time of its last change), the view of it and
    the transforms of its pixels. What depends on the backbone names the folder. The files appear whole or
    not at all, and none is changed once it is there.
    """

    folder: Path
    pixels_below: float = 0  # episodes with a lower index keep their pixels, as they are drawn or refined

    def picture(
        self, path: str, sample: Sample, episode_index: int, view: SupportView | None = None
    ) -> dict[str, Any]:
        """Finish a sample of a picture that was loaded without its pixels.

        Args:
            path: of the picture.
            sample: of a `BlankImage`.
            view: the part of the picture that the sample shows; None for all of it.

        Returns:
            "entry": its name here; "image": (3, H, W) uint8, zeros if nothing needs the pixels.
        """
        transform: T.Transform = sample.transform
        entry = _name(path, transform, view)
        if entry in self and episode_index >= self.pixels_below:
            return {"entry": entry, "image": sample.image}
        pixels, _ = read_image(path)
        pixels = transform.apply_image(pixels if view is None else view.of(pixels))
        return {"entry": entry, "image": torch.from_numpy(pixels.transpose(2, 0, 1).copy())}

    def __contains__(self, entry: str) -> bool:
        return self._path(entry).is_file()

    def load(self, entry: str) -> dict[str, Tensor]:
        """Return the maps (C, h, w) of an entry, float16; ValueError for a damaged file."""
        path = self._path(entry)
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} of DATALOADER.FEATURE_CACHE is damaged ({error}): remove it") from error

    def save(self, entry: str, maps: Mapping[str, Tensor]) -> None:
        """Keep the maps of an entry unless another process was faster."""
        if entry not in self:
            with atomic_path(self._path(entry)) as temporary:
                save_file({name: tensor.contiguous() for name, tensor in maps.items()}, temporary)

    def usage(self) -> tuple[int, int]:
        """Return the number of entries and their size in bytes."""
        sizes = [entry.stat().st_size for entry in os.scandir(self.folder) if entry.name.endswith(_SUFFIX)]
        return len(sizes), sum(sizes)

    def _path(self, entry: str) -> Path:
        return self.folder / f"{entry}{_SUFFIX}"


def _name(path: str, transform: T.Transform, view: SupportView | None) -> str:
    """The name of an entry. `done` has the parameters of the transforms, which fix what they do to pixels."""
    state = os.stat(path)
    steps = transform.transforms if isinstance(transform, T.TransformList) else [transform]
    done = [(type(s).__name__, repr(vars(s))) for s in steps if not isinstance(s, T.NoOpTransform)]
    cut = None if view is None else [view.window, view.mirrored]
    parts = [os.path.abspath(path), state.st_size, state.st_mtime_ns, cut, done]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
