"""Read COCO and LabelMe files with random faults: each is read, or refused in one line that names it.

``python -m tests.label.annotation_faults FOLDER SECONDS SEED``. The memory of the process is limited; the
last line on stderr is the file that was read last.
"""

import base64
import copy
import io
import json
import random
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fss_d2.data.datasets.coco_json import CocoSettings, read_coco_records
from fss_d2.data.datasets.splits import ClassDivision
from fss_d2.data.masks import load_sample
from fss_d2.label.supports import read_supports

SPARE_MEMORY = 2**29  # bytes
PACKED = "S36j00000000000000000000000000000000m;"  # of 32 x 32 pixels


def row(number: int, category: int, segmentation: Any, **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": number, "category_id": category, "segmentation": segmentation} | more


COCO = {
    "images": [{"id": i, "file_name": f"{i}.png", "height": 32, "width": 32} for i in range(3)],
    "categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}],
    "annotations": [
        row(0, 7, [[4, 4, 20.5, 4, 20, 20]], bbox=[1, 2, 3, 4]),
        row(1, 9, {"size": [32, 32], "counts": PACKED}, iscrowd=1),
        row(2, 7, {"size": [32, 32], "counts": [100, 50, 874]}),
        row(3, 9, {"size": [32, 32], "counts": PACKED}, iscrowd=0, image_id=1),
        row(4, 9, [], bbox=[3, 4, 5, 6], image_id=2),
    ],
}


def shape(label: str, points: list[list[int]], kind: str = "polygon", **more: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "shape_type": kind, **more}


def labelme() -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.new("L", (24, 20), 255).save(buffer, format="PNG")
    shapes = [
        shape("cat", [[1, 1], [20, 1], [20, 20]]),
        shape("dog", [[3, 3], [12, 14]], "rectangle"),
        shape("cat", [[10, 10], [14, 14]], "circle"),
        shape("__ignore__", [[0, 0], [5, 0], [5, 5]]),
        shape("dog", [[2, 2], [25, 21]], "mask", mask=base64.b64encode(buffer.getvalue()).decode()),
        shape("dog", [[2, 2], [25, 2], [25, 21], [2, 21]], "rotation"),
    ]
    return {"imagePath": "0.png", "imageHeight": 32, "imageWidth": 32, "shapes": shapes}


VALUES = [
    *(float("nan"), float("inf"), -float("inf"), 1e9, -3e8, 2**31, 2**63, 10**30, 1e300, -1, 0, 1, 0.5, 33),
    *(None, True, "x", "7", "", [], {}, [[]], [None], [1, 2, 3], [[1, 2], [3, 4]], "0", "oooo", "\0", ".."),
    *("a/" * 900, [10**9, 10**9], [[1e9] * 6], {"size": [32, 32], "counts": [2**40]}, {"x": 1, "y": 2}),
]


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """All containers in a JSON value with their keys."""
    for key, child in list(value.items()) if isinstance(value, dict) else list(enumerate(value)):
        yield value, key
        if isinstance(child, dict | list):
            yield from places(child)


def spoiled(content: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """A copy with one to four faults."""
    content, choose = copy.deepcopy(content), random.Random(int(rng.integers(2**32))).choice
    for _ in range(choose([1, 1, 1, 2, 4])):
        where, key = choose(list(places(content)))
        old, action = where[key], rng.random()
        if action < 0.15:
            del where[key]
        elif action < 0.3 and isinstance(where, list):
            where.insert(key, copy.deepcopy(old))
        elif action < 0.5 and isinstance(old, str) and old:
            cut = int(rng.integers(len(old)))
            where[key] = old[:cut] + choose(["", "o", "0", "S", old]) + old[cut + int(rng.integers(2)) :]
        elif action < 0.6 and isinstance(old, int | float):
            where[key] = old * choose([-1, 2, 100, 10**7, 0.1])
        else:
            where[key] = copy.deepcopy(choose(VALUES))
    return content


def support_masks(path: Path) -> list[np.ndarray]:
    return [support.mask for many in read_supports(path).values() for support in many]


def dataset_masks(path: Path) -> list[np.ndarray]:
    """As for training: what cannot be read is left out."""
    settings = CocoSettings(path, path.parent, None, 0, False, 0.0, ClassDivision("faults"))
    records, _ = read_coco_records(settings)
    return [load_sample(record, class_id)[1] for record in records for class_id in record["classes"]]


def main(folder: Path, seconds: float, seed: int) -> None:
    """Read spoiled files for some time, and print how many were read and refused."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + SPARE_MEMORY, used + SPARE_MEMORY))
    for i in range(3):
        Image.new("RGB", (32, 32)).save(folder / f"{i}.png")
    rng, originals = np.random.default_rng(seed), (COCO, labelme())
    counts, end = {"read": 0, "refused": 0, "slowest": 0.0}, time.monotonic() + seconds
    while time.monotonic() < end:
        text = json.dumps(spoiled(originals[int(rng.integers(2))], rng))
        (folder / "x.json").write_text(text)
        print(text, file=sys.stderr, flush=True)
        started = time.process_time()
        for masks in (support_masks, dataset_masks):
            try:
                for mask in masks(folder / "x.json"):
                    assert np.isin(mask, (0, 1, 255)).all() and (mask == 1).any()
                counts["read"] += 1
            except (ValueError, FileNotFoundError) as error:
                assert "\n" not in str(error), str(error)
                named = "x.json" in str(error) and len(str(error)) < 1000
                assert named or masks is dataset_masks, str(error)
                counts["refused"] += 1
        counts["slowest"] = max(counts["slowest"], time.process_time() - started)
    print(json.dumps(counts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
