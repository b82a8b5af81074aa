"""Tiny datasets on disk for the tests of the data pipeline."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fss_d2  # noqa: F401  (its bridges come before any test imports detectron2)

MakeRecords = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def make_records(tmp_path: Path) -> MakeRecords:
    """Return a function that writes `count` images of `classes` classes and gives their dataset dicts.

    Image i shows class i % classes (as a rectangle) and, if i is a multiple of 3, also the next class.
    """

    def make(count: int = 12, classes: int = 3, size: tuple[int, int] = (40, 56)) -> list[dict[str, Any]]:
        height, width = size
        records = []
        for i in range(count):
            rng = np.random.default_rng(i)
            image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            mask = np.zeros(size, np.uint8)
            shown = [i % classes, (i + 1) % classes] if i % 3 == 0 else [i % classes]
            mask[4:20, 4:30] = shown[0] + 1
            if len(shown) == 2:
                mask[22:36, 20:50] = shown[1] + 1
            mask[0, :] = 255
            Image.fromarray(image).save(tmp_path / f"image{i}.png")
            Image.fromarray(mask).save(tmp_path / f"mask{i}.png")
            records.append(
                {
                    "file_name": str(tmp_path / f"image{i}.png"),
                    "sem_seg_file_name": str(tmp_path / f"mask{i}.png"),
                    "mask_encoding": "class_map",
                    "image_id": f"image{i}",
                    "height": height,
                    "width": width,
                    "classes": sorted(shown),
                }
            )
        return records

    return make
