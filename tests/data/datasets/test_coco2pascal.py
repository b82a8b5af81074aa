from pathlib import Path

import pytest

from fss_d2.data.datasets import coco2pascal, coco20i, pascal5i, prepare_coco20i
from tests.data.datasets.archives import write_coco_2017

# PASCAL classes that COCO-20i's interleaved folds hold out: 6, 4, 6 and 4 of them.
NOVEL = [
    {"person", "aeroplane", "boat", "dog", "chair", "diningtable"},
    {"bicycle", "bus", "horse", "sofa"},
    {"car", "train", "bird", "sheep", "pottedplant", "tvmonitor"},
    {"motorbike", "cat", "cow", "bottle"},
]


@pytest.mark.parametrize("fold", range(4))
def test_metadata(fold: int) -> None:
    val = coco2pascal.metadata(f"coco2pascal_fold{fold}_val")
    assert {val["stuff_classes"][c] for c in val["class_ids"]} == NOVEL[fold]
    assert len(val["stuff_classes"]) == 20
    train = coco2pascal.metadata(f"coco2pascal_fold{fold}_train")
    assert train == coco20i.metadata(f"coco20i_mmformer_fold{fold}_train")


def test_every_name_has_metadata_of_its_fold() -> None:
    for name in coco2pascal.names():
        assert f"fold{coco2pascal.metadata(name)['fold']}" in name
    with pytest.raises(KeyError, match="coco2pascal"):
        coco2pascal.metadata("coco20i_fold0_train")


def test_records(voc_root: Path) -> None:
    write_coco_2017(voc_root)
    pascal5i.prepare(voc_root, workers=0, lists=None)
    prepare_coco20i.prepare(voc_root, year=2017, workers=0, class_maps=True, lists=None)
    train = coco2pascal.load_records("coco2pascal_fold3_train", voc_root)
    assert [(r["image_id"], r["classes"]) for r in train] == [(9, [1])]  # pycocotools draws 45 x 45 of 4
    assert train == coco20i.load_records("coco20i_mmformer_fold3_train", voc_root)
    val = {i: coco2pascal.load_records(f"coco2pascal_fold{i}_val", voc_root) for i in range(4)}
    assert [(r["image_id"], r["classes"]) for r in val[0]] == [("2007_000003", [0])]  # aeroplane
    assert [(r["image_id"], r["classes"]) for r in val[1]] == [("2007_000003", [5])]  # bus
    assert val[2] == val[3] == []


def test_transfer_variants() -> None:
    for fold in range(4):
        test = pascal5i.metadata(f"pascal5i_fold{fold}_val")
        tested = {test["stuff_classes"][c] for c in test["class_ids"]}
        few = coco2pascal.metadata(f"coco15_fold{fold}_train")
        many = coco2pascal.metadata(f"coco75sub_fold{fold}_train")
        assert (len(few["class_ids"]), len(many["class_ids"])) == (15, 75)
        assert set(few["class_ids"]) < set(many["class_ids"])
        assert coco2pascal.metadata(f"coco75sub_fold{fold}_val") == test
        in_coco = {coco2pascal.COCO_NAMES.get(name, name) for name in tested}
        assert {many["stuff_classes"][c] for c in many["novel_class_ids"]} == in_coco


def test_transfer_records(voc_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_coco_2017(voc_root)
    pascal5i.prepare(voc_root, workers=0, lists=None)
    prepare_coco20i.prepare(voc_root, year=2017, workers=0, class_maps=True, lists=None)
    many = coco2pascal.load_records("coco75sub_fold1_train", voc_root)
    few = coco2pascal.load_records("coco15_fold1_train", voc_root)
    assert {r["image_id"] for r in few} <= {r["image_id"] for r in many}
    novel = set(coco2pascal.metadata("coco75sub_fold1_train")["novel_class_ids"])
    assert many and not any(novel & set(r["classes"]) for r in many)
    assert all(r["mask_encoding"] == "class_map" and "train2017" in r["file_name"] for r in many)
    assert coco2pascal.load_records("coco15_fold0_val", voc_root) == pascal5i.load_records(
        "pascal5i_fold0_val", voc_root
    )
    monkeypatch.setattr(coco2pascal, "SUBSET_IMAGES", 1)
    (one,) = coco2pascal.load_records("coco75sub_fold1_train", voc_root)
    assert one in many
    assert [one] == coco2pascal.load_records("coco75sub_fold1_train", voc_root)
