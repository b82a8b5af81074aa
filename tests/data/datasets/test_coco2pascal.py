from pathlib import Path

import pytest

from fss_d2.data.datasets import build_coco, build_pascal, coco2pascal, coco20i
from tests.data.datasets.archives import write_coco

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
    assert train == coco20i.metadata(f"coco20i_fold{fold}_train")


def test_every_name_has_metadata_of_its_fold() -> None:
    for name in coco2pascal.names():
        assert f"fold{coco2pascal.metadata(name)['fold']}" in name
    with pytest.raises(KeyError, match="coco2pascal"):
        coco2pascal.metadata("coco20i_fold0_train")


def test_records(voc_root: Path) -> None:
    write_coco(voc_root)
    build_pascal.prepare(voc_root, workers=0, lists=None)
    build_coco.prepare(voc_root, year=2014, workers=0, class_maps=False, lists=None)
    train = coco2pascal.load_records("coco2pascal_fold3_train", voc_root)
    assert [(r["image_id"], r["classes"]) for r in train] == [(4, [2]), (9, [1])]
    val = {i: coco2pascal.load_records(f"coco2pascal_fold{i}_val", voc_root) for i in range(4)}
    assert [(r["image_id"], r["classes"]) for r in val[0]] == [("2007_000003", [0])]  # aeroplane
    assert [(r["image_id"], r["classes"]) for r in val[1]] == [("2007_000003", [5])]  # bus
    assert val[2] == val[3] == []
