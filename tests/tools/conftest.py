"""What the tests of several tools need."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import fss_d2  # noqa: F401  isort: skip  (before detectron2: fss_d2.compat)
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image


@pytest.fixture
def dataset(tmp_path: Path) -> Iterator[str]:
    """Five images (40, 50) of one class, each with its own left part as the object; registered."""
    records = []
    for i in range(5):
        mask = np.zeros((40, 50), np.uint8)
        mask[:, : 10 + 5 * i] = 255
        Image.fromarray(np.full((40, 50, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
        Image.fromarray(mask).save(tmp_path / f"{i}_mask.png")
        records.append(
            {
                "file_name": str(tmp_path / f"{i}.png"),
                "image_id": i,
                "height": 40,
                "width": 50,
                "classes": [0],
                "sem_seg_file_name": str(tmp_path / f"{i}_mask.png"),
                "mask_encoding": "binary",
            }
        )
    name = "visualization_test_set"
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(stuff_classes=["left"], class_ids=[0], ignore_label=255)
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
