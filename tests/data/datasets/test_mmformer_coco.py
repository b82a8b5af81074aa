"""MM-Former's COCO: the membership rule against its released lists, its maps, order and episodes."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from fss_d2.config import get_cfg
from fss_d2.data.build import build_test_episodes
from fss_d2.data.datasets import coco20i, prepare_coco20i
from fss_d2.data.masks import load_mask
from tests.data.datasets.archives import COCO_TRAIN, COCO_VAL, box, write_coco_2017, write_instances
from tests.data.datasets.conftest import Script

GOLDEN = Path(__file__).parents[2] / "golden/mmformer_coco_lists.json.gz"
COUNTS = [(3200, 4342), (1928, 2264), (1601, 1780), (1508, 1716)]
SEEDS = [8420323, 27163933, 8162312, 3391510]


@pytest.fixture(scope="module")
def released() -> dict[str, Any]:
    """The images of the lists in their order, the classes of each, and classes that the rule leaves out."""
    return json.loads(gzip.decompress(GOLDEN.read_bytes()))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, released: dict[str, Any]) -> Path:
    """An index of val2017 that is made from the lists: by rising id, with areas on both sides of the rule."""
    root = tmp_path_factory.mktemp("data")
    (root / "coco/val2017").mkdir(parents=True)
    (root / "fss_d2/coco20i/class_maps/val2017").mkdir(parents=True)
    rows = []
    for image_id, classes in sorted(zip(released["images"], released["classes"], strict=True)):
        areas = dict.fromkeys(released["below"].get(str(image_id), []), 2047) | dict.fromkeys(classes, 2048)
        objects = [{"class": c, "area": 9999, "flat_area": n, "rle": ""} for c, n in sorted(areas.items())]
        row = {"image_id": image_id, "file_name": f"{image_id:012d}.jpg", "height": 480, "width": 640}
        rows.append(row | {"objects": objects, "crowds": []})
    lines = [json.dumps(row) for row in ({"index": "coco20i"}, *rows)]
    coco20i.index_path(root, "val2017").write_text("\n".join(lines) + "\n")
    return root


def list_of(released: dict[str, Any], fold: int) -> list[int]:
    pairs = zip(released["images"], released["classes"], strict=True)
    return [image for image, classes in pairs if any(c % 4 == fold for c in classes)]


def install(root: Path, released: dict[str, Any], fold: int) -> Path:
    path = coco20i.mmformer_list_path(root, fold)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": [f"{i:012d}" for i in list_of(released, fold)]}))
    return path


@pytest.mark.parametrize("fold", range(4))
def test_the_rule_gives_the_members_and_a_list_their_order(
    fold: int, root: Path, released: dict[str, Any]
) -> None:
    name = f"coco20i_mmformer_fold{fold}_val"
    records = coco20i.load_records(name, root)
    assert (len(records), sum(len(r["classes"]) for r in records)) == COUNTS[fold]
    listed = dict(zip(released["images"], released["classes"], strict=True))
    assert {r["image_id"]: r["classes"] for r in records} == {
        i: [c for c in listed[i] if c % 4 == fold] for i in list_of(released, fold)
    }
    assert [r["image_id"] for r in records] == sorted(list_of(released, fold))
    path = install(root, released, fold)
    ordered = coco20i.load_records(name, root)
    path.unlink()
    assert [r["image_id"] for r in ordered] == list_of(released, fold)
    assert sorted(ordered, key=lambda r: r["image_id"]) == records


@pytest.mark.parametrize("fold", range(4))
def test_the_released_episodes(
    fold: int, root: Path, released: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replayed by hand: the class among all that the query shows, also those below the rule."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    name = f"coco20i_mmformer_fold{fold}_val"
    cfg = get_cfg()
    cfg.FEW_SHOT.TEST.QUERY_RULE, cfg.FEW_SHOT.TEST.SEED = "mmformer", SEEDS[fold]
    install(root, released, fold)
    episodes = build_test_episodes(cfg, name, 5)
    images, own = list_of(released, fold), dict(zip(released["images"], released["classes"], strict=True))
    files = {c: [i for i in images if c in own[i]] for c in range(fold, 80, 4)}
    rng = random.Random(SEEDS[fold])
    queries = list(images)  # more than 1000
    rng.shuffle(queries)
    below = 0
    for query, episode in zip(queries[:1000], episodes, strict=True):
        shown = sorted(c for c in {*own[query], *released["below"].get(str(query), [])} if c % 4 == fold)
        class_id = shown[rng.randint(1, len(shown)) - 1]
        supports: list[int] = []
        while len(supports) < 5:
            image = files[class_id][rng.randint(1, len(files[class_id])) - 1]
            if image != query and (image not in supports or len(files[class_id]) <= 5):  # hair driers
                supports.append(image)
        assert (episode.query, episode.class_id, list(episode.supports)) == (query, class_id, supports)
        below += class_id not in own[query]
    assert below


def test_maps_are_those_of_pycocotools(tmp_path: Path, script: Script) -> None:
    write_coco_2017(tmp_path)
    assert script("coco20i", "--root", tmp_path, "--workers", 0, "--year", 2017, "--class-maps") == 0
    (record,) = coco20i.load_records("coco20i_mmformer_fold3_train", tmp_path)
    assert (record["image_id"], record["classes"], record["query_classes"]) == (9, [1], [0, 1])
    assert "annotations" not in record
    person, bicycle, car = (load_mask(record, c) for c in range(3))
    expected = np.zeros((100, 120), np.uint8)
    expected[:60, :60] = 1
    expected[:50, :50] = 0  # the later bicycle covers the person
    assert np.array_equal(person, expected)
    assert bicycle.sum() == 50 * 50 + 10 * 10
    assert not car.any()  # a crowd is background
    # Image 4: 45 x 45 pixels, though OpenCV draws 46 x 46, which are enough in 2014.
    assert not coco20i.load_records("coco20i_mmformer_fold1_train", tmp_path)
    maps = tmp_path / "fss_d2/coco20i/class_maps"
    assert cv2.imread(str(maps / "train2017/000000000004.png"), 0).astype(bool).sum() == 45 * 45


def test_2048_pixels_are_enough(tmp_path: Path) -> None:
    write_instances(tmp_path, "train2017", COCO_TRAIN, [9, 5, 4])
    exactly = {"image_id": 12, "category_id": 3, "segmentation": [box(0, 0, 64, 32)]}
    fewer = {"image_id": 11, "category_id": 3, "segmentation": [box(0, 0, 23, 89)]}
    write_instances(tmp_path, "val2017", [exactly, fewer], [11, 12])
    prepare_coco20i.prepare(tmp_path, year=2017, workers=0, class_maps=True, lists=None)
    records = coco20i.load_records("coco20i_mmformer_fold2_val", tmp_path)
    assert [r["image_id"] for r in records] == [12]
    written = json.loads((tmp_path / "fss_d2/coco20i/lists/coco20i_mmformer/fold2_val.json").read_text())
    assert written["2"] == ["val2017/000000000012.jpg"]


def test_lists_are_installed_and_checked(
    tmp_path: Path, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    write_instances(tmp_path, "train2017", COCO_TRAIN, [9, 5, 4])
    third = {"image_id": 13, "category_id": 1, "segmentation": [box(0, 0, 90, 90)]}
    write_instances(tmp_path, "val2017", [*COCO_VAL, third], [13, 12, 11])
    folder = tmp_path / "lists"
    folder.mkdir()
    for fold in range(4):
        images = ["val2017/000000000013.jpg", "000000000011"] if fold == 0 else []
        (folder / f"val_fold{fold}.json.gz").write_bytes(
            gzip.compress(json.dumps({"images": images}).encode())
        )
    command = (
        "coco20i",
        "--root",
        tmp_path,
        "--workers",
        0,
        "--year",
        2017,
        "--class-maps",
        "--lists",
        folder,
    )
    assert script(*command) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "coco20i_mmformer fold 0 val images 3 3200 DIFFERS" in lines
    assert "coco20i_mmformer fold 0 val images of the list 2 2 same" in lines
    records = coco20i.load_records("coco20i_mmformer_fold0_val", tmp_path)
    assert [r["image_id"] for r in records] == [13, 11, 12]  # what the list lacks comes last
    (folder / "val_fold3.json.gz").write_bytes(gzip.compress(b'{"images": [77]}'))
    assert script(*command) == 1
    assert "val_fold3.json: image 77 is not in val2017: check the list" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[]", "{", '{"images": ["a.png"]}', '{"images": 3}', '{"classes": {}}'])
def test_lists_of_images_are_checked(text: str) -> None:
    with pytest.raises(ValueError, match=r"^some\.json: not JSON of the form"):
        coco20i.parse_image_list(text, "some.json")
