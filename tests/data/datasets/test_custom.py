from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from fss_d2.data.catalog import get_records
from fss_d2.data.datasets.custom import register_folder
from fss_d2.data.masks import load_mask

pytestmark = pytest.mark.usefixtures("clean_catalogs")

HEIGHT, WIDTH = 20, 30


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Classes ant, bee, cow, dog, two images each."""
    root = tmp_path / "animals"
    for class_name in ("cow", "ant", "dog", "bee"):
        for part in ("images", "masks"):
            (root / class_name / part).mkdir(parents=True)
        for stem in ("b", "a"):
            Image.new("RGB", (WIDTH, HEIGHT)).save(root / class_name / "images" / f"{stem}.jpg")
            Image.new("L", (WIDTH, HEIGHT), 255).save(root / class_name / "masks" / f"{stem}.png")
    return root


def test_folder_records_and_metadata(folder: Path) -> None:
    register_folder("animals", folder)
    records = get_records("animals")
    assert [r["image_id"] for r in records[:3]] == ["ant/a", "ant/b", "bee/a"]
    assert records[2] == {
        "file_name": str(folder / "bee/images/a.jpg"),
        "image_id": "bee/a",
        "height": HEIGHT,
        "width": WIDTH,
        "classes": [1],
        "sem_seg_file_name": str(folder / "bee/masks/a.png"),
        "mask_encoding": "binary",
    }
    metadata = MetadataCatalog.get("animals")
    assert metadata.stuff_classes == ["ant", "bee", "cow", "dog"]
    assert metadata.class_ids == metadata.base_class_ids == [0, 1, 2, 3]
    assert metadata.novel_class_ids == []


def test_endings_in_capitals(folder: Path) -> None:
    (folder / "ant/images/a.jpg").rename(folder / "ant/images/a.JPG")
    (folder / "ant/masks/a.png").rename(folder / "ant/masks/a.PNG")
    register_folder("capitals", folder)
    assert get_records("capitals")[0]["sem_seg_file_name"] == str(folder / "ant/masks/a.PNG")


def test_folder_size_is_upright(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "ant/images/a.jpg", exif=exif)
    register_folder("turned", folder)
    assert [(r["height"], r["width"]) for r in get_records("turned")[:2]] == [
        (WIDTH, HEIGHT),
        (HEIGHT, WIDTH),
    ]


@pytest.mark.parametrize(
    ("arguments", "train", "val"),
    [
        ({"fold": 1, "num_folds": 2}, [0, 2], [1, 3]),
        ({"novel_classes": ["dog"]}, [0, 1, 2], [3]),
        ({"base_classes": ["bee", "ant"]}, [0, 1], [2, 3]),
        ({"base_classes": ["ant"], "novel_classes": ["cow"]}, [0], [2]),
        ({"classes": ["dog", "ant"], "novel_classes": ["dog"]}, [1], [0]),
    ],
)
def test_folder_splits(folder: Path, arguments: dict[str, Any], train: list[int], val: list[int]) -> None:
    for split, expected in (("train", train), ("val", val)):
        register_folder(split, folder, split=split, **arguments)
        assert sorted({c for r in get_records(split) for c in r["classes"]}) == expected
        metadata = MetadataCatalog.get(split)
        assert (metadata.base_class_ids, metadata.novel_class_ids) == (train, val)
        assert metadata.class_ids == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fold": 4, "split": "train"}, "fold 4 does not exist, use 0 to 3"),
        ({"split": "test"}, "split 'test' is not one of"),
        ({"split": "val"}, "split 'val' needs fold"),
        ({"fold": 0, "novel_classes": ["ant"]}, "either fold or base_classes"),
        ({"novel_classes": ["cows"]}, "no class 'cows'; perhaps cow"),
        ({"base_classes": ["ant"], "novel_classes": ["ant"]}, "'ant' is in base_classes and novel_classes"),
        ({"classes": ["ant", "ant"]}, "'ant' is listed twice"),
        ({"fold": 3, "classes": ["ant", "bee"], "split": "val"}, "no class is left for split 'val'"),
        ({"mask_encoding": "rgb"}, "mask_encoding 'rgb' is not one of"),
        (
            {"mask_encoding": "trimap", "mask_values": "1"},
            "mask_values does not go with mask_encoding 'trimap'",
        ),
        (
            {"mask_values": "cows=1"},
            "mask_values names the class 'cows', but the classes are ant, bee, cow, dog",
        ),
        ({"mask_values": "one"}, "mask_values 'one': 'one' is no number or colour"),
    ],
)
def test_folder_refuses_arguments(folder: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        register_folder("wrong", folder, **arguments)
    assert "wrong" not in DatasetCatalog


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda root: (root / "cow/masks/b.png").unlink(),
            r"images/b\.jpg has no mask: add .*cow/masks/b\.png",
        ),
        (lambda root: (root / "cow/images/b.jpg").unlink(), r"cow/masks/b\.png has no image"),
        (lambda root: [p.unlink() for p in (root / "cow").rglob("*.*")], r"cow/images holds no image"),
        (lambda root: (root / "cow/images/b.jpg").write_bytes(b"no"), r"b\.jpg cannot be read"),
        (lambda root: Image.new("L", (3, 3)).save(root / "cow/images/b.png"), "two images have the name 'b'"),
        (
            lambda root: Image.new("L", (3, 3)).save(root / "cow/masks/b.bmp"),
            r"b\.jpg has the masks b\.bmp and",
        ),
        (
            lambda root: Image.new("L", (3, 3), 9).save(root / "cow/masks/a.png"),
            r"holds the values 9: say which",
        ),
    ],
)
def test_folder_names_the_wrong_file(folder: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(folder)
    register_folder("animals", folder)
    with pytest.raises(ValueError, match=message) as error:
        get_records("animals")
    assert "\n" not in str(error.value)


def test_mask_values_are_kept_in_the_records(folder: Path) -> None:
    values = np.zeros((HEIGHT, WIDTH), np.uint8)
    values[:5], values[5:9], values[9:12] = 1, 2, 255
    for name in ("ant", "bee"):
        for stem in ("a", "b"):
            Image.fromarray(values).save(folder / name / "masks" / f"{stem}.png")
    register_folder("numbers", folder, mask_values={"ant": "1,2", "bee": "2 ignore=255"})
    records = get_records("numbers")
    assert [r.get("mask_values") for r in records[::2]] == ["1,2", "2 ignore=255", None, None]
    np.testing.assert_array_equal(load_mask(records[0], 0), (values == 1) | (values == 2))
    np.testing.assert_array_equal(load_mask(records[2], 1), np.where(values == 255, 255, values == 2))
    assert load_mask(records[4], 2).all()


@pytest.mark.parametrize("name", ["dog/c.jpg", "elk/c.jpg", "c.jpg"])
def test_pictures_outside_the_images_folders_are_named(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / name)
    with pytest.raises(ValueError, match=r"has pictures \(c\.jpg\)"):
        register_folder("animals", folder)
    if name.startswith("elk"):
        with pytest.raises(ValueError, match=r"elk has pictures \(c\.jpg\) but no folder images"):
            register_folder("animals", folder, classes=["elk"])
    register_folder("animals", folder, classes=["ant", "bee"])
    assert len(get_records("animals")) == 4


def test_folder_that_is_missing_or_holds_no_class(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        register_folder("missing", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no <class>/images folder"):
        register_folder("empty", tmp_path)


def test_registering_twice(folder: Path) -> None:
    register_folder("animals", folder, fold=0, split="train")
    register_folder("animals", folder, fold=0, split="train")
    with pytest.raises(ValueError, match="'animals' is registered already with another fold: choose"):
        register_folder("animals", folder, fold=1, split="train")


def test_genuine_folder_of_photographs(photographs: Path) -> None:
    register_folder("coseg", photographs / "voc_coseg", fold=0, split="val")
    records = get_records("coseg")
    assert sorted({r["classes"][0] for r in records}) == [0, 4, 8, 12, 16]
    assert load_mask(records[0], 0).shape == (records[0]["height"], records[0]["width"])
