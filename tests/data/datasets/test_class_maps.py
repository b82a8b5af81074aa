"""Photographs with class maps: pairs by size or from lists, folds, photographs left out."""

import doctest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from PIL import Image

from fss_d2.config import get_cfg
from fss_d2.data.catalog import get_records, register_datasets_from_cfg
from fss_d2.data.datasets import class_maps
from fss_d2.data.datasets.class_maps import register_class_maps
from fss_d2.data.masks import load_mask

pytestmark = pytest.mark.usefixtures("clean_catalogs")

CLASSES = ["ant", "bee", "cow", "dog"]
# Rows of each class map: values, one for each row of 10 pixels.
MAPS = {"p": [1, 1, 0, 255], "q": [2, 2, 2, 1], "r": [3, 3, 4, 0], "s": [4, 4, 4, 4]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for part in ("photos", "maps", "lists"):
        (tmp_path / part).mkdir()
    for stem, rows in MAPS.items():
        Image.new("RGB", (10, 4)).save(tmp_path / f"photos/{stem}.jpg")
        Image.fromarray(np.repeat(np.uint8(rows)[:, None], 10, axis=1)).save(tmp_path / f"maps/{stem}.png")
    (tmp_path / "lists/trn_fold0.txt").write_text("q__02\np__01\n")
    (tmp_path / "lists/trn_fold1.txt").write_text("s__04\nr__03\nr__04\n")
    return tmp_path


def register(root: Path, name: str, **options: Any) -> dict[str, list[int]]:
    register_class_maps(name, root / "photos", root / "maps", CLASSES, **options)
    return {record["image_id"]: record["classes"] for record in get_records(name)}


def test_every_class_of_every_photograph_by_its_area(root: Path) -> None:
    assert register(root, "all") == {"p": [0], "q": [0, 1], "r": [2, 3], "s": [3]}
    assert register(root, "large", min_area=20) == {"p": [0], "q": [1], "r": [2], "s": [3]}
    record = get_records("large")[1]
    assert record == {
        **{"file_name": str(root / "photos/q.jpg"), "image_id": "q", "height": 4, "width": 10},
        **{"classes": [1], "query_classes": [0, 1], "mask_encoding": "class_map"},
        "sem_seg_file_name": str(root / "maps/q.png"),
    }
    assert (load_mask(get_records("large")[0], 0)[:, 0] == [1, 1, 0, 255]).all()
    metadata = MetadataCatalog.get("large")
    assert metadata.stuff_classes == CLASSES and metadata.class_ids == [0, 1, 2, 3]


def test_lists_give_the_pairs_and_their_order(root: Path) -> None:
    pairs = str(root / "lists/trn_fold*.txt")
    assert list(register(root, "listed", pairs=pairs).items()) == [
        ("q", [1]),
        ("p", [0]),
        ("s", [3]),
        ("r", [2, 3]),
    ]
    (root / "unused.txt").write_text("p\ns\nnot_there\n")
    assert register(root, "fewer", pairs=pairs, leave_out=root / "unused.txt") == {"q": [1], "r": [2, 3]}
    one = register(root, "one list", pairs=str(root / "lists/trn_fold0.txt"))
    assert one == {"q": [1], "p": [0]}


def test_folds_and_classes_that_are_kept_out(root: Path) -> None:
    fold = {"fold": 1, "num_folds": 2, "fold_rule": "contiguous"}
    assert register(root, "fold_train", split="train", **fold) == {"p": [0], "q": [0, 1]}
    assert register(root, "fold_val", split="val", **fold) == {"r": [2, 3], "s": [3]}
    kept_out = {"novel_classes": ["cow"], "split": "train"}
    assert register(root, "shown", **kept_out) == {"p": [0], "q": [0, 1], "r": [3], "s": [3]}
    clean = register(root, "clean", exclude_images_with_novel=True, **kept_out)
    assert clean == {"p": [0], "q": [0, 1], "s": [3]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_area": -1}, r"x: min_area -1 must not be negative"),
        ({"exclude_images_with_novel": True, "novel_classes": ["ant"]}, r"give split 'train' or 'val'"),
        ({"novel_classes": ["cat"]}, r"x: novel_classes: there is no class 'cat'; perhaps "),
        ({"pairs": "nowhere/*.txt"}, r"x: no list nowhere/\*\.txt exists; correct pairs"),
        ({"leave_out": "nowhere.txt"}, r"x: file nowhere\.txt does not exist; correct leave_out"),
        ({"image_root": "nowhere"}, r"x: folder nowhere does not exist"),
        ({"classes": ["ant", "ant"]}, r"x: class 'ant' is listed twice"),
        ({"classes": "ant"}, r"x: classes must be a list of 1 to 254 names, got 'ant'"),
    ],
)
def test_wrong_arguments_are_refused_at_once(root: Path, options: dict[str, Any], message: str) -> None:
    arguments = {"image_root": root / "photos", "mask_root": root / "maps", "classes": CLASSES}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        register_class_maps("x", **{**arguments, **options})


def test_wrong_files_are_named(root: Path) -> None:
    (root / "lists/trn_fold0.txt").write_text("z__01\n")
    with pytest.raises(FileNotFoundError, match=r"no picture .*photos/z exists"):
        register(root, "no picture", pairs=str(root / "lists/trn_fold0.txt"))
    (root / "lists/trn_fold0.txt").write_text("p__05\n")
    with pytest.raises(
        ValueError, match=r"trn_fold0\.txt:1: 'p__05' is not <image id>__<class number 01 to 04>"
    ):
        register(root, "no class", pairs=str(root / "lists/trn_fold0.txt"))
    Image.new("L", (10, 4), 9).save(root / "maps/q.png")
    with pytest.raises(ValueError, match=r"maps/q\.png has the value 9, but there are 4 classes"):
        register(root, "odd value")
    (root / "maps/p.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"maps/p\.png"):
        register(root, "no map")


def test_paths_of_a_config_start_at_the_data_or_here(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    monkeypatch.chdir(tmp := root / "lists")
    (tmp / "here.txt").write_text("p\n")
    cfg = get_cfg()
    entry = {"name": "mapped", "image_root": "photos", "mask_root": "maps", "classes": CLASSES}
    cfg.DATASETS.CLASS_MAPS = [{**entry, "pairs": "lists/trn*.txt", "leave_out": "here.txt"}]
    register_datasets_from_cfg(cfg)
    assert [record["image_id"] for record in get_records("mapped")] == ["q", "s", "r"]


def test_the_example_in_the_documentation() -> None:
    assert doctest.testmod(class_maps) == (0, 9)
