import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fss_d2.data.datasets import coco20i, prepare_coco20i
from fss_d2.data.datasets.prepare_coco20i import ImageTask, draw_class_map, index_row
from tests.data.datasets.archives import COCO_TRAIN, box, crowd_rle, snapshot, write_instances
from tests.data.datasets.conftest import Script

OUT = "fss_d2/coco20i"
CONTENT = dict[str, bytes]


def content(root: Path) -> CONTENT:
    return {name: data for name, (_, data) in snapshot(root / OUT).items()}


def test_class_map_pixel_by_pixel(coco_root: Path, script: Script) -> None:
    assert script("coco20i", "--root", coco_root, "--workers", 0, "--class-maps") == 0
    expected = np.zeros((100, 120), np.uint8)
    expected[:61, :61] = 1  # OpenCV fills up to and with the border
    expected[:51, :51] = 2  # later annotations overwrite
    expected[80:91, 90:101] = 2
    with Image.open(coco_root / OUT / "class_maps/train2014/COCO_train2014_000000000009.png") as image:
        assert np.array_equal(np.asarray(image), expected)  # no crowd


def test_corners_are_truncated() -> None:
    shape = {"category_id": 90, "segmentation": [box(1.9, 1.9, 3.0, 3.0)]}
    expected = np.zeros((10, 10), np.uint8)
    expected[1:5, 1:5] = 80
    assert np.array_equal(draw_class_map(10, 10, [shape]), expected)


def test_areas_by_arithmetic(coco_root: Path, script: Script) -> None:
    script("coco20i", "--root", coco_root, "--workers", 0)
    rows = (coco_root / OUT / "train2014.jsonl").read_text().splitlines()[1:]
    four, nine = map(json.loads, rows)  # by rising id; image 5 has no annotation
    areas = [(o["class"], o["area"], o["flat_area"]) for o in nine["objects"]]
    assert areas == [(0, 3600, 61 * 61 - 51 * 51), (1, 2600, 51 * 51 + 11 * 11)]
    assert [(c["class"], c["area"]) for c in nine["crowds"]] == [(2, 90 * 120)]
    assert [(o["area"], o["flat_area"]) for o in four["objects"]] == [(45 * 45, 46 * 46)]


def test_degenerate_polygons_and_foreign_rles() -> None:
    image = {"id": 1, "file_name": "x.jpg", "height": 100, "width": 120}
    empty = {"id": 7, "category_id": 1, "segmentation": [[1, 1, 9, 9]]}
    whole = {"id": 8, "category_id": 1, "segmentation": crowd_rle(10)}
    (entry,) = index_row(ImageTask(image, [empty, whole]))["objects"]
    assert entry["area"] == entry["flat_area"] == 1200
    with pytest.raises(ValueError, match=r"x\.jpg: annotation 8 has neither polygons nor an RLE of"):
        index_row(ImageTask({**image, "width": 121}, [whole]))


def test_second_run_writes_nothing_and_new_json_is_read(coco_root: Path, script: Script) -> None:
    arguments = ("coco20i", "--root", coco_root, "--workers", 0, "--class-maps")
    script(*arguments)
    before = snapshot(coco_root / OUT)
    assert script(*arguments) == 0
    assert snapshot(coco_root / OUT) == before
    write_instances(coco_root, "train2014", COCO_TRAIN[-1:], [4])
    assert script(*arguments) == 0
    assert [r["image_id"] for r in coco20i.load_records("coco20i_fold0_train", coco_root)] == [4]


def test_interrupted_run_goes_on(coco_root: Path, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("coco20i", "--root", coco_root, "--workers", 0, "--class-maps")
    script(*arguments)
    whole = content(coco_root)
    index = coco_root / OUT / "train2014.jsonl"
    header, first, second = index.read_bytes().splitlines(keepends=True)
    index.unlink()
    (coco_root / OUT / "train2014.jsonl.partial").write_bytes(header + first + second[:20])
    png = coco_root / OUT / "class_maps/train2014/COCO_train2014_000000000004.png"
    png.write_bytes(b"")
    built = []

    def spy(task: ImageTask) -> object:
        built.append(task.image["id"])
        return index_row(task)

    monkeypatch.setattr(prepare_coco20i, "index_row", spy)
    assert script(*arguments) == 0
    assert built == [9]  # 4 was in the partial file
    assert content(coco_root) == whole


def test_workers_do_not_change_the_result(coco_root: Path, script: Script) -> None:
    script("coco20i", "--root", coco_root, "--workers", 0, "--class-maps")
    alone = content(coco_root)
    for name in alone:
        (coco_root / OUT / name).unlink()
    assert script("coco20i", "--root", coco_root, "--workers", 2, "--class-maps") == 0
    assert content(coco_root) == alone


def test_lists_as_json(coco_root: Path, script: Script) -> None:
    script("coco20i", "--root", coco_root, "--workers", 0)
    lists = json.loads((coco_root / OUT / "lists/coco20i/fold0_val.json").read_text())
    assert list(lists) == [str(c) for c in range(80)]
    assert lists["0"] == [f"val2014/COCO_val2014_{i:012d}.jpg" for i in (11, 12)]
    assert not any(lists[str(c)] for c in range(1, 80))


def test_check(coco_root: Path, script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    assert script("coco20i", "--root", coco_root, "--check") == 1
    assert "train2014.jsonl not found: run `python datasets/prepare_coco20i.py`" in capsys.readouterr().err
    script("coco20i", "--root", coco_root, "--workers", 0, "--class-maps")
    capsys.readouterr()
    assert script("coco20i", "--root", coco_root, "--check") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["val2014", "annotated", "images", "3", "40137", "DIFFERS"] in lines
    assert ["coco20i_contiguous", "fold", "0", "val", "pairs", "3", "37493", "DIFFERS"] in lines
    (coco_root / OUT / "class_maps/val2014/COCO_val2014_000000000011.png").write_bytes(b"\x89PNG")
    os.remove(coco_root / "coco/val2014/COCO_val2014_000000000012.jpg")
    assert script("coco20i", "--root", coco_root, "--check") == 1
    missing, broken = capsys.readouterr().err.splitlines()
    assert "000000000012.jpg not found" in missing
    assert "000000000011.png is missing or broken" in broken


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not an instances JSON"),
        ("[]", "is not an instances JSON"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "cell"}]}', "not COCO's 80"),
    ],
)
def test_broken_json(
    coco_root: Path, script: Script, capsys: pytest.CaptureFixture[str], text: str, says: str
) -> None:
    path = coco_root / "coco/annotations/instances_val2014.json"
    path.write_text(text)
    assert script("coco20i", "--root", coco_root, "--workers", 0) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {path}")
    assert says in error
    path.unlink()
    assert script("coco20i", "--root", coco_root, "--workers", 0) == 1
    assert f"{path} not found: download the COCO" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("split", "class_id", "image", "says"),
    [("val", 1, 11, "class 1 is not for val of fold 0"), ("trn", 1, 77, "image 77 is not in train2014")],
)
def test_foreign_lists_are_refused(
    coco_root: Path,
    script: Script,
    capsys: pytest.CaptureFixture[str],
    split: str,
    class_id: int,
    image: int,
    says: str,
) -> None:
    folder = coco_root / "lists"
    folder.mkdir()
    for name in (f"{s}_fold{i}.json" for s in ("trn", "val") for i in range(4)):
        (folder / name).write_text("{}")
    (folder / f"{split}_fold0.json").write_text(json.dumps({class_id: [f"x/{image:012d}.jpg"]}))
    assert script("coco20i", "--root", coco_root, "--workers", 0, "--lists", folder) == 1
    assert says in capsys.readouterr().err
    assert not (coco_root / OUT / "lists/hsnet").exists()


def test_genuine_annotations(tmp_path: Path, script: Script, photographs: Path) -> None:
    genuine = photographs / "coco_mini"
    for split in ("train", "val"):
        for year in (2014, 2017):
            path = tmp_path / f"coco/annotations/instances_{split}{year}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(genuine / "annotations/instances_train2017.json")
        (tmp_path / f"coco/{split}2017").symlink_to(genuine / "train2017")
    classes = {}
    for year, variant in ((2014, "coco20i"), (2017, "coco20i_mmformer")):
        command = ("--root", tmp_path, "--workers", 2, "--year", year, "--class-maps")
        assert script("coco20i", *command) == 0
        classes[year] = {
            (record["image_id"], class_id)
            for fold in range(4)
            for record in coco20i.load_records(f"{variant}_fold{fold}_val", tmp_path)
            for class_id in record["classes"]
        }
    # Members of HSNet's lists, though pycocotools draws only 1812 and 1827 pixels of the class ...
    assert {(71, 2), (164, 39)} <= classes[2014]
    # ... and pairs that are not in them, though it draws 1932 and 1871.
    assert not {(327572, 56), (191376, 5)} & classes[2014]
    # Its thinner objects make MM-Former's lists 1.2 % shorter than HSNet's, here and on val2017.
    assert classes[2017] < classes[2014]
    assert (len(classes[2014]), len(classes[2017])) == (944, 933)
