import doctest
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from fss_d2.config import get_cfg
from fss_d2.data import register_coco_json, register_folder
from fss_d2.data.catalog import dataset_root, get_records, register_all, register_datasets_from_cfg
from fss_d2.data.datasets import custom
from fss_d2.data.datasets.glyphs import write_glyphs


@pytest.fixture(autouse=True)
def own_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty data root; what a test registers is taken off again."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    before = set(DatasetCatalog.list())
    yield tmp_path
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


@pytest.fixture
def folder(own_root: Path) -> Path:
    for class_name in ("ant", "bee"):
        for part in ("images", "masks"):
            (own_root / "mine" / class_name / part).mkdir(parents=True)
            Image.new("L", (4, 4), 255).save(own_root / "mine" / class_name / part / "x.png")
    return own_root / "mine"


def test_root_is_read_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", "/some/where")
    assert dataset_root() == Path("/some/where")
    monkeypatch.delenv("DETECTRON2_DATASETS")
    assert dataset_root() == Path("datasets")


def test_every_promised_name_is_registered_with_metadata() -> None:
    register_all()  # once more
    sets = ("pascal5i", "coco20i", "coco20i_contiguous", "coco2pascal", "glyphs")
    names = [f"{s}_fold{f}_{split}" for s in sets for f in range(4) for split in ("train", "val")]
    for name in [*names, "fss1000_train", "fss1000_val", "fss1000_test"]:
        metadata = MetadataCatalog.get(name)
        assert name in DatasetCatalog
        assert metadata.evaluator_type == "few_shot_seg"
        assert metadata.ignore_label == 255
        assert not set(metadata.base_class_ids) & set(metadata.novel_class_ids)
        side = metadata.base_class_ids if name.endswith("train") else metadata.novel_class_ids
        assert metadata.class_ids and set(metadata.class_ids) <= set(side)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pascal5i_fold7_train", r"there is no fold 7; folds are 0\.\.3"),
        ("glyphs_fold12_val", r"there is no fold 12; folds are 0\.\.3"),
        ("pascal5_fold1_train", "did you mean .*pascal5i_fold1_train"),
        ("fss1000_tset", "did you mean .*fss1000_test"),
        ("zzz", "see datasets/README.md"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        get_records(name)
    assert repr(name) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name",
    [
        "pascal5i_fold0_val",
        "coco20i_fold1_train",
        "coco2pascal_fold2_val",
        "fss1000_test",
        "glyphs_fold3_train",
    ],
)
def test_missing_files_name_path_and_mend(own_root: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=str(own_root)) as error:
        get_records(name)
    message = str(error.value)
    assert "\n" not in message
    assert "datasets/prepare_" in message or "download" in message


def test_records_are_read_once_per_root(own_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_glyphs(own_root, size=32, images_per_class=1)
    first = get_records("glyphs_fold0_val")
    first.append({})
    (own_root / "glyphs/index.json").unlink()
    again = get_records("glyphs_fold0_val")
    assert len(again) == len(first) - 1 == 20
    monkeypatch.setenv("DETECTRON2_DATASETS", str(own_root / "elsewhere"))
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        get_records("glyphs_fold0_val")


def test_registers_what_a_config_lists(folder: Path) -> None:
    cfg = get_cfg()
    cfg.DATASETS.FOLDERS = [
        {"name": f"mine_{s}", "root": "mine", "split": s, "novel_classes": ["bee"]} for s in ("train", "val")
    ]
    (folder.parent / "my.json").write_text("{}")
    cfg.DATASETS.COCO_JSON = [
        {"name": "my_json", "json_file": str(folder.parent / "my.json"), "image_root": "mine"}
    ]
    register_datasets_from_cfg(cfg)
    register_datasets_from_cfg(cfg)
    assert [r["image_id"] for r in get_records("mine_val")] == ["bee/x"]
    assert get_records("mine_train")[0]["file_name"] == str(folder / "ant/images/x.png")
    assert "my_json" in DatasetCatalog
    cfg.DATASETS.FOLDERS[0]["novel_classes"] = ["ant"]
    with pytest.raises(ValueError, match="'mine_train' is registered already with another novel_classes"):
        register_datasets_from_cfg(cfg)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "mine"}, "DATASETS.FOLDERS: missing a required argument: 'root'"),
        ({"name": "mine", "root": "mine", "folds": 3}, "unexpected keyword argument 'folds'"),
    ],
)
def test_wrong_config_entries(folder: Path, entry: dict[str, object], message: str) -> None:
    cfg = get_cfg()
    cfg.DATASETS.FOLDERS = [entry]
    with pytest.raises(ValueError, match=message):
        register_datasets_from_cfg(cfg)


def test_examples_in_the_documentation() -> None:
    failed, attempted = doctest.testmod(custom)
    assert (failed, attempted) == (0, 17)


def test_a_home_folder_is_expanded_in_every_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the arguments, the config and the variable; not in what an annotation file names."""
    root = folder.parent if folder.name == "mine" else folder
    monkeypatch.setenv("HOME", str(root))
    monkeypatch.setenv("DETECTRON2_DATASETS", "~/elsewhere")
    assert dataset_root() == root / "elsewhere"
    register_folder("tilde_folder", "~/mine")
    cfg = get_cfg()
    cfg.DATASETS.FOLDERS = [{"name": "tilde_config", "root": "~/mine"}]
    register_datasets_from_cfg(cfg)
    names = [[r["file_name"] for r in get_records(name)] for name in ("tilde_folder", "tilde_config")]
    assert names[0] == names[1] and all(name.startswith(f"{root}/mine/") for name in names[0])
    Image.new("RGB", (8, 6)).save(root / "~a.jpg")
    square = {"id": 1, "image_id": 7, "category_id": 3, "segmentation": [[1, 1, 5, 1, 5, 5, 1, 5]]}
    content = {
        "images": [{"id": 7, "file_name": "~a.jpg", "height": 6, "width": 8}],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [square],
    }
    (root / "x.json").write_text(json.dumps(content))
    register_coco_json("tilde_coco", "~/x.json", "~")
    (record,) = get_records("tilde_coco")
    assert record["file_name"] == f"{root}/~a.jpg"
