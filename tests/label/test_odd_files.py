"""Images of cameras and scanners, and classes with any name, from the supports to the labels."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import yaml
from PIL import Image

from fss_d2.label.job import Job, run_job
from fss_d2.label.supports import read_supports
from tests.label.fakes import ColourPredictor, annotated_folder, disc, picture, save

SIZE, OBJECT = (40, 50), disc((40, 50), (12, 15), 9)  # off the middle: a turn is seen
Save = Callable[[Image.Image, Path], None]


def _exif(image: Image.Image, path: Path) -> None:
    """Stored sideways with an EXIF orientation, like a camera that is held upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=95, subsampling=0)


def _animated(image: Image.Image, path: Path) -> None:
    image.save(path, save_all=True, append_images=[Image.new("RGB", image.size, "blue")], lossless=True)


def _as(mode: str) -> Save:
    return lambda image, path: image.convert(mode).save(path)


IMAGES: dict[str, Save] = {
    "turned.jpg": _exif,
    "IMG_0001.JPG": lambda image, path: image.save(path, quality=95, subsampling=0),
    "cmyk.jpg": lambda image, path: image.convert("CMYK").save(path, quality=95),
    "palette.png": lambda image, path: image.quantize(16).save(path),
    "clear.png": _as("RGBA"),
    "moving.gif": _animated,
    "frames.webp": _animated,
    "a b/ü (1).tiff": lambda image, path: image.save(path),
    "c/ü (1).tiff": lambda image, path: image.save(path),
    " .bmp": lambda image, path: image.save(path),
}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of `IMAGES`, labelled; the first frame of an animation counts."""
    root = tmp_path_factory.mktemp("odd")
    for number, (name, write) in enumerate(IMAGES.items()):
        (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        write(Image.fromarray(picture({"red": OBJECT}, SIZE, seed=number)), root / "images" / name)
    supports = read_supports(annotated_folder(root / "supports"))
    summary = run_job(Job(root / "images", root / "out"), ColourPredictor(), supports)
    assert summary["labelled"] == len(IMAGES) and not summary["unreadable"]
    return root


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize("name", IMAGES)
def test_labels_lie_on_the_upright_image(name: str, labelled: Path) -> None:
    class_map = np.asarray(Image.open((labelled / "out/png" / name).with_suffix(".png")))
    assert class_map.shape == SIZE
    assert overlap(class_map == 1, OBJECT) > 0.85
    content = json.loads((labelled / "out/coco/annotations.json").read_bytes())
    (image,) = (i for i in content["images"] if i["file_name"] == name)
    assert (image["height"], image["width"]) == SIZE
    masks = [a["segmentation"] for a in content["annotations"] if a["image_id"] == image["id"]]
    np.testing.assert_array_equal(coco_mask.decode(coco_mask.merge(masks)), class_map)
    shape = json.loads((labelled / "out/labelme" / name).with_suffix(".json").read_bytes())
    assert (shape["imageHeight"], shape["imageWidth"]) == SIZE


def test_labels_serve_as_supports(labelled: Path) -> None:
    """COCO's are exact; LabelMe's polygons are off by up to half a pixel at the rim."""
    coco = read_supports(labelled / "out/coco/annotations.json", labelled / "images")["red"]
    labelme = read_supports(labelled / "out/labelme")["red"]
    assert len(coco) == len(labelme) == len(IMAGES)
    for support in coco:
        name = support.files[0].relative_to(labelled / "images")
        class_map = np.asarray(Image.open((labelled / "out/png" / name).with_suffix(".png")))
        np.testing.assert_array_equal(support.mask, class_map)
    assert all(overlap(support.mask == 1, OBJECT) > 0.75 for support in labelme)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16"])
def test_masks_of_any_mode(mode: str, tmp_path: Path) -> None:
    """The photograph has an EXIF orientation, and the masks fit its stored frame."""
    for part in ("images", "masks"):
        (tmp_path / "red" / part).mkdir(parents=True)
    _exif(Image.fromarray(picture({"red": OBJECT})), tmp_path / "red/images/a.JPG")
    stored = np.rot90(OBJECT)
    mask = Image.fromarray(stored.astype(np.uint16) * 65535) if mode == "I;16" else Image.fromarray(stored)
    if mode == "P":
        mask = Image.fromarray(stored.astype(np.uint8))
        mask.putpalette([0, 0, 0, 128, 0, 0])  # as VOC draws its first class
    mask.convert(mode).save(tmp_path / "red/masks/a.PNG")
    (support,) = read_supports(tmp_path)["red"]
    np.testing.assert_array_equal(support.mask == 1, OBJECT)


def test_classes_of_any_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No file is named after a class, and no class name breaks a format or the page."""
    names = ["a/b", "../x", "<b>&\"'", "two\nlines", "日本", os.fsdecode(b"bad\xff"), "0: {x}", "# no"]
    images, annotations = [], []
    for number, _ in enumerate(names, start=1):
        save(tmp_path / f"s/{number}.png", picture({"red": OBJECT}, seed=number))
        images.append({"id": number, "file_name": f"{number}.png", "height": SIZE[0], "width": SIZE[1]})
        square = [[5, 5, 20, 5, 20, 20, 5, 20]]
        annotations.append(
            {"id": number, "image_id": number, "category_id": number, "segmentation": square, "iscrowd": 0}
        )
    categories = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "s/coco.json").write_text(json.dumps(content))
    save(tmp_path / "images/q.png", picture({"red": OBJECT}, seed=99))
    out = tmp_path / "out"
    with caplog.at_level(logging.INFO):
        run_job(Job(tmp_path / "images", out), ColourPredictor(), read_supports(tmp_path / "s/coco.json"))
    assert r"bad\udcff" in caplog.text.encode("utf-8").decode()  # a log is UTF-8
    written = json.loads((out / "coco/annotations.json").read_bytes())
    assert [category["name"] for category in written["categories"]] == names
    assert yaml.safe_load((out / "yolo/data.yaml").read_text())["names"] == dict(enumerate(names))
    listed = (out / "png/classes.txt").read_bytes().decode("utf-8", "surrogateescape")
    assert listed.splitlines() == [name.replace("\n", " ") for name in names]
    page = (out / "report.html").read_bytes()
    assert b"<b>" not in page and b"&lt;b&gt;&amp;&quot;&#x27;" in page
    assert {path.name for path in tmp_path.iterdir()} == {"s", "images", "out"}
