"""docs/FORMATS.md: every message that the page quotes comes out of the program, and in that wording."""

import logging
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from fss_d2.checkpoint.checkpointer import FewShotCheckpointer
from fss_d2.config import get_cfg, load_config
from fss_d2.data import get_records, register_coco_json, register_folder
from fss_d2.data.images import read_image
from fss_d2.data.masks import load_sample
from fss_d2.engine.errors import one_line
from fss_d2.engine.replay import replay
from fss_d2.inference.export import format_of
from fss_d2.label.job import Job, find_images, run_job
from fss_d2.label.supports import read_supports
from tests import test_weight_files as weights
from tests.data.test_mask_decoding import ALL, OBJECTS, SOFT, VOC, VOID, cut_out, palette
from tests.data.test_pairs import touch
from tests.data.test_picture_files import HEIC
from tests.data.test_picture_files import write as write_picture
from tests.label.fakes import ColourPredictor, annotated_folder, disc, picture, save
from tests.label.test_exports import LOW, OTHER, SIZE, SQUARE, annotation, entry, photo
from tests.label.test_exports import write as write_coco
from tests.label.test_labelme import HOLE, png, shape
from tests.label.test_labelme import SQUARE as CORNERS
from tests.label.test_labelme import write as write_labelme
from tests.spoiling import Code

PAGE = Path(__file__).parents[1] / "docs/FORMATS.md"
COLUMNS = ("message", "log", "reason", "taken for")
INSERTED = {"reason": "<reason>", "taken for": "<meaning>"}  # where texts of these columns stand
SPAN = re.compile(r"``\s?(.+?)\s?``|`(.+?)`")
PLACEHOLDER = re.compile(r"<[^<>]+>")
Producer = Callable[[Path], object]


def quoted() -> dict[str, str]:
    """The texts of the page in columns of `COLUMNS`, and their column."""
    found: dict[str, str] = {}
    header: list[str] = []
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)]
        if not line.startswith("|"):
            header = []
        elif not header:
            header = [cell.strip("*") for cell in cells]
        for name, cell in zip(header, cells, strict=True) if line.startswith("|") else ():
            if name in COLUMNS:
                for twice, once in SPAN.findall(cell):
                    found[(twice or once).replace("\\|", "|")] = name
    return found


QUOTED = quoted()


def pattern(template: str, inner: str = "") -> str:
    """A regular expression of a template; <reason> and <meaning> stand for ``inner``, if given."""
    parts = re.split(rf"({PLACEHOLDER.pattern})", template)
    filled = [re.escape(part) if not PLACEHOLDER.fullmatch(part) else ".+?" for part in parts]
    for place, part in enumerate(parts):
        if inner and part in INSERTED.values():
            filled[place] = inner
    return "".join(filled)


def patterns(template: str) -> Iterator[str]:
    """What a line must match that has a text of the page: as it stands, or in the texts that hold it."""
    column = QUOTED.get(template, "message")
    if column not in INSERTED:
        yield pattern(template)
        return
    for outer in QUOTED:
        if INSERTED[column] in outer:
            yield pattern(outer, pattern(template))


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


def to_label(folder: Path, name: str = "IMG_1.HEIC", content: bytes | None = HEIC, more: bool = True) -> None:
    write_picture(folder / name, content)
    if more:
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


def colours(count: int, background: int = 0) -> np.ndarray:
    """OBJECTS in ``count`` colours on a background of ``background``."""
    rgb = np.full((*OBJECTS.shape, 3), background, np.uint8)
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


def trimap(folder: Path) -> None:
    for part in ("images", "masks"):
        save(folder / "cup" / part / "a.png", np.full((4, 5), 7, np.uint8))
    register_folder(f"{folder} trimap", folder, mask_encoding="trimap")
    load_sample(get_records(f"{folder} trimap")[0], 0)


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
NOT_LISTED = [annotation(image_id=5)]
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


def job(folder: Path, *names: str, supports: tuple[str, ...] = ("red",), **options: Any) -> None:
    """Label small pictures of these names with a predictor that needs no network."""
    annotated_folder(folder / "annotated")
    for number, name in enumerate(names or ("p.png",)):
        save(folder / "photos" / name, picture({"red": disc((40, 50), (20, 20), 8)}, seed=number))
    (red,) = read_supports(folder / "annotated").values()
    settings = Job(folder / "photos", options.pop("output", folder / "out"), check=False, **options)
    run_job(settings, ColourPredictor(), dict.fromkeys(supports, red))


def in_use(folder: Path) -> None:
    touch(folder, "out/notes.txt")
    job(folder)


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


def lost_checkpoint(folder: Path) -> None:
    (folder / "last_checkpoint").write_text("model_9.pth")
    FewShotCheckpointer(model(), str(folder)).resume_or_load("", resume=True)


def other_failure(folder: Path) -> None:
    (folder / "a.json").write_text("{}")
    replay(None, folder / "a.json")


# -- the page ----------------------------------------------------------------------------------------------

SAY = ": say which are the object with mask_values (--mask-values), such as "
MASK = "mask file <mask> "
HELD = "<file> is no checkpoint of plain tensors: "
LACKS = "<file> lacks <n> of the model's <n> tensors, the first <names>"
PARTIAL = "or set MODEL.WEIGHTS_PARTIAL True to keep initial values in their place"
NEAR = "put the pictures next to the JSON file, or into the folder 'images' there, or give their folder with "
FIRST = ": <n>, the first annotation <id>; "
DEPTH = "image file <file> is read as <n> bits per channel, scaled to 8"
FORM = "; give [CLASS=]OBJECT [ignore=VALUES] [frame=upright|stored], such as 1,2,3 or 'cup=15 ignore=255'"

PRODUCERS: list[tuple[str, Producer]] = [
    # Pictures.
    (DEPTH, partial(deep, top=4000)),
    (f"{DEPTH}, others there as <n> bits", two_depths),
    ("Pictures in <folder>: of files with several pages or frames, the first is read", pages),
    ("Left out in <folder>: <name> (<reason>)", to_label),
    ("Left out in <folder>: <name> (<reason>)", with_heic),
    (
        "image file <file> cannot be read (<why>); replace it",
        lambda f: read_image(write_picture(f / "a.jpg", b"")),
    ),
    (
        "image file <file> has floating-point pixels; save it with 8 bits per channel",
        partial(pixels, dtype=np.float32, value=0.5),
    ),
    (
        "image file <file> has values from <least> to <largest>; save it with 8 or 16 bits per channel",
        partial(pixels, dtype=np.int32, value=70000),
    ),
    (
        "<folder> holds no image that can be read, <name> (<reason>); give the folder of the images to label",
        partial(to_label, more=False),
    ),
    ("<ending> files cannot be decoded here, save it as JPEG or PNG", to_label),
    (
        "a <format> picture with the ending <ending>, rename it",
        partial(to_label, name="a.bak", content=None),
    ),
    (
        "it has no file ending and holds no picture",
        partial(to_label, name="a", content=b"text"),
    ),
    ("a link to a file that does not exist", partial(links, name="a.png", target="gone.png")),
    ("a link to a folder that is searched already", partial(links, name="loop", target="sub")),
    ("subfolders are not searched", with_subfolder),
    # Masks.
    ("<value> is the object, 0 background", partial(masked, mask=ALL * 15)),
    (
        "<value> is the object, 0 background",
        partial(masked, mask=palette(ALL, [0, 0, 0, 255, 255, 255])),
    ),
    ("255 is ignored, 1 is the object, 0 background", partial(masked, mask=VOID)),
    ("<value> is the object, <value> background", partial(masked, mask=30 + 170 * ALL)),
    (
        "black and white with a soft outline, the object from half of white on",
        partial(masked, mask=SOFT),
    ),
    (
        "palette index <n> is the object, 255 ignored, 0 background",
        partial(masked, mask=palette(VOID, VOC)),
    ),
    ("<colour> is the object, black background", partial(masked, mask=colours(1))),
    ("a cut-out, what is opaque is the object", partial(masked, mask=cut_out(ALL))),
    ("mask_values <rule>", partial(masked, mask=OBJECTS, rule="1,2")),
    ("Masks in <folder>: <meaning>", partial(masked, mask=ALL)),
    (f"{MASK}holds the values <values>{SAY}<rule>", partial(masked, mask=OBJECTS)),
    (
        f"{MASK}holds the values <values> (<n> in total), <why>{SAY}nonzero, or bright (from half on)",
        partial(masked, mask=heat_map()),
    ),
    (f"{MASK}holds the palette indices <values>{SAY}<rule>", partial(masked, mask=palette(OBJECTS, VOC))),
    (f"{MASK}holds the colours <values>{SAY}<rule>", partial(masked, mask=colours(3))),
    (
        f"{MASK}holds the colours <values> and transparent pixels{SAY}opaque, or <rule>",
        partial(masked, mask=on_glass(colours(3))),
    ),
    (f"{MASK}has the alpha values <values>, <why>{SAY}opaque (from half on)", partial(masked, mask=veil())),
    (
        f"{MASK}is transparent everywhere: save it without transparency",
        partial(masked, mask=np.zeros((4, 5, 4), np.uint8)),
    ),
    (
        f"{MASK}holds the values <values>: save it with 0 for background and 1 for the object",
        partial(masked, mask=-ALL.astype(np.int32), name="a_mask.tif"),
    ),
    ("mask file <mask>: no pixel of the image shows the object; mark it", partial(masked, mask=ALL * 0)),
    (
        "mask file <mask>: the mask is <size> pixels but its image <image> is <size>; make the two sizes equal",
        other_size,
    ),
    (
        f"mask_values <text>: <what> is no number or colour{FORM}",
        partial(masked, mask=ALL, rule="cup=white"),
    ),
    (
        "mask_values names the class <class>, but the classes are <classes>",
        partial(masked, mask=ALL, rule="cups=1"),
    ),
    (
        "mask_values says how mask files are read, and <file> has none; leave it out",
        lambda f: read_supports(write_coco(f / "c.json", [], []), mask_values="1"),
    ),
    (f"{MASK}has the value <value>; a trimap holds 0, 1 and 255 only", trimap),
    (
        f"{MASK}does not say whether it is upright, and its image <image> is stored turned (EXIF orientation "
        "<n>): give mask_values (--mask-values) frame=upright or frame=stored",
        partial(masked, mask=ALL, orientation=3),
    ),
    # Pairs and folders.
    (
        "image <image> has no mask: add <mask> next to it, or remove the image",
        lambda f: laid_out(f, "a.jpg"),
    ),
    (
        "mask <mask> has no image in <folder>: add it or remove the mask",
        lambda f: laid_out(f, "cup/images/a.jpg", "cup/masks/a.png", "cup/masks/b.png"),
    ),
    (
        "mask <mask> has no image in <folder> that can be read, <name> (<reason>): add it or remove the mask",
        lambda f: laid_out(f, "b.HEIC", "b_mask.png"),
    ),
    (
        "<folder>: the images <names> have the same name, and <mask> can be of one only; rename or remove one",
        lambda f: laid_out(f, "a.jpg", "a.bmp", "a_mask.png"),
    ),
    (
        "<folder>: image <image> has the masks <names>; remove one",
        lambda f: laid_out(f, "a.jpg", "a_mask.bmp", "a_mask.png"),
    ),
    (
        "<folder> has pictures (<name>) but no folder images: arrange all classes as <class>/images and "
        "<class>/masks, or move them away",
        lambda f: laid_out(f, "cup/images/a.jpg", "cup/masks/a.png", "key/b.jpg"),
    ),
    (
        "<folder> has pictures (<name>) next to its folder images: move them into images, and their masks "
        "into masks",
        lambda f: laid_out(f, "cup/images/a.jpg", "cup/masks/a.png", "cup/b.jpg"),
    ),
    (
        "<folder> has LabelMe files and a mask (<mask>): keep one kind, or divide them",
        lambda f: both_kinds(f, "b.jpg", "b_mask.png"),
    ),
    (
        "<folder> holds <file> in COCO's format and <file> in LabelMe's; give one",
        lambda f: both_kinds(f, "c.json"),
    ),
    ("<folder> holds <n> COCO files, <file> and <file> among them; give one", two_coco),
    # COCO and LabelMe: the log.
    ("<folder> holds the COCO file <file>; it is read", lambda f: coco(f, source=f)),
    (
        "<file>: found <n> pictures in another place than it gives: <name> as <path>",
        lambda f: (
            photo(f / "b.jpg"),
            coco(f, rows=TWICE, images=[entry("/x/a.jpg"), entry("y\\z\\b.jpg", 2)]),
        ),
    ),
    (
        f"<file>: objects with a box and no outline{FIRST}the pixels in their boxes are ignored (255)",
        partial(coco, rows=[annotation(), annotation() | BOX]),
    ),
    (
        f"<file>: outlines with iscrowd 1{FIRST}their pixels are ignored (255)",
        partial(coco, rows=[annotation(), annotation([OTHER], iscrowd=1)]),
    ),
    (
        f"<file>: outlines not written as [[x, y, x, y, ...]]{FIRST}their numbers are taken for the corners "
        "of polygons",
        partial(coco, segmentation=CORNERS),
    ),
    (
        f"<file>: outlines that reach out of their picture{FIRST}they are cut at the border",
        partial(coco, segmentation=[[50, 40, 90, 40, 90, 99, 50, 99]]),
    ),
    (
        "<file>: shapes[<n>] (<label>) reaches out of its picture and is cut at the border",
        lambda f: labelme(f, shape([[50, 40], [90, 40], [90, 99], [50, 99]])),
    ),
    (
        "<file>: pictures listed again under another id: <n>, the first <name> under <id> and <id>; their "
        "annotations are joined",
        partial(coco, rows=TWICE, images=[entry(), entry(image_id=2)]),
    ),
    (
        "<file> writes ids as numbers and as texts; they are taken as equal",
        partial(coco, image_id="1"),
    ),
    (
        "<file>: category <name> is listed <n> times and used under one id; the other entries are left out",
        partial(coco, names=["cup", "cup"]),
    ),
    (
        "<file>: the outlines of <picture> are taken as drawn on the stored picture (<size>); upright it is "
        "<size>",
        partial(coco, orientation=6),
    ),
    (
        "<file>: the outlines of <picture> are taken as drawn on the upright picture; its EXIF orientation "
        "is <n>",
        partial(coco, orientation=3),
    ),
    (
        "<file>: the outlines of <picture> do not fit the size in the file, but the <frame> picture; taken so",
        partial(coco, segmentation=[LOW], orientation=6),
    ),
    (
        "<file>: the shapes do not fit imageHeight and imageWidth; they are taken as drawn on <size> pixels",
        lambda f: labelme(f, shape([[10, 50], [30, 50], [30, 60]]), orientation=6),
    ),
    (
        "<file>: pictures not used for one of their classes: <n>, the first <picture>: annotation <id>: "
        "<reason>",
        coco_set,
    ),
    # COCO and LabelMe: refused.
    ("<file>: <picture>, annotation <id>: <reason>", partial(coco, segmentation=FLAT)),
    ("<file>: shapes[<n>] (<label>) cannot be drawn: <reason>", lambda f: labelme(f, shape([[1, 1]]))),
    (
        "<file>: class <class> has boxes (<n>) and no outline; export outlines (polygons or masks)",
        partial(coco, **BOX),
    ),
    (
        "<file>: class <class>: each outline (<n>) has iscrowd 1, which marks a crowd to ignore (CVAT writes "
        "it for brush masks); set iscrowd to 0 if they are single objects",
        partial(coco, iscrowd=1),
    ),
    (
        "<file>: <picture> is <size>, but annotated as <size>: give the picture that was annotated",
        partial(coco, images=[entry(size=(96, 128))]),
    ),
    (
        "<file>: images[<n>] (<picture>): its height is <value>; give the picture's height in pixels",
        partial(coco, images=[entry(size=(None, 64))]),
    ),
    (
        f"<file>: image <path> does not exist; {NEAR}<option>",
        partial(coco, images=[entry("other.jpg")]),
    ),
    (
        f"<file>: image <name> could be <path> or <path>; {NEAR}<option>",
        lambda f: (photo(f / "images/x/a.jpg"), coco(f, picture="images/y/a.jpg")),
    ),
    (
        "<file>: <name> has the ids <id> and <id> with different sizes; keep the one that is right",
        partial(coco, rows=TWICE, images=[entry(), entry(image_id=2, size=(24, 32))]),
    ),
    ("<file>: annotation <id> is of image <id>, not in 'images'", partial(coco, rows=NOT_LISTED)),
    (
        "<file>: two categories have the name <name>; rename one",
        partial(coco, rows=[annotation(), annotation(category_id=2)], names=["cup", "cup"]),
    ),
    (
        "<file>: the classes <name> and <name> differ in case or spaces only; give them one name",
        partial(coco, rows=[annotation(), annotation(category_id=2)], names=["cup", "Cup "]),
    ),
    (
        "<file>: later shapes _background_ or __ignore__ cover all of <label>; change the order of the shapes",
        lambda f: labelme(f, shape(HOLE), shape(CORNERS, label="_background_")),
    ),
    # Outlines.
    *(
        (reason, partial(coco, segmentation=segmentation))
        for reason, segmentation in {
            "its outline has the value <value>; give finite numbers of pixels": [[*SQUARE[:-1], np.nan]],
            "its outline has the value <value>, far outside the picture (<size> pixels)": [
                [*SQUARE[:-1], 3e8]
            ],
            "its outline (x <n> to <n>, y <n> to <n>) lies outside the picture (<size> pixels); correct or "
            "delete it": [[70, 50, 80, 50, 80, 60]],
            "all its numbers lie from 0 to 1: they are shares of the picture; give pixels": [
                [0.1, 0.1, 0.5, 0.1, 0.5, 0.6]
            ],
            "its outline has fewer than 3 corners (2); give a box as 'bbox', without an outline": [
                [10, 10, 20, 20]
            ],
            "its outline has fewer than 3 corners (<n>); draw it again": [[10, 10]],
            "its outline has <n> numbers, an odd number: give x and y of each corner; leave out the third "
            "value of each corner": [[20, 10, 5, 40, 10, 5, 40, 30, 5]],
            "each third number of its outline is 0, 1 or 2: give x and y of each corner only; correct or "
            "delete it": [[20, 10, 2, 40, 10, 2, 40, 30, 2, 20, 30, 1]],
            "its outline holds <value> where a number belongs; correct or delete it": [[*SQUARE[:-1], "30"]],
            "its outline has no area; draw it again": FLAT,
            "its run lengths add up to <n> pixels, the picture has <n>; export it again": runs([100, 50]),
            "its run lengths hold <n>; none can be negative": runs([100, -5, 2977]),
            "the text of its run lengths is cut off; export it again": runs("S36j"),
            "RLE of size <size>, the image is <size>; export it again": runs([3072], SIZE[::-1]),
        }.items()
    ),
    ("it has neither an outline nor a box; add one", partial(coco, segmentation=[])),
    (
        "its box is <value>; give [x, y, width, height] in pixels",
        partial(coco, segmentation=[], bbox=[1, 2]),
    ),
    ("its iscrowd is <value>; give 0 or 1", partial(coco, iscrowd="yes")),
    (
        "a <shape_type> of <n> points has no area; draw a polygon",
        lambda f: labelme(f, shape(CORNERS, "linestrip")),
    ),
    (
        "the shape_type <shape_type> is not known; draw a polygon",
        lambda f: labelme(f, shape(CORNERS, "ellipse")),
    ),
    ("a circle of radius 0 has no area", lambda f: labelme(f, shape([[9, 9], [9, 9]], "circle"))),
    (
        "its mask is <size> pixels, but its points span <size>",
        lambda f: labelme(f, shape([[1, 1], [20, 30]], "mask", mask=png(np.ones((4, 6))))),
    ),
    # Weights.
    ("<file> is read as safetensors, which its content is", safetensors),
    (
        "<file>: the state dict <name> is taken, not <name>",
        partial(checkpoint, content={"model": part(), "ema": part()}),
    ),
    (
        "<file>: <n> of its <n> tensors have no place in the model and are not used, the first <names>: "
        "check MODEL.META_ARCHITECTURE and the MODEL.* keys",
        partial(checkpoint, content=part(more=torch.ones(1))),
    ),
    (
        f"{LACKS}; they keep their initial values, as MODEL.WEIGHTS_PARTIAL allows",
        partial(checkpoint, content=part("backbone"), WEIGHTS_PARTIAL=True),
    ),
    (
        f"{LACKS}: give a whole checkpoint, {PARTIAL}",
        partial(checkpoint, content=part("backbone", "head.bias")),
    ),
    (
        f"{LACKS}: it is a backbone alone, for MODEL.BACKBONE.WEIGHTS; give MODEL.WEIGHTS a whole "
        f"checkpoint, {PARTIAL}",
        partial(checkpoint, content=part("backbone")),
    ),
    (
        "<file> holds no backbone, and MODEL.BACKBONE.WEIGHTS is empty: set that key to the weights on which "
        "the head was trained",
        partial(checkpoint, content=part("head")),
    ),
    (
        "<file>: none of its <n> names (<names>) is one of the model's (<names>): check "
        "MODEL.META_ARCHITECTURE and MODEL.BACKBONE.NAME, or convert it with tools/convert_checkpoint.py",
        partial(checkpoint, content={"a": torch.ones(1)}),
    ),
    (
        "<file>: <n> tensor(s) of another shape than the model's, the first <name> <shape> instead of "
        "<shape>: check the MODEL.* keys",
        partial(checkpoint, content=part(head_bias=torch.ones(5))),
    ),
    (
        "<file>: tensor <name> holds <n> values that are NaN or infinite, of <n>: take a checkpoint from "
        "before the training diverged",
        partial(checkpoint, content=part(head_bias=torch.full((3,), torch.nan))),
    ),
    (
        "<file>: tensor <name> is <type> and the model's is <type>: save the weights as they were trained, "
        "not quantized or transformed",
        partial(checkpoint, content=part(head_bias=torch.ones(3, dtype=torch.int8))),
    ),
    (
        "<file> holds several state dicts (<names>): save the one to load alone",
        partial(checkpoint, content={"teacher": part(), "student": part()}),
    ),
    (
        f"{HELD}it refers to <name>, which is no number, array or container, and was not run: save the state "
        "dict alone, as tensors or numpy arrays",
        partial(checkpoint, content=Code()),
    ),
    (
        f"{HELD}its <n> bytes announce <n>; save the weights anew, without compression",
        lambda f: checkpoint(f, weights._overlapping(100)),
    ),
    (f"{HELD}<reason>", partial(checkpoint, content=b"")),
    (
        "checkpoint <file> does not exist: check MODEL.WEIGHTS",
        partial(checkpoint, content=None),
    ),
    ("it is empty; get the file again", partial(checkpoint, content=b"")),
    (
        "it is a web page, which a failed download left; get the file again",
        partial(checkpoint, content=weights._PAGE),
    ),
    (
        "it is a git-lfs pointer, not the file itself; run `git lfs pull`",
        partial(checkpoint, content=weights._POINTER),
    ),
    (
        "it is cut off; get the file again",
        lambda f: checkpoint(f, weights._saved(part())[:-200]),
    ),
    ("it is damaged (<why>); get the file again", lambda f: checkpoint(f, damaged())),
    (
        "it is a <format> file, which is not read; extract or convert it first",
        partial(checkpoint, content=b"\x1f\x8b\x08" + bytes(20)),
    ),
    (
        "it is a TorchScript program; save the model's state dict",
        lambda f: checkpoint(f, weights._zip({"m/data.pkl": b"a", "m/constants.pkl": b"b"})),
    ),
    # Configs and JSON.
    (
        "<config>: its _BASE_ <address> is an address, and nothing is fetched from a network unasked: "
        "download the file and give its path, or set the environment variable FSS_D2_DOWNLOAD=1",
        partial(config, content="_BASE_: https://example.org/a.yaml"),
    ),
    ("<config>: its _BASE_ <base> does not exist", partial(config, content="_BASE_: b.yaml")),
    ("<config>: not a config: <reason>", partial(config, content="[")),
    (
        "<path> not found: <fix>; datasets/README.md says what goes where",
        lambda f: get_records("glyphs_fold0_train"),
    ),
    ("its _BASE_ <base> leads back to itself; remove it", partial(config, content="_BASE_: a.yaml")),
    (
        "could not determine a constructor for the tag <tag>",
        partial(config, content="SEED: !!python/object:os.x"),
    ),
    ("key <key> is there twice", partial(config, content="SEED: 1\nSEED: 2")),
    ("it is not UTF-8 text (<why>)", partial(config, content=b"\xff\x00")),
    ("it is nested too deeply", partial(config, content="SEED: " + "[" * 9999)),
    ("<file> is not valid JSON (<reason>); <fix>", partial(text, content="{")),
    ("<file> holds a JSON <kind>, not an object; <fix>", partial(text, content="[]")),
    ("<file> is in neither COCO's nor LabelMe's format; <fix>", partial(text, content="{}")),
    ("it is empty", partial(text, content="")),
    ("the key <key> stands twice in one object", partial(text, content='{"id": 1, "id": 2}')),
    ("its brackets are nested too deeply", partial(text, content="[" * 99999)),
    (
        "it is not UTF-8 text: byte <n> is <value>; save it as UTF-8",
        partial(text, content=b'{"\xf6": 1}'),
    ),
    # Outputs.
    (
        "The format yolo is left out: <name> and <name> would share the label file <file>: rename one of them",
        lambda f: job(f, "p.png", "p.bmp"),
    ),
    (
        "<name> and <name> differ only in their ending: label files keep it (<file>)",
        lambda f: job(f, "p.png", "p.bmp"),
    ),
    (
        "<name> and <name> differ in case only: on Windows and macOS the labels of one replace the other's",
        lambda f: job(f, "P.png", "p.png"),
    ),
    (
        "--formats yolo: <name> and <name> would share the label file <file>: rename one of them, or leave "
        "yolo out of --formats",
        lambda f: job(f, "p.png", "p.bmp", formats=("yolo",)),
    ),
    ("formats: there is no <name>; did you mean <format>?", lambda f: job(f, formats=("YOLOv8",))),
    (
        "the classes <name> and <name> are one name in a list of classes: rename one of them",
        lambda f: job(f, supports=("a b", "a\nb")),
    ),
    ("<folder> is in use for something else: <fix>", in_use),
    (
        "cannot write to the output folder <folder> (<why>); choose another (OUTPUT_DIR, --output)",
        not_a_folder,
    ),
    (
        "<file>: <ending> is the ending of no format; end the name with <endings>",
        lambda f: format_of("cat.bin"),
    ),
    (
        "<file>: <ending> is the ending of <format>, but the format is <format>: leave the format out, or "
        "end the name with <ending>",
        lambda f: format_of("cat.onnx", "torch_export"),
    ),
    # Interrupted trainings.
    (
        "<file>: <why>; it is not written, checkpoints before it are whole: free space, then go on with "
        "--resume",
        no_checkpoint,
    ),
    (
        "<file>: <why>; finished images are kept: the same command goes on when that is solved",
        no_space,
    ),
    (
        "<folder>/last_checkpoint names <file>, which does not exist: write the name of another checkpoint "
        "into it",
        lost_checkpoint,
    ),
    ("<file>: no 'iteration'; give the failed_episode.json of a training", other_failure),
]


def test_the_page_quotes_what_is_produced_and_nothing_else() -> None:
    assert sorted(QUOTED) == sorted({template for template, _ in PRODUCERS})


@pytest.mark.parametrize(
    ("template", "produce"), [pytest.param(*case, id=case[0][:60]) for case in PRODUCERS]
)
def test_messages(
    template: str,
    produce: Producer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A message ends the program, in one line; a line of the log does not."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.delenv("FSS_D2_DOWNLOAD", raising=False)
    logged, errors = caplog, []
    with logged.at_level(logging.INFO):
        try:
            produce(tmp_path)
        except Exception as error:
            errors = [one_line(error)]
    column = QUOTED.get(template, "message")
    said = (
        [*errors, *logged.messages]
        if column == "reason"
        else errors
        if column == "message"
        else logged.messages
    )
    assert not (column in ("log", "taken for") and errors), errors
    assert any(re.fullmatch(p, line) for p in patterns(template) for line in said if line), said
