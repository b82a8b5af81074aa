"""Cutting the small slice out of COCO 2017."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "datasets" / "prepare_coco_mini.py"
IDS = [int(line) for line in SCRIPT.with_name("coco_mini_ids.txt").read_text().split()]
OTHER = 1  # an image that is not in the slice


def _run(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--root", str(root)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A COCO whose photographs are a few bytes each."""
    (tmp_path / "coco/annotations").mkdir(parents=True)
    (tmp_path / "coco/train2017").mkdir()
    images = [{"id": i, "file_name": f"{i:012d}.jpg"} for i in (OTHER, *IDS)]
    content = {
        "images": images,
        "annotations": [{"id": 10 + i, "image_id": image["id"]} for i, image in enumerate(images)],
        "categories": [{"id": 1, "name": "person"}],
    }
    (tmp_path / "coco/annotations/instances_train2017.json").write_text(json.dumps(content))
    for image in images:
        (tmp_path / "coco/train2017" / image["file_name"]).write_bytes(str(image["id"]).encode())
    return tmp_path


def test_the_slice_has_its_images_and_their_annotations(coco: Path) -> None:
    result = _run(coco)
    assert result.returncode == 0, result.stderr
    content = json.loads((coco / "coco_mini/annotations/instances_train2017.json").read_text())
    assert len(IDS) == len(set(IDS)) == 421 and OTHER not in IDS
    assert [image["id"] for image in content["images"]] == IDS
    assert [a["image_id"] for a in content["annotations"]] == IDS
    assert content["categories"] == [{"id": 1, "name": "person"}]
    files = sorted((coco / "coco_mini/train2017").iterdir())
    assert [file.name for file in files] == [f"{i:012d}.jpg" for i in IDS]
    assert files[0].read_bytes() == str(IDS[0]).encode()


def test_what_is_missing_is_named(coco: Path) -> None:
    lost = coco / f"coco/train2017/{IDS[7]:012d}.jpg"
    lost.unlink()
    result = _run(coco)
    assert result.returncode == 1 and str(lost) in result.stderr and "Traceback" not in result.stderr
    assert not (coco / "coco_mini/annotations").exists()  # the file that says the slice is complete
    (coco / "coco/annotations/instances_train2017.json").write_text('{"images": [], "annotations": []}')
    assert f"lacks image {min(IDS)}" in _run(coco).stderr
    (coco / "coco/annotations/instances_train2017.json").unlink()
    assert "unpack COCO 2017 there" in _run(coco).stderr
