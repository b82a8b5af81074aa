import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fss_d2.data.datasets import coco20i, prepare_coco20i
from fss_d2.data.masks import load_mask
from fss_d2.data.published_episodes import hsnet_coco
from fss_d2.data.sampler import pairs_of
from tests.data.datasets.archives import write_instances

PERSON, BICYCLE, CAR = 0, 1, 2


def prepare(root: Path, **options: Any) -> None:
    prepare_coco20i.prepare(
        root, **{"year": 2014, "workers": 0, "class_maps": False, "lists": None, **options}
    )


def classes(name: str, root: Path) -> dict[int, list[int]]:
    return {r["image_id"]: r["classes"] for r in coco20i.load_records(name, root)}


@pytest.fixture
def root(coco_root: Path) -> Path:
    prepare(coco_root, class_maps=True)
    return coco_root


def test_names_and_metadata() -> None:
    names = coco20i.names()
    assert len(set(names)) == len(names) == 6 * 8 + 5 * 4
    val = coco20i.metadata("coco20i_fold2_val")
    assert val["class_ids"] == list(range(2, 80, 4))
    assert val["stuff_classes"][2] == "car"
    assert coco20i.metadata("coco20i_contiguous_fold2_val")["class_ids"] == list(range(40, 60))
    train = coco20i.metadata("coco20i_flat_fold2_train")
    assert train["class_ids"] == [c for c in range(80) if c % 4 != 2]
    with pytest.raises(KeyError, match="fold 9 does not exist"):
        coco20i.metadata("coco20i_fold9_val")


def test_classes_follow_the_flattened_map(root: Path) -> None:
    # Image 9: of the person's 61 x 61 pixels the bicycle's 51 x 51 leave 1120, below the rule.
    # Image 4: the car fills 46 x 46 = 2116 pixels as OpenCV draws it.
    assert classes("coco20i_fold3_train", root) == {4: [CAR], 9: [BICYCLE]}
    assert classes("coco20i_fold1_train", root) == {4: [CAR]}  # bicycle is held out
    assert classes("coco20i_fold0_val", root) == {11: [PERSON], 12: [PERSON]}
    assert classes("coco20i_fold1_val", root) == {12: [BICYCLE]}  # 41 x 41 pixels in image 13
    assert classes("coco20i_contiguous_fold0_val", root) == {11: [PERSON], 12: [PERSON, BICYCLE]}
    assert classes("coco20i_contiguous_fold1_train", root) == {4: [CAR], 9: [BICYCLE]}


def test_a_query_may_show_a_class_below_the_rule(root: Path) -> None:
    def shown(name: str) -> dict[int, list[int]]:
        return {r["image_id"]: sorted(r["query_classes"]) for r in coco20i.load_records(name, root)}

    assert shown("coco20i_fold3_train") == {4: [CAR], 9: [PERSON, BICYCLE]}  # 1120 pixels of the person
    assert shown("coco20i_flat_fold3_train") == shown("coco20i_fold3_train")
    assert shown("coco20i_fold1_val") == {12: [BICYCLE]}  # image 13 shows too little of it to be listed
    (record,) = coco20i.records_of(root, "train2014", lambda row: [PERSON] if row["image_id"] == 9 else [])
    assert "query_classes" not in record


def test_no_novel_counts_small_objects_and_crowds(root: Path) -> None:
    assert classes("coco20i_fold0_train_no_novel", root) == {4: [CAR]}  # 9 shows a person
    assert classes("coco20i_fold2_train_no_novel", root) == {}  # 4 a car, 9 a crowd of cars


def test_overlapping_objects_keep_all_their_pixels(root: Path) -> None:
    record = next(r for r in coco20i.load_records("coco20i_fold3_train", root) if r["image_id"] == 9)
    person, bicycle, car = (load_mask(record, c) for c in (PERSON, BICYCLE, CAR))
    expected = np.zeros((100, 120), np.uint8)
    expected[:60, :60] = 1
    assert np.array_equal(person, expected)
    expected[:] = 0
    expected[:50, :50] = 1
    expected[80:90, 90:100] = 1  # its second object, in the same RLE
    assert np.array_equal(bicycle, expected)
    expected[:] = 0
    expected[:90] = 255  # a crowd is neither object nor background
    assert np.array_equal(car, expected)
    assert sorted((a["category_id"], a["iscrowd"]) for a in record["annotations"]) == [(0, 0), (1, 0), (2, 1)]


def test_flat_variant_reads_the_map(root: Path) -> None:
    record = next(r for r in coco20i.load_records("coco20i_flat_fold3_train", root) if r["image_id"] == 9)
    person = load_mask(record, PERSON)
    assert person.sum() == 61 * 61 - 51 * 51
    assert not person[:51, :51].any()
    assert "annotations" not in record


def test_images_of_2017_serve_the_2014_split(root: Path) -> None:
    for split in ("train", "val"):
        (root / f"coco/{split}2014").rename(root / f"coco/{split}2017")
    (root / "coco/val2017/000000000004.jpg").touch()  # a train2014 image that 2017 moved to val
    files = [r["file_name"] for r in coco20i.load_records("coco20i_fold3_train", root)]
    assert [Path(f).relative_to(root).as_posix() for f in files] == [
        "coco/val2017/000000000004.jpg",
        "coco/train2017/000000000009.jpg",
    ]


def test_split_of_2017(tmp_path: Path) -> None:
    shape = [[0, 0, 60, 0, 60, 60, 0, 60]]
    for split in ("train", "val"):
        write_instances(
            tmp_path, f"{split}2017", [{"image_id": 5, "category_id": 3, "segmentation": shape}], [5]
        )
    prepare(tmp_path, year=2017)
    (record,) = coco20i.load_records("coco20i_2017_fold2_val", tmp_path)
    assert record["file_name"] == str(tmp_path / "coco/val2017/000000000005.jpg")
    assert Path(record["file_name"]).is_file()


def write_hsnet_lists(folder: Path, **lists: dict[int, list[int]]) -> Path:
    folder.mkdir()
    for split, image_set in (("trn", "train2014"), ("val", "val2014")):
        for fold in range(4):
            given = lists.get(f"{split}{fold}", {})
            paths = {
                str(c): [f"{image_set}/COCO_{image_set}_{i:012d}.jpg" for i in given.get(c, [])]
                for c in range(80)
            }
            (folder / f"{split}_fold{fold}.json").write_text(json.dumps(paths))
    return folder


def test_hsnet_lists_keep_their_order(root: Path, tmp_path: Path) -> None:
    lists = {PERSON: [13, 11, 12], 4: [12, 11], 8: [13, 12]}
    # No order suits class 4 and PERSON both: mend it below.
    folder = write_hsnet_lists(tmp_path / "clash", val0=lists)
    prepare(root, lists=folder)
    assert [r["image_id"] for r in coco20i.load_records("coco20i_hsnet_fold0_val", root)] == [11, 12, 13]

    lists[4] = [11, 12]
    prepare(root, lists=write_hsnet_lists(tmp_path / "lists", val0=lists))
    records = coco20i.load_records("coco20i_hsnet_fold0_val", root)
    pairs = pairs_of(records, range(80))
    assert {c: [i for i, other in pairs if other == c] for c in lists} == lists
    assert len(hsnet_coco(pairs, 1, episodes=3)) == 3
    assert records[0]["mask_encoding"] == "class_map"


def test_missing_files_name_the_mend(coco_root: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train2014\.jsonl not found: run `python"):
        coco20i.load_records("coco20i_fold0_train", coco_root)
    prepare(coco_root)
    with pytest.raises(FileNotFoundError, match="--class-maps"):
        coco20i.load_records("coco20i_flat_fold0_train", coco_root)
    with pytest.raises(FileNotFoundError, match="--lists FOLDER"):
        (coco_root / "fss_d2/coco20i/class_maps/val2014").mkdir(parents=True)
        coco20i.load_records("coco20i_hsnet_fold0_val", coco_root)
    (coco_root / "coco/train2014").rename(coco_root / "gone")
    with pytest.raises(FileNotFoundError, match="train2014 not found: download the COCO images"):
        coco20i.load_records("coco20i_fold0_train", coco_root)


@pytest.mark.parametrize("text", ["[]", "{", '{"0": ["a.png"]}', '{"x": []}', '{"80": []}', '{"0": 3}'])
def test_class_lists_are_checked(text: str) -> None:
    with pytest.raises(ValueError, match=r"^some\.json: "):
        coco20i.parse_class_lists(text, "some.json")
