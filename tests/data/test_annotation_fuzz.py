"""Annotation files with random faults: read, or refused with ValueError, in bounded time and memory."""

import subprocess
import sys
from pathlib import Path

import pytest

_PROGRAM = '''
import base64, copy, io, json, random, resource, sys, time
from pathlib import Path
import numpy as np
from PIL import Image
from fss_d2.label.supports import read_supports

kind, folder, seconds = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
used = 1024 * int(open("/proc/self/statm").read().split()[0]) * 4
resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, used + 2**29))
rng = random.Random(7)
for i in range(3):
    Image.new("RGB", (32, 32)).save(folder / f"{i}.png")
buffer = io.BytesIO()
Image.new("L", (24, 20), 255).save(buffer, format="PNG")
COCO = {
    "images": [{"id": i, "file_name": f"{i}.png", "height": 32, "width": 32} for i in range(3)],
    "categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}],
    "annotations": [
        {"id": 0, "image_id": 0, "category_id": 7, "segmentation": [[4, 4, 20.5, 4, 20, 20]], "bbox": [1, 2, 3, 4]},
        {"id": 1, "image_id": 1, "category_id": 9, "segmentation": {"size": [32, 32], "counts": "S36j0000000000000000"
         "0000000000000000m;"}, "iscrowd": 1},
        {"id": 2, "image_id": 2, "category_id": 7, "segmentation": {"size": [32, 32], "counts": [100, 50, 874]}},
        {"id": 3, "image_id": 1, "category_id": 9, "segmentation": {"size": [32, 32], "counts": "S36j0000000000000000"
         "0000000000000000m;"}, "iscrowd": 0},
    ],
}
def labelme(label, points, kind="polygon", **more):
    return {"label": label, "points": points, "shape_type": kind, **more}
LABELME = {
    "imagePath": "0.png", "imageHeight": 32, "imageWidth": 32,
    "shapes": [
        labelme("cat", [[1, 1], [20, 1], [20, 20]]), labelme("dog", [[3, 3], [12, 14]], "rectangle"),
        labelme("cat", [[10, 10], [14, 14]], "circle"), labelme("__ignore__", [[0, 0], [5, 0], [5, 5]]),
        labelme("dog", [[2, 2], [25, 21]], "mask", mask=base64.b64encode(buffer.getvalue()).decode()),
        labelme("dog", [[2, 2], [25, 2], [25, 21], [2, 21]], "rotation"),
    ],
}
VALUES = [float("nan"), float("inf"), -float("inf"), 1e9, -3e8, 2**31, 2**63, 10**30, 1e300, -1, 0, 1, 0.5, 33, None,
          True, "x", "7", "", [], {}, [[]], [None], [1, 2, 3], [[1, 2], [3, 4]], "0", "oooo", [10**9, 10**9], "\\0",
          "..", "a/" * 900, [[1e9] * 6], {"size": [32, 32], "counts": [2**40]}, {"x": 1, "y": 2}]
def places(value):
    """All containers in a JSON value with their keys."""
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    for key, child in items:
        yield value, key
        if isinstance(child, (dict, list)):
            yield from places(child)
def spoil(content):
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        where, key = rng.choice(list(places(content)))
        old, action = where[key], rng.random()
        if action < 0.15:
            del where[key]
        elif action < 0.3 and isinstance(where, list):
            where.insert(key, copy.deepcopy(old))
        elif action < 0.5 and isinstance(old, str) and old:
            cut = rng.randrange(len(old))
            where[key] = old[:cut] + rng.choice(["", "o", "0", "S", old]) + old[cut + rng.randrange(2):]
        elif action < 0.6 and isinstance(old, (int, float)):
            where[key] = old * rng.choice([-1, 2, 100, 10**7, 0.1])
        else:
            where[key] = copy.deepcopy(rng.choice(VALUES))
    return content
counts, end, slowest = {"read": 0, "refused": 0}, time.monotonic() + seconds, 0.0
while time.monotonic() < end:
    content = spoil(copy.deepcopy(COCO if kind == "coco" else LABELME))
    text = json.dumps(content)
    (folder / "x.json").write_text(text)
    print(text, file=sys.stderr)  # the last line is what a crash was made of
    started = time.process_time()
    try:
        supports = read_supports(folder / "x.json")
        assert all(np.isin(s.mask, (0, 1, 255)).all() and (s.mask == 1).any() for c in supports.values() for s in c)
        counts["read"] += 1
    except (ValueError, FileNotFoundError) as error:
        assert "x.json" in str(error) and len(str(error).splitlines()) == 1 and len(str(error)) < 1000, str(error)
        counts["refused"] += 1
    slowest = max(slowest, time.process_time() - started)
print(json.dumps(counts | {"slowest": slowest}))
'''


@pytest.mark.parametrize("kind", ["coco", "labelme"])
def test_random_faults(kind: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _PROGRAM, kind, str(tmp_path), "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, "\n".join(done.stderr.splitlines()[-20:])
    counts = eval(done.stdout.splitlines()[-1])
    assert counts["read"] > 10 and counts["refused"] > 30
    assert counts["slowest"] < 2
