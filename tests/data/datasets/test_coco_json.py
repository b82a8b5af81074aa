import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from PIL import Image
from pycocotools import mask as rle

from fss_d2.data.catalog import get_records
from fss_d2.data.datasets.custom import register_coco_json
from fss_d2.data.masks import load_mask

pytestmark = pytest.mark.usefixtures("clean_catalogs")

HEIGHT, WIDTH = 20, 30


def square(x: int, y: int, side: int) -> list[list[int]]:
    """A polygon that covers side * side pixels."""
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def annotation(image: int, category: int, segmentation: Any, iscrowd: int = 0) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "segmentation": segmentation, "iscrowd": iscrowd}


def content() -> dict[str, Any]:
    """Categories 5 p, 7 q, 10 r, 90 s become ids 0 to 3; s overlaps p in image 1."""
    blob = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    blob[3:9, 2:12] = 1
    packed = rle.encode(blob)
    packed["counts"] = packed["counts"].decode()
    runs = [2 * HEIGHT, 5 * HEIGHT, 23 * HEIGHT]  # columns 2 to 6
    rows = [
        annotation(1, 5, square(0, 0, 4)),
        annotation(1, 5, square(10, 10, 5)),
        annotation(1, 90, square(0, 0, 8)),
        annotation(2, 7, packed),
        annotation(2, 90, {"size": [HEIGHT, WIDTH], "counts": runs}, iscrowd=1),
        annotation(3, 10, {"size": [HEIGHT, WIDTH], "counts": runs}),
        annotation(3, 5, []),
    ]
    return {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "height": HEIGHT, "width": WIDTH} for i in (1, 2, 3, 4)
        ],
        "categories": [{"id": i, "name": n} for i, n in ((90, "s"), (10, "r"), (5, "p"), (7, "q"))],
        "annotations": [{"id": number, **row} for number, row in enumerate(rows)],
    }


Register = Callable[..., None]


@pytest.fixture
def coco(tmp_path: Path) -> Register:
    """Return a function that registers `content`, or what is given, with any arguments."""
    for i in (1, 2, 3, 4):
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / f"{i}.jpg")

    def register(name: str, data: dict[str, Any] | None = None, **arguments: Any) -> None:
        (tmp_path / "my.json").write_text(json.dumps(data or content()))
        register_coco_json(name, tmp_path / "my.json", tmp_path, **arguments)

    return register


def classes_of(name: str) -> dict[int | str, list[int]]:
    return {record["image_id"]: record["classes"] for record in get_records(name)}


def test_coco_classes_and_masks(coco: Register) -> None:
    coco("mine")
    assert classes_of("mine") == {1: [0, 3], 2: [1], 3: [2]}  # not the crowd, not the empty outline
    metadata = MetadataCatalog.get("mine")
    assert metadata.stuff_classes == ["p", "q", "r", "s"]
    assert metadata.class_ids == [0, 1, 2, 3]
    one, two, three = get_records("mine")
    assert (load_mask(one, 0) == 1).sum() == 16 + 25  # s, drawn later, hides nothing
    assert (load_mask(one, 3) == 1).sum() == 64
    assert (load_mask(two, 1) == 1).sum() == 60
    assert (load_mask(two, 3) == 255).sum() == 5 * HEIGHT
    assert np.argwhere(load_mask(three, 2).any(0)).ravel().tolist() == [2, 3, 4, 5, 6]


def test_coco_min_area_counts_pixels_of_the_union(coco: Register) -> None:
    coco("union", min_area=41)
    assert classes_of("union") == {1: [0, 3], 2: [1], 3: [2]}
    coco("above", min_area=42)
    assert classes_of("above") == {1: [3], 2: [1], 3: [2]}


def test_coco_class_list_keeps_the_order_of_categories(coco: Register) -> None:
    coco("some", classes=["s", "q"])
    assert classes_of("some") == {1: [1], 2: [0]}
    assert MetadataCatalog.get("some").stuff_classes == ["q", "s"]


@pytest.mark.parametrize(
    ("rule", "train", "val"),
    [
        ("interleaved", {1: [0], 3: [2]}, {1: [3], 2: [1]}),
        ("contiguous", {1: [0], 2: [1]}, {1: [3], 3: [2]}),
    ],
)
def test_coco_folds_share_images(
    coco: Register, rule: str, train: dict[int, list[int]], val: dict[int, list[int]]
) -> None:
    for split, expected in (("train", train), ("val", val)):
        coco(split, fold=1, num_folds=2, fold_rule=rule, split=split)
        assert classes_of(split) == expected


def test_coco_without_images_that_show_novel_classes(coco: Register) -> None:
    novel = {"novel_classes": ["s"], "exclude_images_with_novel": True}
    coco("train", split="train", **novel)
    assert classes_of("train") == {3: [2]}  # image 2 has a crowd of s
    coco("val", split="val", **novel)
    assert classes_of("val") == {1: [3]}


def test_coco_held_out_images_are_never_trained_on(tmp_path: Path, coco: Register) -> None:
    data = content()
    data["images"] = [{**data["images"][0], "id": i, "file_name": f"{i}.jpg"} for i in range(400)]
    for i in range(400):
        (tmp_path / f"{i}.jpg").touch()
    data["annotations"] = [
        annotation(i, category, square(0, 0, 4)) for i in range(400) for category in (5, 90)
    ]
    held_out = {}
    for fraction in (0.25, 0.5):
        shown = {}
        for split in ("train", "val"):
            name = f"{split}{fraction}"
            coco(name, data, novel_classes=["s"], split=split, val_fraction=fraction)
            shown[split] = set(classes_of(name))
        assert not shown["train"] & shown["val"]
        assert shown["train"] | shown["val"] == set(range(400))
        assert abs(len(shown["val"]) - 400 * fraction) < 40
        held_out[fraction] = shown["val"]
    assert held_out[0.25] < held_out[0.5]


def spoiled(**parts: Any) -> dict[str, Any]:
    return copy.deepcopy(content()) | parts


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (spoiled(annotations=None), "there is no list 'annotations'"),
        (spoiled(images=[{"id": 1, "file_name": "1.jpg", "height": 3}]), r"images\[0\] has no 'width'"),
        (spoiled(images=content()["images"] * 2), "id 1 occurs twice in 'images'"),
        (spoiled(annotations=[annotation(77, 5, [])]), "annotation number 0 is of image 77"),
        (spoiled(annotations=[annotation(1, 6, [])]), "annotation number 0 has category 6"),
        (spoiled(annotations=[annotation(1, 5, [])]), "no image of .* shows a class of split 'all'"),
        (
            spoiled(categories=[{"id": i, "name": "p"} for i in (5, 7, 10, 90)]),
            "two categories have the name 'p'",
        ),
    ],
)
def test_coco_names_the_wrong_entry(coco: Register, data: dict[str, Any], message: str) -> None:
    coco("wrong", data)
    with pytest.raises(ValueError, match=message) as error:
        get_records("wrong")
    assert "my.json" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"val_fraction": 1.0, "split": "val", "fold": 0}, "val_fraction 1.0 must be"),
        ({"val_fraction": 0.5}, "val_fraction separates train from val"),
        ({"exclude_images_with_novel": True}, "exclude_images_with_novel separates train from val"),
        ({"min_area": -1}, "min_area -1 must not be negative"),
        ({"fold_rule": "random"}, "fold_rule 'random' is not one of"),
    ],
)
def test_coco_refuses_arguments(coco: Register, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        coco("wrong", **arguments)


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([[1, 1, 5, 1]], "annotation 0: its outline has fewer than 3 corners"),
        ([[1, 1, 1e12, 1, 5, 5]], "annotation 0: its outline has the value 1000000000000.0, far outside"),
        ({"size": [HEIGHT, WIDTH], "counts": [7]}, "annotation 0: its run lengths add up to 7 pixels"),
        (None, "annotation 0: it has neither an outline nor a box"),
    ],
)
def test_coco_objects_that_cannot_be_read_are_not_background(
    tmp_path: Path, coco: Register, segmentation: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The picture stays for its other class; for that of the object all of it is ignored."""
    data = content()
    data["annotations"][0] = {"id": 0, **annotation(1, 5, segmentation)}
    data["annotations"].append({"id": 9, **annotation(4, 5, square(3, 3, 4))})
    coco("mine", data)
    assert classes_of("mine") == {1: [3], 2: [1], 3: [2], 4: [0]}
    record = get_records("mine")[0]
    mask = load_mask(record, 0)
    assert (mask == 1).sum() == 25 and (mask == 255).sum() == HEIGHT * WIDTH - 25
    assert (load_mask(record, 3) == 1).sum() == 64
    left_out = MetadataCatalog.get("mine").left_out
    assert [picture["image"] for picture in left_out] == [str(tmp_path / "1.jpg"), str(tmp_path / "3.jpg")]
    assert left_out[0]["reason"].startswith(reason)
    assert "my.json: pictures not used for one of their classes: 2, the first " in caplog.text


def test_coco_boxes_without_outline_are_open(coco: Register) -> None:
    data = content()
    data["annotations"][6] = {"id": 6, **annotation(3, 5, [])} | {"bbox": [10, 5, 4, 3]}
    coco("boxed", data)
    assert classes_of("boxed") == {1: [0, 3], 2: [1], 3: [2]}
    mask = load_mask(get_records("boxed")[2], 0)
    assert (mask == 255).sum() == 12 and (mask[5:8, 10:14] == 255).all() and not (mask == 1).any()
    data["annotations"] = [row for row in data["annotations"] if row["id"] not in (0, 1)]
    coco("only", data | {"info": {}}, classes=["p", "q"])
    with pytest.raises(ValueError, match=r"my\.json: class 'p' has boxes \(1\) .* or choose other classes"):
        get_records("only")


def test_coco_joins_images_with_the_same_file(coco: Register) -> None:
    data = content()
    data["images"][1]["file_name"] = "1.jpg"
    coco("joined", data)
    assert classes_of("joined") == {1: [0, 1, 3], 3: [2]}
    assert (load_mask(get_records("joined")[0], 1) == 1).sum() == 60


def test_coco_frame_of_another_picture_is_seen_where_outlines_leave_it(
    tmp_path: Path, coco: Register
) -> None:
    data = content()
    data["annotations"].append({"id": 9, **annotation(4, 5, [[1, 1, 5, 1, 5, 28, 1, 28]])})
    coco("cut", data)
    assert (load_mask(get_records("cut")[3], 0) == 1).sum() == 4 * 19  # at the lower border
    Image.new("RGB", (60, 40)).save(tmp_path / "4.jpg")
    coco("scaled", data)
    assert 4 not in classes_of("scaled")
    assert "is 60x40, but annotated as 30x20" in MetadataCatalog.get("scaled").left_out[-1]["reason"]
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "4.jpg", exif=exif)
    coco("turned", data)
    assert (load_mask(get_records("turned")[3], 0) == 1).sum() == 4 * 27
    assert load_mask(get_records("turned")[3], 0).shape == (WIDTH, HEIGHT)


def test_coco_pictures_of_another_system(tmp_path: Path, coco: Register) -> None:
    data = content()
    names = ("D:\\x\\1.jpg", "a%202.jpg", "/home/me/3.jpg", "4.jpg")
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "a 2.jpg")
    data["images"] = [{**image, "file_name": name} for image, name in zip(data["images"], names, strict=True)]
    coco("elsewhere", data)
    files = [Path(record["file_name"]) for record in get_records("elsewhere")]
    assert files == [tmp_path / name for name in ("1.jpg", "a 2.jpg", "3.jpg")]


def test_coco_missing_or_broken_files(tmp_path: Path, coco: Register) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.json does not exist"):
        register_coco_json("none", tmp_path / "none.json", tmp_path)
    coco("cut")
    (tmp_path / "my.json").write_text("{")
    with pytest.raises(ValueError, match=r"my\.json is not valid JSON"):
        get_records("cut")
    coco("unnamed", classes=["z"])
    with pytest.raises(ValueError, match="unnamed: classes: there is no class 'z'"):
        get_records("unnamed")
    register_coco_json("elsewhere", tmp_path / "my.json", tmp_path / "images")
    with pytest.raises(FileNotFoundError, match=r"images/1\.jpg does not exist; correct image_root"):
        get_records("elsewhere")


def test_genuine_coco_annotations(photographs: Path) -> None:
    coco = photographs / "coco_mini"
    json_file, images = coco / "annotations/instances_train2017.json", coco / "train2017"
    for split, extra in (("train", {"exclude_images_with_novel": True}), ("val", {"min_area": 1024})):
        register_coco_json(split, json_file, images, fold=0, split=split, **extra)
    train, val = get_records("train"), get_records("val")
    assert not {r["image_id"] for r in train} & {r["image_id"] for r in val}
    assert MetadataCatalog.get("val").class_ids == list(range(0, 80, 4))
    assert len({c for r in val for c in r["classes"]}) >= 19
    assert all((load_mask(r, r["classes"][0]) == 1).sum() >= 1024 for r in val[:20])
