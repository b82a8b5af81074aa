"""What the tests of several tools need."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fss_d2  # noqa: F401  isort: skip  (before detectron2: fss_d2.compat)
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

_COLOURS = ((250, 0, 0), (0, 0, 250))


def _record(folder: Path, number: int, class_id: int) -> dict[str, Any]:
    """A grey image (40, 50) whose left or right part is the object, of class 0 or 1."""
    mask = np.zeros((40, 50), np.uint8)
    mask[:, : 10 + 5 * number] = 255
    image, name = folder / f"{number}_{class_id}.png", folder / f"{number}_{class_id}_mask.png"
    Image.fromarray(np.full((40, 50, 3), 40 * number + 10 * class_id, np.uint8)).save(image)
    Image.fromarray(mask[:, ::-1] if class_id else mask).save(name)
    return {
        "file_name": str(image),
        "image_id": f"{number}_{class_id}",
        "height": 40,
        "width": 50,
        "classes": [class_id],
        "sem_seg_file_name": str(name),
        "mask_encoding": "binary",
    }


def _registered(folder: Path, name: str, classes: Sequence[str]) -> Iterator[str]:
    records = [_record(folder, number, c) for c in range(len(classes)) for number in range(5)]
    DatasetCatalog.register(name, lambda: records)
    ids = list(range(len(classes)))
    MetadataCatalog.get(name).set(stuff_classes=list(classes), class_ids=ids, ignore_label=255)
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.fixture
def dataset(tmp_path: Path) -> Iterator[str]:
    """Five images of one class, each with its own left part as the object; registered."""
    yield from _registered(tmp_path, "visualization_test_set", ["left"])


@pytest.fixture
def two_classes(tmp_path: Path) -> Iterator[str]:
    """Five images of each of two classes; registered."""
    yield from _registered(tmp_path, "visualization_test_pair", ["left", "right"])


@pytest.fixture
def both_colours(tmp_path: Path) -> Iterator[str]:
    """Six grey images (32, 32), each with a red and a blue rectangle of one area; registered."""
    yield from _registered_colours(tmp_path, [(0, 1)] * 6)


@pytest.fixture
def some_colours(tmp_path: Path) -> Iterator[str]:
    """As `both_colours`; three images show red alone, three blue alone, and two both."""
    yield from _registered_colours(tmp_path, [(0,), (1,), (0,), (1,), (0, 1), (0,), (1,), (0, 1)])


def _registered_colours(tmp_path: Path, shown: Sequence[tuple[int, ...]]) -> Iterator[str]:
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
