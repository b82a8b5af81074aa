"""What the tests of several tools need."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

import fss_d2  # noqa: F401  isort: skip  (before detectron2: fss_d2.compat)
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

_COLOURS = ((250, 0, 0), (0, 0, 250))


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


@pytest.fixture
def two_classes(tmp_path: Path) -> Iterator[str]:
    """Six grey images (32, 32), each with a red and a blue rectangle of one area; registered."""
    yield from _registered(tmp_path, [(0, 1)] * 6)


@pytest.fixture
def one_class_each(tmp_path: Path) -> Iterator[str]:
    """As `two_classes`; three images show red alone, three blue alone, and two both."""
    yield from _registered(tmp_path, [(0,), (1,), (0,), (1,), (0, 1), (0,), (1,), (0, 1)])


def _registered(tmp_path: Path, shown: Sequence[tuple[int, ...]]) -> Iterator[str]:
    rng = np.random.default_rng(0)
    records = []
    for i, classes in enumerate(shown):
        image, mask = np.full((32, 32, 3), 120, np.uint8), np.zeros((32, 32), np.uint8)
        for class_id in classes:
            colour = _COLOURS[class_id]
            top, left = int(rng.integers(0, 20)), 16 * class_id + int(rng.integers(0, 8))
            image[top : top + 12, left : left + 8] = colour
            mask[top : top + 12, left : left + 8] = class_id + 1
        files = {"file_name": tmp_path / f"{i}.png", "sem_seg_file_name": tmp_path / f"{i}_mask.png"}
        for file, pixels in zip(files.values(), (image, mask), strict=True):
            Image.fromarray(pixels).save(file)
        record = {
            "image_id": i,
            "height": 32,
            "width": 32,
            "classes": list(classes),
            "mask_encoding": "class_map",
        }
        records.append(record | {key: str(file) for key, file in files.items()})
    name = "support_use_test_set"
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(stuff_classes=["red", "blue"], class_ids=[0, 1], ignore_label=255)
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
