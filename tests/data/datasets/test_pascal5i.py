from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fss_d2.data.datasets import pascal5i
from fss_d2.data.datasets.preparation import parse_pairs
from fss_d2.data.datasets.splits import held_out_classes
from fss_d2.data.masks import load_mask
from fss_d2.data.published_episodes import hsnet_pascal
from fss_d2.data.sampler import pairs_of


def classes(name: str, root: Path) -> dict[str, list[int]]:
    return {r["image_id"]: r["classes"] for r in pascal5i.load_records(name, root)}


@pytest.fixture
def root(voc_root: Path) -> Path:
    pascal5i.prepare(voc_root, workers=0, lists=None)
    return voc_root


def test_names_and_metadata() -> None:
    names = pascal5i.names()
    assert len(set(names)) == len(names) == 3 * 8 + 2 * 4
    assert {f"pascal5i_fold{i}_{s}" for i in range(4) for s in ("train", "val")} <= set(names)
    train, val = (pascal5i.metadata(f"pascal5i_fold1_{s}") for s in ("train", "val"))
    assert val["class_ids"] == val["novel_class_ids"] == [5, 6, 7, 8, 9]
    assert train["class_ids"] == train["base_class_ids"] == [*range(5), *range(10, 20)]
    assert [val["stuff_classes"][c] for c in val["class_ids"]] == ["bus", "car", "cat", "chair", "cow"]
    assert (val["ignore_label"], val["fold"], val["evaluator_type"]) == (255, 1, "few_shot_seg")


@pytest.mark.parametrize("interleaved", [True, False])
def test_folds_partition_the_classes(interleaved: bool) -> None:
    folds = [held_out_classes(80, i, interleaved=interleaved) for i in range(4)]
    assert sorted(c for fold in folds for c in fold) == list(range(80))
    assert folds[1][:3] == ([1, 5, 9] if interleaved else [20, 21, 22])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("pascal5i_fold4_val", "fold 4 does not exist"),
        ("pascal6i_fold0_val", "variant one of"),
        ("pascal5i_fold0_val_no_novel", "train splits only"),
    ],
)
def test_wrong_names(name: str, says: str) -> None:
    with pytest.raises(KeyError, match=says):
        pascal5i.metadata(name)


def test_2048_pixel_rule_and_pools(root: Path) -> None:
    # Fold 0 holds out classes 0 to 4: aeroplane (0) and bicycle (1). Bus is class 5.
    assert classes("pascal5i_fold0_val", root) == {"2007_000003": [0]}  # bicycle has 2000 pixels in ..04
    assert classes("pascal5i_fold1_val", root) == {"2007_000003": [5]}
    # Bus has 2000 pixels in ..01; 2008_000006 is in VOC's main val, hence not in PFENet's pool.
    assert classes("pascal5i_fold0_train", root) == {"2007_000002": [5], "2008_000005": [5]}
    assert classes("pascal5i_fold1_train", root) == {"2007_000001": [0]}
    assert classes("pascal5i_trainaug_fold1_train", root) == {"2007_000001": [0], "2008_000006": [1]}


def test_a_query_may_show_a_class_below_the_rule(root: Path) -> None:
    def shown(name: str) -> dict[str, list[int]]:
        return {r["image_id"]: r["query_classes"] for r in pascal5i.load_records(name, root)}

    assert shown("pascal5i_fold0_val") == {"2007_000003": [0]}  # the bus beside it is no class of this fold
    records = pascal5i.val_records(root, range(20))
    assert {r["image_id"]: r["query_classes"] for r in records}["2007_000003"] == [0, 5]
    for record in records:
        assert set(record["classes"]) <= set(record["query_classes"])
    assert (
        shown("pascal5i_trainaug_fold1_train").keys() == classes("pascal5i_trainaug_fold1_train", root).keys()
    )


def test_no_novel_drops_images_with_any_novel_pixel(root: Path) -> None:
    # 2007_000002 shows 80 pixels of bicycle, novel in fold 0.
    assert classes("pascal5i_fold0_train_no_novel", root) == {"2008_000005": [5]}


def test_records_lead_to_the_pixels(root: Path) -> None:
    (record,) = pascal5i.load_records("pascal5i_fold0_val", root)
    assert (record["height"], record["width"]) == (60, 80)
    assert Image.open(record["file_name"]).size == (80, 60)
    mask = load_mask(record, 0)
    assert np.array_equal(np.unique(mask[:26]), [1])
    assert np.array_equal(np.unique(mask[26:55]), [0])  # the bus is background
    assert np.array_equal(np.unique(mask[55:]), [255])


def test_hsnet_lists_keep_their_order(root: Path, tmp_path: Path) -> None:
    lists = tmp_path / "lists"
    lists.mkdir()
    for fold in range(4):
        for split in ("trn", "val"):
            (lists / f"{split}_fold{fold}.txt").write_text("")
    val = ["2007_000004__02", "2007_000003__01", "2008_000006__02", "2007_000001__01"]
    (lists / "val_fold0.txt").write_text("\n".join(val) + "\n")
    (lists / "trn_fold1.txt").write_text("2008_000005__06\n")
    (lists / "trn_fold3.txt").write_text("2007_000002__16\n")
    pascal5i.prepare(root, workers=0, lists=lists)
    records = pascal5i.load_records("pascal5i_hsnet_fold0_val", root)
    pairs = pairs_of(records, pascal5i.metadata("pascal5i_hsnet_fold0_val")["class_ids"])
    assert [f"{i}__{c + 1:02d}" for i, c in pairs] == val
    assert hsnet_pascal(pairs, 1, episodes=5)[4].query == "2007_000004"  # the list, cycled
    # Training: the trn lists of the other folds, in fold order.
    train = classes("pascal5i_hsnet_fold0_train", root)
    assert list(train.items()) == [("2008_000005", [5]), ("2007_000002", [15])]
    assert classes("pascal5i_hsnet_fold1_train", root) == {"2007_000002": [15]}


def test_missing_preparation_and_lists_name_the_command(voc_root: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"val\.txt not found: run `python datasets/prepare_pascal5i"):
        pascal5i.load_records("pascal5i_fold0_val", voc_root)
    pascal5i.prepare(voc_root, workers=0, lists=None)
    with pytest.raises(FileNotFoundError, match=r"val_fold0\.txt not found: .*--lists FOLDER"):
        pascal5i.load_records("pascal5i_hsnet_fold0_val", voc_root)


@pytest.mark.parametrize("line", ["2007_000003", "2007_000003__00", "2007_000003__21", "x__yy"])
def test_list_lines_are_checked(line: str) -> None:
    with pytest.raises(ValueError, match=r"some\.txt:2: .*is not <image id>__<class number"):
        parse_pairs(f"2007_000001__01\n{line}\n", "some.txt", 20)
