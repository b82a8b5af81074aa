from pathlib import Path

import numpy as np
import pytest
from detectron2.data import MetadataCatalog

from fss_d2.data.datasets import fss1000
from fss_d2.data.masks import load_mask
from fss_d2.data.published_episodes import hsnet_fss
from fss_d2.data.sampler import pairs_of


def test_metadata_of_the_published_split() -> None:
    ids = {s: fss1000.metadata(f"fss1000_{s}")["class_ids"] for s in ("train", "val", "test")}
    assert [len(ids[s]) for s in ids] == [520, 240, 240]
    assert (ids["train"][0], ids["val"][0], ids["test"][0]) == (0, 520, 760)
    assert fss1000.metadata("fss1000_test")["base_class_ids"] == ids["train"]
    with pytest.raises(KeyError, match="fss1000_trn"):
        fss1000.metadata("fss1000_trn")


@pytest.fixture
def root(fss_root: Path) -> Path:
    fss1000.prepare(fss_root, workers=0, lists=fss_root / "names")
    return fss_root


def test_records_in_hsnets_order(root: Path) -> None:
    records = fss1000.load_records("fss1000_test", root)
    ids = [r["image_id"] for r in records]
    assert ids == [f"{c}/{n}" for c in ("apple", "pear") for n in (1, 10, 2)]
    assert [r["classes"] for r in records[::3]] == [[5], [6]]
    assert Path(records[1]["file_name"]).relative_to(root).as_posix() == "fss1000/apple/10.jpg"
    episodes = hsnet_fss(pairs_of(records, [5, 6]), 1)
    assert [e.query for e in episodes] == ids


def test_masks_split_at_half_of_the_range(root: Path) -> None:
    mask = load_mask(fss1000.load_records("fss1000_val", root)[0], 3)
    assert np.array_equal(mask[0], [0, 0, 1, 1])  # grey 0, 127, 128, 255


def test_class_names_reach_the_catalog(root: Path) -> None:
    fss1000.load_records("fss1000_test", root)
    names = MetadataCatalog.get("fss1000_test").stuff_classes
    assert names == ["kite", "pin", "zebra", "lamp", "oak", "apple", "pear"]  # sorted within each split
    (root / "fss_d2/fss1000/lists/train.txt").write_text("ant\npin\nzebra\n")
    fss1000.load_records("fss1000_test", root)
    assert MetadataCatalog.get("fss1000_test").stuff_classes[0] == "ant"


def test_unprepared(fss_root: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"train\.txt not found: run `python datasets/prepare_fss1000"
    ):
        fss1000.load_records("fss1000_test", fss_root)
