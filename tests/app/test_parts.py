"""Limits, messages, drawing, the zip file, the pool of methods."""

import io
import json
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from PIL import Image

from fss_d2.app.drawing import VisitorFiles, draw_prediction, draw_support, on_screen, to_picture
from fss_d2.app.methods import MethodPool
from fss_d2.app.results import Result, pack
from fss_d2.app.session import Finding
from fss_d2.app.uploads import Limits, SupportList, check_upload, free_name, read_upload
from fss_d2.inference.annotations import read_support
from fss_d2.inference.prediction import Prediction
from fss_d2.label.writers import class_list
from fss_d2.visualization import class_color
from tests.app.pages import LIMITS, disc, disc_mask, make_pool, save


def two_classes() -> Prediction:
    """Four pixels, two classes."""
    probability = np.float32([[[0.2, 0.6, 0.7, 0.4]], [[0.1, 0.7, 0.3, 0.4]]])
    return Prediction(("cat", "dog"), probability, np.uint8([[0, 2, 1, 0]]))


class TestLimits:
    """Files that are refused before they are read."""

    def test_a_picture_is_read(self, tmp_path: Path) -> None:
        upload = read_upload(save(tmp_path / "a.png", disc(40, 40)), LIMITS)
        assert upload.name == "a.png" and upload.megapixels == 0.0108
        np.testing.assert_array_equal(upload.pixels, disc(40, 40))

    def test_pixels(self, tmp_path: Path) -> None:
        path = save(tmp_path / "bomb.png", np.zeros((1000, 1000), bool))  # a few bytes
        with pytest.raises(ValueError, match=r"^bomb\.png has 1000x1000 pixels: at most 0\.5 million are"):
            check_upload(path, LIMITS)

    def test_bytes(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(bytes(1_000_001))
        with pytest.raises(ValueError, match=r"^a\.png has more than 1 MB"):
            check_upload(tmp_path / "a.png", LIMITS)

    @pytest.mark.parametrize(
        "content", [b"", b"root:x:0:0", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
    )
    def test_other_files(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.png").write_bytes(content)
        path = tmp_path / "a.png"
        with pytest.raises(ValueError) as refused:
            check_upload(path, LIMITS)
        reason = f"cannot identify image file {str(path)!r}"
        assert str(refused.value) == f"image file {path} cannot be read ({reason}); replace it"
        with pytest.raises(ValueError, match=r"^mask file .*a\.png cannot be read"):
            check_upload(path, LIMITS, "mask")

    def test_jpeg_of_many_scans(self, tmp_path: Path) -> None:
        path, picture = tmp_path / "a.jpg", Image.fromarray(disc(40, 40))
        picture.save(path, progressive=True)
        check_upload(path, LIMITS)
        content = path.read_bytes()
        start = content.rfind(b"\xff\xda")
        path.write_bytes(content[:-2] + 200 * content[start:-2] + content[-2:])
        with pytest.raises(ValueError, match=r"a\.jpg cannot be read \(2\d\d scans, more than 200\)"):
            check_upload(path, LIMITS)

    def test_tiff_with_tiles_beyond_the_picture(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tif"  # 16 x 16 pixels in one tile of zeros
        sizes = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: 8192, 323: 8192, 324: 8}
        content = zlib.compress(bytes(8192 * 8192))
        tags = [struct.pack("<HHII", tag, 4, 1, n) for tag, n in (sizes | {325: len(content)}).items()]
        start = struct.pack("<2sHI", b"II", 42, 8 + len(content))
        path.write_bytes(b"".join([start, content, struct.pack("<H", len(tags)), *tags, bytes(4)]))
        with pytest.raises(ValueError, match=r"^a\.tif has 8192x8192 pixels: at most 0\.5 million"):
            check_upload(path, LIMITS)

    def test_numbers(self) -> None:
        with pytest.raises(ValueError, match="limit pictures is 0: give a number above 0"):
            Limits(pictures=0)
        with pytest.raises(ValueError, match="limit megapixels is nan: give a number above 0"):
            Limits(megapixels=float("nan"))

    def test_names(self) -> None:
        assert free_name("a.jpg", {"b.jpg"}) == "a.jpg"
        assert free_name("a.jpg", {"a.jpg", "a (2).jpg"}) == "a (3).jpg"


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (
            "image file /tmp/x/ab12/my dog.png cannot be read (bad); replace it",
            "image file my dog.png cannot",
        ),
        (r"mask C:\Users\me\m.png has the value 3", "mask m.png has"),
        ("mask file '/tmp/m.png': no pixel", "mask file 'm.png': no"),
        ("sizes 3/4 and/or 5", "sizes 3/4 and/or 5"),
        ("first\n  File '/a/b.py', line 3", "first"),
    ],
)
@pytest.mark.parametrize("kind", [ValueError, RuntimeError])
def test_messages_have_no_folders(message: str, shown: str, kind: type[Exception]) -> None:
    events = pytest.importorskip("fss_d2.app.events", reason="needs the extra app")
    text = events.public_message(kind(message))
    assert text.startswith(shown) and "\n" not in text and "/tmp" not in text and "Users" not in text


def test_messages_of_the_system() -> None:
    events = pytest.importorskip("fss_d2.app.events", reason="needs the extra app")
    missing = FileNotFoundError(2, "No such file", "/srv/secret/x.png")
    assert events.public_message(missing) == "x.png: No such file"
    assert events.public_message(RuntimeError()) == "RuntimeError"


def broken_files(folder: Path) -> dict[str, Path]:
    """Pictures and masks that cannot be used, by kind."""
    whole = Path(save(folder / "whole.png", disc(40, 40))).read_bytes()
    contents = {"text": b"no picture", "empty": b"", "cut": whole[: len(whole) // 2]}
    paths = {kind: folder / f"{kind}.png" for kind in contents}
    for kind, content in contents.items():
        paths[kind].write_bytes(content)
    paths["size"] = Path(save(folder / "size.png", np.ones((10, 10), bool)))
    paths["nothing"] = Path(save(folder / "nothing.png", np.zeros((90, 120), bool)))
    paths["values"] = Path(save(folder / "values.png", np.uint8([[0, 3, 7, 90] * 30] * 90)))
    return paths


@pytest.mark.parametrize("kind", ["text", "empty", "cut", "size", "nothing", "values"])
def test_errors_of_reading_are_those_of_the_command_line(tmp_path: Path, kind: str) -> None:
    """But for folders, which are those of the server."""
    events = pytest.importorskip("fss_d2.app.events", reason="needs the extra app")
    path, supports = broken_files(tmp_path)[kind], SupportList(LIMITS)
    good = tmp_path / "whole.png"
    if kind in ("text", "empty", "cut"):
        with pytest.raises(ValueError) as on_page:
            supports.add([path])
        with pytest.raises(ValueError) as in_program:
            read_support(path, good, "object")
        assert events.public_message(on_page.value) == events.public_message(in_program.value)
    supports.add([good])
    with pytest.raises(ValueError) as on_page:
        supports.read_mask(path)
    with pytest.raises(ValueError) as in_program:
        read_support(good, path, "object")
    texts = [events.public_message(error.value) for error in (on_page, in_program)]
    assert texts[0] == texts[1]
    assert f"{kind}.png" in events.public_message(on_page.value)


def test_points_on_the_screen() -> None:
    assert on_screen(np.zeros((1440, 720, 3), np.uint8)).shape == (720, 360, 3)
    assert on_screen(np.zeros((90, 120), np.uint8)).shape == (90, 120)
    assert to_picture((0, 719), 1440, 720) == (1, 1439)  # the middle of two pixels
    with pytest.raises(ValueError, match="outside the picture of 360x720"):
        to_picture((360, 0), 1440, 720)


def test_drawings() -> None:
    mask = disc_mask(40, 40).astype(np.uint8)
    plain = disc(40, 40)
    np.testing.assert_array_equal(draw_support(plain, None), plain)
    marked = draw_support(plain, None, corner=(100, 70))
    changed = (marked != plain).any(axis=2)
    assert changed[70, 100] and not changed[mask == 1].any()
    assert (draw_support(plain, mask) != plain).any(axis=2)[mask == 1].all()
    large = np.zeros((1440, 1440, 3), np.uint8)
    labels = np.zeros((1440, 1440), np.uint8)
    labels[:720, :720] = 2
    drawn = draw_prediction(large, Prediction(("a", "b"), np.zeros((2, 1440, 1440), np.float32), labels))
    assert drawn[180, 180].any() and not drawn[540, 180].any() and drawn.shape == (720, 720, 3)


def result(name: str, prediction: Prediction, *, accepted: bool = False) -> Result:
    return Result(name, np.zeros((*prediction.labels.shape, 3), np.uint8), prediction, accepted)


def test_the_zip_file() -> None:
    prediction = two_classes()
    archive = zipfile.ZipFile(io.BytesIO(pack([result("a.jpg", prediction), result("a.png", prediction)])))
    names = {"mask/classes.txt", "mask/a.jpg.png", "mask/a.png.png", "coco/annotations.json"}
    names |= {"overlay/a.jpg.jpg", "overlay/a.png.jpg", "needs_review.txt"}
    assert set(archive.namelist()) == names
    assert archive.read("mask/classes.txt") == class_list(prediction.names) == b"cat\ndog\n"
    image = Image.open(io.BytesIO(archive.read("mask/a.jpg.png")))
    assert image.mode == "P"
    np.testing.assert_array_equal(np.asarray(image), prediction.labels)
    content = json.loads(archive.read("coco/annotations.json"))
    drawn = np.zeros((1, 4), np.uint8)
    for item in content["annotations"]:
        if item["image_id"] == 2:
            drawn[coco_mask.decode(item["segmentation"]) == 1] = item["category_id"]
    np.testing.assert_array_equal(drawn, prediction.labels)


def one_class(name: str, expected: float, height: int = 30) -> Prediction:
    """The upper half is the object."""
    labels = np.zeros((height, 40), np.uint8)
    labels[: height // 2] = 1
    return Prediction((name,), np.full((1, height, 40), 0.6, np.float32), labels, {name: expected})


def test_overlays_in_the_zip_file_have_the_colour_of_the_class() -> None:
    results = [result("a.jpg", one_class("cat", 0.9)), result("b.jpg", one_class("dog", 0.9))]
    archive = zipfile.ZipFile(io.BytesIO(pack(results, ["dog", "gone", "cat"])))
    assert archive.read("mask/classes.txt") == b"dog\ncat\n"
    for name, number in (("a", 1), ("b", 0)):  # half of the colour, over black
        overlay = np.asarray(Image.open(io.BytesIO(archive.read(f"overlay/{name}.jpg")))).astype(float)
        np.testing.assert_allclose(overlay[5, 20], 127.5 * np.array(class_color(number)), atol=8)
        assert overlay[25, 20].max() < 8
        labels = np.asarray(Image.open(io.BytesIO(archive.read(f"mask/{name}.png"))))
        assert set(np.unique(labels)) == {0, number + 1}


def test_the_list_to_review_has_the_worst_first_and_nothing_that_was_accepted() -> None:
    blank = np.full((1, 30, 40), 0.45, np.float32), np.zeros((30, 40), np.uint8)
    nothing = Prediction(("cat",), *blank, {}, {"cat": 0.45})
    results = [
        result("fine.jpg", one_class("cat", 0.66)),
        result("bad.jpg", one_class("cat", 0.64)),
        result("worst.jpg", one_class("cat", 0.51)),
        result("empty.jpg", nothing),  # nearly present
        result("done.jpg", one_class("cat", 0.52), accepted=True),
    ]
    archive = zipfile.ZipFile(io.BytesIO(pack(results)))
    assert archive.read("needs_review.txt") == b"worst.jpg\nempty.jpg\nbad.jpg\n"


def test_files_of_a_visitor(tmp_path: Path) -> None:
    files = VisitorFiles(tmp_path)
    assert not list(tmp_path.iterdir())
    path = files.picture(disc(40, 40))
    inode = Path(path).stat().st_ino
    assert files.picture(disc(40, 40)) == path and Path(path).stat().st_ino == inode  # not written again
    assert np.abs(np.asarray(Image.open(path)).astype(int) - disc(40, 40)).mean() < 2
    packed = Path(files.file(b"zip", "/masks.zip"))
    assert packed.name == "masks.zip" and packed.read_bytes() == b"zip"
    assert VisitorFiles(tmp_path).folder != files.folder
    files.clear()
    assert not list(tmp_path.iterdir())


def test_the_table_escapes_names() -> None:
    events = pytest.importorskip("fss_d2.app.result_events", reason="needs the extra app")
    finding = Finding(
        "<b>.png", np.zeros((1, 1, 3), np.uint8), 200, {"<i>": 50, "x": 0}, {"<i>": 0.9, "x": 0.0}
    )
    table = events.findings_table([finding])
    assert "&lt;b&gt;.png" in table and "&lt;i&gt;" in table and "<b>.png" not in table
    assert "25.0 %" in table and "0.90" in table and "not found" in table
    assert "No masks yet" in events.findings_table([])


class TestMethodPool:
    """Models by name."""

    def test_supports_of_two_visitors(self) -> None:
        pool = make_pool("Prototype")
        one, other = pool.predictor("Prototype"), pool.predictor("Prototype")
        one.set_support(disc(40, 40), disc_mask(40, 40))
        assert one.model is other.model and one.names == ("object",) and other.names == ()
        assert pool.predictor("Prototype").names == ()

    def test_from_files(self, tmp_path: Path) -> None:
        base = Path(__file__).parents[2] / "configs/prototype/glyphs_efficientnet_lite0.yaml"
        config = tmp_path / "prototype/tiny.yaml"
        config.parent.mkdir()
        config.write_text(f'_BASE_: {base}\nMODEL:\n  BACKBONE:\n    WEIGHTS: ""\n')
        assert MethodPool.load([config], ["-"], device="cpu").names == ("prototype/tiny",)
        with pytest.raises(ValueError, match="config prototype/tiny is given twice"):
            MethodPool.load([config, config], device="cpu")
        with pytest.raises(FileNotFoundError, match=r"none\.pth"):
            MethodPool.load([config], [str(tmp_path / "none.pth")], device="cpu")

    def test_bad_arguments(self) -> None:
        with pytest.raises(ValueError, match="1 configs and 2 weights: give '-' for none"):
            MethodPool.load(["a.yaml"], ["b", "c"])
        with pytest.raises(ValueError, match="no method to offer"):
            MethodPool({})
