"""Several data sets as one: classes by name, ids that are unique, what cannot be joined."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from fss_d2.data import EpisodeMapper, get_records, register_class_maps, register_coco_json, register_folder
from fss_d2.data.augmentations import Squash
from fss_d2.data.episode import Episode
from fss_d2.data.joined import annotated_classes, training_set
from fss_d2.data.masks import load_mask
from fss_d2.data.samples import load_segments

SIDE = 8


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


def _square(image: int, category: int, left: int) -> dict[str, Any]:
    corners = [left, 0, left + 4, 0, left + 4, SIDE, left, SIDE]
    return {
        "id": 10 * image + category,
        "image_id": image,
        "category_id": category,
        "segmentation": [corners],
    }


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """COCO's couch, cup and dog in photographs 1 and 2; maps of VOC's dog and sofa in 1 and b."""
    for part in ("coco", "voc", "maps"):
        (tmp_path / part).mkdir()
    for path in ("coco/1", "coco/2", "voc/1", "voc/b"):
        Image.new("RGB", (SIDE, SIDE), len(path)).save(tmp_path / f"{path}.png")
    names = ["couch", "cup", "dog"]
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": SIDE, "width": SIDE} for i in (1, 2)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
        "annotations": [_square(1, 0, 0), _square(1, 1, 4), _square(2, 2, 0), _square(2, 0, 4)],
    }
    (tmp_path / "c.json").write_text(json.dumps(content))
    for stem, columns in {"1": [1] * 3 + [2] * 5, "b": [2] * 6 + [255] * 2}.items():
        Image.fromarray(np.tile(np.uint8(columns), (SIDE, 1))).save(tmp_path / f"maps/{stem}.png")
    return tmp_path


def _register(root: Path, **options: Any) -> None:
    register_coco_json("cocos", root / "c.json", root / "coco", **options)
    register_class_maps("vocs", root / "voc", root / "maps", ["dog", "sofa"])


def test_names_of_one_class_are_one_class(sets: Path) -> None:
    _register(sets)
    name = training_set(("cocos", "vocs"))
    metadata, records = MetadataCatalog.get(name), get_records(name)
    assert metadata.stuff_classes == ["couch", "cup", "dog"] and metadata.class_ids == [0, 1, 2]
    assert metadata.base_class_ids == [0, 1, 2] and metadata.novel_class_ids == []
    shown = {record["image_id"]: record["classes"] for record in records}
    assert shown == {"cocos/1": [0, 1], "cocos/2": [0, 2], "vocs/1": [0, 2], "vocs/b": [0]}
    by_id = {record["image_id"]: record for record in records}
    assert (load_mask(by_id["vocs/1"], 2)[0] == [1, 1, 1, 0, 0, 0, 0, 0]).all()
    assert (load_mask(by_id["vocs/b"], 0)[0] == [1] * 6 + [255] * 2).all()
    assert (load_mask(by_id["cocos/2"], 0)[0] == [0] * 4 + [1] * 4).all()
    _, _, segments = load_segments(by_id["vocs/1"], 0, [0, 1, 2], "semantic")
    assert [segment.label for segment in segments] == [1, 3]


def test_the_order_of_the_sets_gives_the_ids(sets: Path) -> None:
    _register(sets)
    metadata = MetadataCatalog.get(training_set(("vocs", "cocos")))
    assert metadata.stuff_classes == ["dog", "sofa", "cup"]


def test_an_episode_takes_its_pictures_from_both(sets: Path) -> None:
    _register(sets)
    mapper = EpisodeMapper(records=get_records(training_set(("cocos", "vocs"))), resize=Squash((4, 4)))
    episode = mapper(Episode(0, 0, "cocos/1", ("vocs/b", "vocs/1")))
    assert episode["sem_seg"][0].tolist() == [1, 1, 0, 0]
    masks = [support["mask"][0].tolist() for support in episode["support"]]
    assert masks == [[1, 1, 1, 255], [0, 0, 1, 1]]


def test_which_classes_a_picture_is_annotated_for(sets: Path) -> None:
    _register(sets)
    name = training_set(("cocos", "vocs"))
    metadata = MetadataCatalog.get(name)
    known = {r["image_id"]: annotated_classes(metadata, r) for r in get_records(name)}
    assert known["cocos/2"] == {0, 1, 2} and known["vocs/b"] == {0, 2}
    one_class = {"mask_encoding": "binary", "classes": [1]}
    assert annotated_classes(metadata, one_class) == {1}
    alone = MetadataCatalog.get("vocs")
    assert annotated_classes(alone, get_records("vocs")[0]) == {0, 1}


def test_the_sets_on_their_own_stay_as_they_are(sets: Path) -> None:
    _register(sets)
    before = [dict(record) for name in ("cocos", "vocs") for record in get_records(name)]
    training_set(("cocos", "vocs"))
    assert [record for name in ("cocos", "vocs") for record in get_records(name)] == before
    assert training_set(("vocs",)) == "vocs"


def test_a_class_that_only_one_set_holds_out(sets: Path) -> None:
    _register(sets, split="train", novel_classes=["couch"])
    message = "class 'couch' is held out in cocos and trained in vocs; hold it out in both"
    with pytest.raises(ValueError, match=rf"^DATASETS\.TRAIN: {message}$"):
        training_set(("cocos", "vocs"))


def test_classes_that_both_sets_hold_out(sets: Path) -> None:
    register_coco_json("cocos", sets / "c.json", sets / "coco", split="train", novel_classes=["couch"])
    register_class_maps(
        "vocs", sets / "voc", sets / "maps", ["dog", "sofa"], split="train", novel_classes=["sofa"]
    )
    metadata = MetadataCatalog.get(training_set(("cocos", "vocs")))
    assert metadata.class_ids == metadata.base_class_ids == [1, 2] and metadata.novel_class_ids == [0]


def test_a_photograph_in_both_sets(sets: Path) -> None:
    _register(sets)
    register_class_maps("again", sets / "voc", sets / "maps", ["dog", "sofa"])
    with pytest.raises(
        ValueError, match=r"voc/1\.png is in vocs and in again; join sets of different photographs"
    ):
        training_set(("vocs", "again"))


def test_two_names_of_one_class_in_one_set(sets: Path) -> None:
    _register(sets)
    for name in ("Sofa", "couch"):
        for part in ("images", "masks"):
            (sets / f"folder/{name}/{part}").mkdir(parents=True)
            Image.new("L", (SIDE, SIDE), 255).save(sets / f"folder/{name}/{part}/a.png")
    register_folder("folders", sets / "folder")
    with pytest.raises(ValueError, match=r"folders has two names of one class, Sofa and couch"):
        training_set(("cocos", "folders"))
