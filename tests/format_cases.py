"""Inputs that give the messages of docs/FORMATS.md."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from fss_d2.checkpoint.checkpointer import FewShotCheckpointer
from fss_d2.config import get_cfg, load_config
from fss_d2.data import get_records, register_coco_json
from fss_d2.data.images import read_image
from fss_d2.inference.export import format_of
from fss_d2.label.job import Job, find_images, run_job
from fss_d2.label.negatives import read_negatives
from fss_d2.label.supports import read_supports
from tests.data.test_mask_decoding import ALL, OBJECTS, SOFT, VOC, VOID, cut_out, palette
from tests.data.test_pairs import touch
from tests.data.test_picture_files import HEIC
from tests.data.test_picture_files import write as write_picture
from tests.io import test_weight_files as weights
from tests.label.fakes import ColourPredictor, annotated_folder, disc, picture, save
from tests.label.test_exports import LOW, OTHER, SIZE, SQUARE, annotation, entry, photo
from tests.label.test_exports import write as write_coco
from tests.label.test_labelme import HOLE, shape
from tests.label.test_labelme import SQUARE as CORNERS
from tests.label.test_labelme import write as write_labelme
from tests.spoiling import Code

__all__ = ["CASES", "Producer"]

Producer = Callable[[Path], object]  # makes the input in an empty folder and reads it


# -- pictures ----------------------------------------------------------------------------------------------


def deep(folder: Path, top: int, name: str = "a.png") -> None:
    Image.fromarray(np.array([[0, top]], np.uint16)).save(folder / name)
    read_image(folder / name)


def two_depths(folder: Path) -> None:
    deep(folder, 4000)
    deep(folder, 60000, "b.png")


def pixels(folder: Path, dtype: type, value: float) -> None:
    Image.fromarray(np.full((2, 3), value, dtype)).save(folder / "a.tif")
    read_image(folder / "a.tif")


def pages(folder: Path) -> None:
    page = Image.new("RGB", (4, 3))
    page.save(folder / "a.tif", save_all=True, append_images=[page])
    read_image(folder / "a.tif")


def to_label(folder: Path, name: str = "IMG_1.HEIC", content: bytes | None = HEIC) -> None:
    write_picture(folder / name, content)
    write_picture(folder / "b.png")
    find_images(folder, folder / "out")


def links(folder: Path, name: str, target: str) -> None:
    write_picture(folder / "sub/b.png")
    (folder / name).symlink_to(target)
    find_images(folder, folder / "out")


# -- masks -------------------------------------------------------------------------------------------------


def masked(
    folder: Path, mask: Any, rule: str | None = None, name: str = "a_mask.png", orientation: int = 1
) -> None:
    """A picture with a mask next to it, read as a support."""
    mask = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
    photo(folder / "a.jpg", mask.size[::-1], orientation)
    mask.save(folder / name)
    read_supports(folder, mask_values=rule)


def colours(count: int) -> np.ndarray:
    """OBJECTS in ``count`` colours on black."""
    rgb = np.zeros((*OBJECTS.shape, 3), np.uint8)
    for number in (1, 2, 3):
        rgb[number == OBJECTS] = (40 * min(number, count), 90, 0)
    return rgb


def heat_map() -> np.ndarray:
    y, x = np.ogrid[:60, :80]
    return (255 * np.exp(-((y - 30) ** 2 + (x - 40) ** 2) / 300)).astype(np.uint8)


def on_glass(image: np.ndarray) -> np.ndarray:
    """Colours on a transparent ground."""
    return np.dstack([image, ALL * np.uint8(255)])


def veil() -> np.ndarray:
    return np.dstack([colours(1), np.tile(np.linspace(0, 255, 40).astype(np.uint8), (30, 1))])


def other_size(folder: Path) -> None:
    photo(folder / "a.jpg", (8, 9))
    Image.fromarray(ALL).save(folder / "a_mask.png")
    read_supports(folder)


# -- folders -----------------------------------------------------------------------------------------------


def laid_out(folder: Path, *names: str) -> None:
    touch(folder, *names)
    read_supports(folder)


def with_heic(folder: Path) -> None:
    write_picture(folder / "b.HEIC", HEIC)
    masked(folder, ALL * 255)


def with_subfolder(folder: Path) -> None:
    for part in ("images", "masks", "images/more"):
        save(folder / "cup" / part / "a.png", np.full((4, 5), 255, np.uint8))
    read_supports(folder)


def other_json(folder: Path) -> None:
    (folder / "meta.json").write_text("{}")
    masked(folder, ALL)


def both_kinds(folder: Path, *names: str) -> None:
    labelme(folder, run=False)
    for name in names:
        if name.endswith(".json"):
            write_coco(folder / name, [entry()], [annotation()])
        else:
            touch(folder, name)
    read_supports(folder)


def two_coco(folder: Path) -> None:
    write_coco(folder / "b.json", [entry()], [annotation()])
    coco(folder, json_file="c.json", source=folder)


# -- COCO and LabelMe --------------------------------------------------------------------------------------


def coco(
    folder: Path,
    segmentation: Any = None,
    *,
    rows: list[Any] | None = None,
    images: list[Any] | None = None,
    names: list[str] | None = None,
    picture: str = "a.jpg",
    orientation: int = 1,
    json_file: str = "c.json",
    source: Path | None = None,
    **more: Any,
) -> None:
    """A COCO file of one picture, read as supports; ``more`` are keys of its only annotation."""
    photo(folder / picture, SIZE, orientation)
    row = {**annotation(), **more} | ({} if segmentation is None else {"segmentation": segmentation})
    categories = [{"id": number, "name": name} for number, name in enumerate(names or ["cup"], 1)]
    path = write_coco(folder / json_file, images or [entry()], rows or [row], categories)
    read_supports(source or path, image_option="--support-images")


def runs(counts: Any, size: tuple[int, int] = SIZE) -> dict[str, Any]:
    return {"size": list(size), "counts": counts}


def coco_set(folder: Path) -> None:
    photo(folder / "a.jpg")
    photo(folder / "b.jpg")
    rows = [annotation(), annotation([[1, 2, 3]], id=2, image_id=2)]
    write_coco(folder / "c.json", [entry(), entry("b.jpg", 2)], rows)
    register_coco_json(f"{folder} left out", folder / "c.json", folder)
    get_records(f"{folder} left out")


def labelme(folder: Path, *shapes: Any, run: bool = True, orientation: int = 1, **more: Any) -> None:
    photo(folder / "a.jpg", SIZE, orientation)
    path = write_labelme(folder, list(shapes) or [shape(CORNERS)], **more)
    if run:
        read_supports(path)


def text(folder: Path, content: str | bytes) -> None:
    (folder / "c.json").write_bytes(content.encode() if isinstance(content, str) else content)
    read_supports(folder / "c.json")


BOX = {"segmentation": [], "bbox": [45, 10, 10, 10]}
TWICE = [annotation(), annotation([OTHER], id=2, image_id=2)]
FLAT = [[20, 10, 30, 10, 40, 10]]

# -- weights, configs --------------------------------------------------------------------------------------


def model() -> nn.ModuleDict:
    return nn.ModuleDict({"backbone": nn.Linear(2, 2), "head": nn.Linear(2, 3)})


def checkpoint(folder: Path, content: Any, **keys: Any) -> None:
    """Load a weight file of this content, bytes or what `torch.save` takes, into `model`."""
    cfg, path = get_cfg(), folder / "w.pth"
    cfg.MODEL.BACKBONE.WEIGHTS = ""
    cfg.MODEL.update(keys)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    FewShotCheckpointer(model(), cfg=cfg).load(str(path))


def part(*names: str, **changed: torch.Tensor) -> dict[str, torch.Tensor]:
    state = model().state_dict() | {name.replace("_", ".", 1): tensor for name, tensor in changed.items()}
    return {name: tensor for name, tensor in state.items() if not names or name.startswith(names)}


def safetensors(folder: Path) -> None:
    save_file(part(), folder / "w.pth")
    checkpoint(folder, None)


def damaged() -> bytes:
    content = bytearray(weights._saved({"a": torch.full((1000,), 3.0)}))
    content[content.index(torch.full((9,), 3.0).numpy().tobytes()) + 100] ^= 64
    return bytes(content)


def config(folder: Path, content: str | bytes) -> None:
    (folder / "a.yaml").write_bytes(content.encode() if isinstance(content, str) else content)
    load_config(str(folder / "a.yaml"))


# -- outputs -----------------------------------------------------------------------------------------------


def job(folder: Path, *names: str, **options: Any) -> None:
    """Label small pictures of these names with a predictor that needs no network."""
    annotated_folder(folder / "annotated")
    for number, name in enumerate(names or ("p.png",)):
        save(folder / "photos" / name, picture({"red": disc((40, 50), (20, 20), 8)}, seed=50 + number))
    supports = read_supports(folder / "annotated")
    settings = Job(folder / "photos", options.pop("output", folder / "out"), check=0, **options)
    run_job(settings, ColourPredictor(), supports)


def not_a_folder(folder: Path) -> None:
    touch(folder, "file")
    job(folder, output=folder / "file/out")


def no_space(folder: Path) -> None:
    """A folder in the place of a file stands for any error of the disk."""
    job(folder)
    (folder / "out/report.html").unlink()
    (folder / "out/report.html").mkdir()
    job(folder)


def no_checkpoint(folder: Path) -> None:
    (folder / "a.pth").mkdir()
    FewShotCheckpointer(model(), str(folder)).save("a")


# -- the messages ------------------------------------------------------------------------------------------

# Words of a message; the shortest text of the page that holds them is meant.
CASES: list[tuple[str, Producer]] = [
    # Pictures.
    ("channel, scaled to 8", partial(deep, top=4000)),
    ("others there as", two_depths),
    ("Pictures in <folder>", pages),
    ("Left out in <folder>", to_label),
    ("Left out in <folder>", with_heic),
    ("cannot be read", lambda f: read_image(write_picture(f / "a.jpg", b""))),
    ("floating-point", partial(pixels, dtype=np.float32, value=0.5)),
    ("has values from", partial(pixels, dtype=np.int32, value=70000)),
    ("files cannot be decoded", to_label),
    ("picture with the ending", partial(to_label, name="a.bak", content=None)),
    ("no file ending", partial(to_label, name="a", content=b"text")),
    ("a link to a file", partial(links, name="a.png", target="gone.png")),
    ("a link to a folder", partial(links, name="loop", target="sub")),
    ("subfolders are not searched", with_subfolder),
    # Masks.
    ("<value> is the object, 0 background", partial(masked, mask=ALL * 15)),
    ("<value> is the object, 0 background", partial(masked, mask=palette(ALL, [0, 0, 0, 255, 255, 255]))),
    ("255 is ignored", partial(masked, mask=VOID)),
    ("<value> is the object, <value> background", partial(masked, mask=30 + 170 * ALL)),
    ("black and white", partial(masked, mask=SOFT)),
    ("palette index <n>", partial(masked, mask=palette(VOID, VOC))),
    ("black background", partial(masked, mask=colours(1))),
    ("a cut-out", partial(masked, mask=cut_out(ALL))),
    ("mask_values <rule>", partial(masked, mask=OBJECTS, rule="1,2")),
    ("Masks in <folder>: <meaning>", partial(masked, mask=ALL)),
    ("fills the whole border", partial(masked, mask=1 - ALL)),
    ("holds the values <values>: say", partial(masked, mask=OBJECTS)),
    ("in total", partial(masked, mask=heat_map())),
    ("palette indices", partial(masked, mask=palette(OBJECTS, VOC))),
    ("holds the colours <values>: say", partial(masked, mask=colours(3))),
    ("and transparent pixels", partial(masked, mask=on_glass(colours(3)))),
    ("the alpha values", partial(masked, mask=veil())),
    ("is transparent", partial(masked, mask=np.zeros((4, 5, 4), np.uint8))),
    ("save it with 0 for background", partial(masked, mask=-ALL.astype(np.int32), name="a_mask.tif")),
    ("no pixel of the image", partial(masked, mask=ALL * 0)),
    ("but its image <image> is", other_size),
    ("no number or colour", partial(masked, mask=ALL, rule="cup=white")),
    ("mask_values names", partial(masked, mask=ALL, rule="cups=1")),
    ("frame=upright or frame=stored", partial(masked, mask=VOID, orientation=3)),
    # Pairs and folders.
    ("give a picture or folder", lambda f: read_negatives([str(f / "gone")], ["cup"])),
    ("there is no class <class> either", lambda f: read_negatives([f"cap={f}"], ["cup"])),
    ("holds no picture: give", lambda f: read_negatives([str(f)], ["cup"])),
    ("has no mask", lambda f: laid_out(f, "a.jpg")),
    (
        "has no image in <folder>: add",
        lambda f: laid_out(f, "cup/images/a.jpg", "cup/masks/a.png", "cup/masks/b.png"),
    ),
    ("has no image in <folder> that can be read", lambda f: laid_out(f, "b.HEIC", "b_mask.png")),
    ("have the same name", lambda f: laid_out(f, "a.jpg", "a.bmp", "a_mask.png")),
    ("has the masks", lambda f: laid_out(f, "a.jpg", "a_mask.bmp", "a_mask.png")),
    (
        "(<name>) but no folder images",
        lambda f: laid_out(f, "cup/images/a.jpg", "cup/masks/a.png", "key/b.jpg"),
    ),
    ("a folder masks", lambda f: laid_out(f, "cup/images/a.jpg", "cup/masks/a.png", "key/masks/b.png")),
    ("next to its folder images", lambda f: laid_out(f, "cup/images/a.jpg", "cup/masks/a.png", "cup/b.jpg")),
    ("<file> is not used", other_json),
    ("LabelMe files and a mask", lambda f: both_kinds(f, "b.jpg", "b_mask.png")),
    ("COCO's format and", lambda f: both_kinds(f, "c.json")),
    ("COCO files", two_coco),
    # COCO and LabelMe: the log.
    ("holds the COCO file", lambda f: coco(f, source=f)),
    (
        "found <n> pictures",
        lambda f: (
            photo(f / "b.jpg"),
            coco(f, rows=TWICE, images=[entry("/x/a.jpg"), entry("y\\z\\b.jpg", 2)]),
        ),
    ),
    ("objects with a box", partial(coco, rows=[annotation(), annotation() | BOX])),
    ("outlines with iscrowd 1", partial(coco, rows=[annotation(), annotation([OTHER], iscrowd=1)])),
    ("outlines not written as", partial(coco, segmentation=CORNERS)),
    ("parts of fewer than 3 corners", partial(coco, segmentation=[SQUARE, [5, 5]])),
    (
        "outlines whose polygons overlap",
        partial(coco, segmentation=[SQUARE, [25, 15, 25, 25, 35, 25, 35, 15]]),
    ),
    ("do not fit their box", partial(coco, bbox=[0, 0, 5, 5])),
    ("outlines that reach", partial(coco, segmentation=[[50, 40, 90, 40, 90, 99, 50, 99]])),
    ("reaches out of its picture", lambda f: labelme(f, shape([[50, 40], [90, 40], [90, 99], [50, 99]]))),
    ("listed again", partial(coco, rows=TWICE, images=[entry(), entry(image_id=2)])),
    ("ids as numbers and as texts", partial(coco, image_id="1")),
    ("category <name> is listed", partial(coco, names=["cup", "cup"])),
    ("on the stored picture", partial(coco, orientation=6)),
    ("on the upright picture", partial(coco, orientation=3)),
    ("but the <frame> picture", partial(coco, segmentation=[LOW], orientation=6)),
    ("do not fit imageHeight", lambda f: labelme(f, shape([[10, 50], [30, 50], [30, 60]]), orientation=6)),
    ("not used for one of their classes", coco_set),
    # COCO and LabelMe: refused.
    ("<picture>, annotation <id>: <reason>", partial(coco, segmentation=FLAT)),
    ("cannot be drawn", lambda f: labelme(f, shape([[1, 1]]))),
    ("has boxes (<n>)", partial(coco, **BOX)),
    ("which marks a crowd", partial(coco, iscrowd=1)),
    ("but annotated as", partial(coco, images=[entry(size=(96, 128))])),
    ("its height is", partial(coco, images=[entry(size=(None, 64))])),
    ("image <path> does not exist", partial(coco, images=[entry("other.jpg")])),
    ("two categories", partial(coco, rows=[annotation(), annotation(category_id=2)], names=["cup", "cup"])),
    (
        "give them one name",
        partial(coco, rows=[annotation(), annotation(category_id=2)], names=["cup", "Cup "]),
    ),
    ("later shapes", lambda f: labelme(f, shape(HOLE), shape(CORNERS, label="_background_"))),
    # Outlines.
    ("finite numbers", partial(coco, segmentation=[[*SQUARE[:-1], np.nan]])),
    ("far outside the picture", partial(coco, segmentation=[[*SQUARE[:-1], 3e8]])),
    ("lies outside the picture", partial(coco, segmentation=[[70, 50, 80, 50, 80, 60]])),
    ("shares of the picture", partial(coco, segmentation=[[0.1, 0.1, 0.5, 0.1, 0.5, 0.6]])),
    ("give a box as 'bbox'", partial(coco, segmentation=[[10, 10, 20, 20]])),
    ("fewer than 3 corners (<n>)", partial(coco, segmentation=[[10, 10]])),
    ("an odd number", partial(coco, segmentation=[[20, 10, 5, 40, 10, 5, 40, 30, 5]])),
    ("is 0, 1 or 2", partial(coco, segmentation=[[20, 10, 2, 40, 10, 2, 40, 30, 2, 20, 30, 1]])),
    (
        "outline is <value>: give x",
        partial(coco, segmentation=[[20, 10, 7.5, 40, 10, 7.5, 40, 30, 7.5, 20, 30, 7.5]]),
    ),
    ("where a number belongs", partial(coco, segmentation=[[*SQUARE[:-1], "30"]])),
    ("has no area; draw it again", partial(coco, segmentation=FLAT)),
    ("run lengths add", partial(coco, segmentation=runs([100, 50]))),
    ("none can be negative", partial(coco, segmentation=runs([100, -5, 2977]))),
    ("run lengths is cut off", partial(coco, segmentation=runs("S36j"))),
    ("RLE of size", partial(coco, segmentation=runs([3072], SIZE[::-1]))),
    ("neither an outline nor a box", partial(coco, segmentation=[])),
    ("its box is", partial(coco, segmentation=[], bbox=[1, 2])),
    ("its iscrowd is", partial(coco, iscrowd="yes")),
    ("points has no area", lambda f: labelme(f, shape(CORNERS, "linestrip"))),
    ("is not known; draw a polygon", lambda f: labelme(f, shape(CORNERS, "ellipse"))),
    # Weights.
    ("as safetensors", safetensors),
    ("is taken, not", partial(checkpoint, content={"model": part(), "ema": part()})),
    ("have no place in the model", partial(checkpoint, content=part(more=torch.ones(1)))),
    ("they keep their initial values", partial(checkpoint, content=part("backbone"), WEIGHTS_PARTIAL=True)),
    ("<names>: give a whole checkpoint", partial(checkpoint, content=part("backbone", "head.bias"))),
    ("backbone alone", partial(checkpoint, content=part("backbone"))),
    ("holds no backbone", partial(checkpoint, content=part("head"))),
    ("none of its <n> names", partial(checkpoint, content={"a": torch.ones(1)})),
    ("of another shape", partial(checkpoint, content=part(head_bias=torch.ones(5)))),
    ("NaN or infinite, of", partial(checkpoint, content=part(head_bias=torch.full((3,), torch.nan)))),
    ("not quantized", partial(checkpoint, content=part(head_bias=torch.ones(3, dtype=torch.int8)))),
    ("several state dicts", partial(checkpoint, content={"teacher": part(), "student": part()})),
    ("was not run", partial(checkpoint, content=Code())),
    ("bytes announce", lambda f: checkpoint(f, weights._overlapping(100))),
    ("plain tensors: <reason>", partial(checkpoint, content=b"")),
    ("checkpoint <file> does not exist", partial(checkpoint, content=None)),
    ("it is empty; get", partial(checkpoint, content=b"")),
    ("a web page", partial(checkpoint, content=weights._PAGE)),
    ("git-lfs pointer", partial(checkpoint, content=weights._POINTER)),
    ("it is cut off; get", lambda f: checkpoint(f, weights._saved(part())[:-200])),
    ("it is damaged", lambda f: checkpoint(f, damaged())),
    ("which is not read", partial(checkpoint, content=b"\x1f\x8b\x08" + bytes(20))),
    (
        "TorchScript program",
        lambda f: checkpoint(f, weights._zip({"m/data.pkl": b"a", "m/constants.pkl": b"b"})),
    ),
    # Configs and JSON.
    ("FSS_D2_DOWNLOAD=1", partial(config, content="_BASE_: https://example.org/a.yaml")),
    ("its _BASE_ <base> does not exist", partial(config, content="_BASE_: b.yaml")),
    ("not a config: <reason>", partial(config, content="[")),
    ("not found: <fix>", lambda f: get_records("glyphs_fold0_train")),
    ("could not determine a constructor", partial(config, content="SEED: !!python/object:os.x")),
    ("is there twice", partial(config, content="SEED: 1\nSEED: 2")),
    ("not UTF-8 text (<why>)", partial(config, content=b"\xff\x00")),
    ("it is nested too deeply", partial(config, content="SEED: " + "[" * 9999)),
    ("is not valid JSON", partial(text, content="{")),
    ("neither COCO's", partial(text, content="{}")),
    ("it is empty", partial(text, content="")),
    ("stands twice", partial(text, content='{"id": 1, "id": 2}')),
    ("its brackets", partial(text, content="[" * 99999)),
    ("UTF-8 text: byte", partial(text, content=b'{"\xf6": 1}')),
    # Outputs.
    ("The format yolo is left out", lambda f: job(f, "p.png", "p.bmp")),
    ("differ only in their ending", lambda f: job(f, "p.png", "p.bmp")),
    ("differ in case only: on", lambda f: job(f, "P.png", "p.png")),
    ("--formats yolo", lambda f: job(f, "p.png", "p.bmp", formats=("yolo",))),
    ("formats: there is no", lambda f: job(f, formats=("YOLOv8",))),
    ("cannot write to the output folder", not_a_folder),
    ("the ending of no format", lambda f: format_of("cat.bin")),
    ("but the format is", lambda f: format_of("cat.onnx", "torch_export")),
    # Interrupted trainings.
    ("it is not written", no_checkpoint),
    ("finished images", no_space),
]
