#!/usr/bin/env python
"""Segment images like a few annotated ones.

    python demo/demo.py --support-dir annotated --input 'photos/*.jpg' --output out

`annotated` holds <class>/<name>.jpg with a mask <name>.png (or <name>_mask.png) beside each image; without
class folders all files are of one class. It may also hold <class>/images and <class>/masks, or LabelMe files,
or be a COCO JSON file. A single image needs no folder: --support a.jpg --support-mask a.png, or
--support-box 10 20 200 180.

--save chooses among: mask, class maps (0 background, i the class on line i of classes.txt); overlay,
pictures; coco, annotations with RLE masks; attention (of DCAMA), for each class the point of the image with
the highest probability, and the support pixels that it attends to.
"""

from __future__ import annotations

import argparse
import glob
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fss_d2.engine.command_line import add_launch_arguments, parse_command_line, plan_from, run_command
from fss_d2.engine.launch import launch
from fss_d2.files import printable, write_atomic
from fss_d2.model_zoo import DEFAULT_CONFIG

if TYPE_CHECKING:  # imported late, so that --help is quick
    import numpy as np

    from fss_d2.inference.predictor import FewShotPredictor, Prediction
    from fss_d2.label.output import ImageRecord

KINDS = ("mask", "overlay", "coco", "attention")
COCO_FILE, CLASSES_FILE = "coco/annotations.json", "mask/classes.txt"

logger = logging.getLogger("fss_d2.demo")

Supports = dict[str, tuple[Sequence[Any], Sequence[Any]]]  # images and annotations by class


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file", default=str(DEFAULT_CONFIG), metavar="FILE", help="default: the model of the package"
    )
    parser.add_argument("--weights", default="", metavar="FILE", help="default: MODEL.WEIGHTS")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--support-dir", type=Path, metavar="PATH", help="annotated images, see above")
    source.add_argument("--support", nargs="+", metavar="IMAGE", help="annotated images of one class")
    parser.add_argument("--support-mask", nargs="+", default=[], metavar="PNG", help="one for each --support")
    parser.add_argument(
        "--support-box",
        nargs=4,
        type=float,
        action="append",
        default=[],
        metavar=("X0", "Y0", "X1", "Y1"),
        help="in pixels; one for each --support, or several for a single one",
    )
    parser.add_argument("--class-name", default="object", metavar="NAME", help="where no folder names it")
    parser.add_argument(
        "--input", nargs="+", required=True, metavar="IMAGE", help="files, folders, 'a/*.jpg'"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--save", default="mask,overlay", metavar="A,B", help="default: %(default)s")
    parser.add_argument("--overwrite", action="store_true", help="replace files of an earlier run")
    parser.add_argument("--opts", dest="_", action="store_true", help="before KEY VALUE; may be left out")
    add_launch_arguments(parser)
    args = parse_command_line(parser, argv)
    args.save = tuple(dict.fromkeys(kind.strip() for kind in args.save.split(",")))
    if unknown := [kind for kind in args.save if kind not in KINDS]:
        parser.error(f"--save {unknown[0]!r}: choose from {','.join(KINDS)}")
    return args


def read_support_arguments(args: argparse.Namespace) -> Supports:
    """The supports that the command line names.

    Raises:
        FileNotFoundError, ValueError: they are not there, or not each image has its annotation.
    """
    from fss_d2.inference.annotations import Box, Boxes
    from fss_d2.label.supports import read_supports

    if folder := args.support_dir:
        if args.support_mask or args.support_box:
            raise ValueError("--support-mask and --support-box go with --support, not with --support-dir")
        found = read_supports(folder, class_name=args.class_name)
        return {name: ([s.image for s in some], [s.mask for s in some]) for name, some in found.items()}
    if bool(args.support_mask) == bool(args.support_box):
        raise ValueError("--support needs either --support-mask or --support-box")
    boxes = [Box(*corners) for corners in args.support_box]
    if boxes and len(args.support) == 1:
        return {args.class_name: (args.support, [Boxes(boxes)])}
    return {args.class_name: (args.support, args.support_mask or boxes)}


def find_inputs(patterns: Sequence[str], output: Path) -> list[Path]:
    """Files that are named, lie in folders that are named, or match a pattern; each once.

    Raises:
        FileNotFoundError: nothing is there of that name.
    """
    from fss_d2.label.job import find_images

    files: dict[str, Path] = {}  # by absolute path
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            found = [path / name for name in find_images(path, leave_out=output)]
        else:
            matches = [path] if path.is_file() else map(Path, sorted(glob.glob(pattern, recursive=True)))
            found = [file for file in matches if file.is_file()]
        if not found:
            raise FileNotFoundError(f"--input {pattern}: there is no such file; give images or a folder")
        for file in found:
            files.setdefault(os.path.abspath(file), file)
    return list(files.values())


def name_files(files: Sequence[Path]) -> tuple[Path, list[str]]:
    """The folder that holds all files, and their names relative to it, with "/"."""
    absolute = [Path(os.path.abspath(file)) for file in files]
    common = Path(os.path.commonpath([file.parent for file in absolute]))
    return common, [file.relative_to(common).as_posix() for file in absolute]


def output_files(save: Sequence[str], stems: Sequence[str]) -> list[str]:
    """Names, relative to the output folder, of all that will be written."""
    pictures = [f"{kind}/{stem}.png" for kind in save if kind != "coco" for stem in stems]
    return pictures + [COCO_FILE] * ("coco" in save) + [CLASSES_FILE] * ("mask" in save)


def draw(
    kind: str, predictor: FewShotPredictor, image: np.ndarray, prediction: Prediction, supports: Supports
) -> bytes | np.ndarray:
    """The picture, or the PNG file, of one kind."""
    import numpy as np

    from fss_d2.inference.annotations import read_picture
    from fss_d2.visualization import picture_grid
    from fss_d2.visualization.panels import attention_panel, class_map_png, prediction_panel

    if kind == "mask":
        return class_map_png(prediction.labels)
    if kind == "overlay":
        return prediction_panel(image, prediction.masks, prediction.confidence)
    rows = []
    for name, probability in zip(prediction.names, prediction.probability, strict=True):
        y, x = np.unravel_index(int(probability.argmax()), probability.shape)
        maps = predictor.attention(image, (int(x), int(y)), name=name)
        pictures = [read_picture(picture)[0] for picture in supports[name][0]]
        rows.append(attention_panel(image, (int(x), int(y)), pictures, maps, title=name))
    return picture_grid(rows)


def segment(
    args: argparse.Namespace,
    predictor: FewShotPredictor,
    supports: Supports,
    work: dict[Path, tuple[str, str]],
) -> Iterator[ImageRecord | str]:
    """Segment and write images, by name and stem of each; yield its record, or what is wrong with it."""
    from detectron2.utils import comm
    from tqdm import tqdm

    from fss_d2.inference.annotations import read_picture
    from fss_d2.label.output import record_of
    from fss_d2.visualization import save_picture

    for path, (name, stem) in tqdm(work.items(), unit="image", disable=not comm.is_main_process()):
        try:
            image, _ = read_picture(path)
        except (ValueError, OSError) as error:
            yield str(error)
            continue
        prediction = predictor.predict(image)
        for kind in args.save:
            if kind != "coco":
                content = draw(kind, predictor, image, prediction, supports)
                write = write_atomic if isinstance(content, bytes) else save_picture
                write(args.output / f"{kind}/{stem}.png", content)
        yield record_of(name, prediction, 1)


def run(args: argparse.Namespace, device: str) -> None:
    """Do what the command line asks for, in each process for its share of the images."""
    from detectron2.utils import comm

    from fss_d2.engine.setup import start_log
    from fss_d2.files import check_writable
    from fss_d2.inference.predictor import FewShotPredictor
    from fss_d2.label.output import ImageRecord
    from fss_d2.label.writers import file_stems

    start_log()
    supports = read_support_arguments(args)
    files = find_inputs(args.input, args.output)
    folder, names = name_files(files)
    stems = file_stems(names)
    check_writable(args.output)
    there = [name for name in output_files(args.save, list(stems.values())) if (args.output / name).exists()]
    comm.synchronize()  # nobody writes before all have looked
    if there and not args.overwrite:
        raise ValueError(f"{args.output / there[0]} exists: take another --output, or add --overwrite")
    predictor = FewShotPredictor.from_config(
        args.config_file, weights=args.weights, opts=args.opts, device=device
    )
    if "attention" in args.save:
        predictor.check_attention()
    predictor.set_support_classes(supports)
    work = {file: (name, stems[name]) for file, name in zip(files, names, strict=True)}
    rank, world = comm.get_rank(), comm.get_world_size()
    mine = dict(list(work.items())[rank::world])
    done = [item for share in comm.gather(list(segment(args, predictor, supports, mine))) for item in share]
    if comm.is_main_process():
        finish(args, predictor.names, [item for item in done if isinstance(item, ImageRecord)], folder)
        if wrong := [item for item in done if isinstance(item, str)]:
            raise ValueError(f"{len(wrong)} of {len(done)} images were left out; {wrong[0]}")


def finish(
    args: argparse.Namespace, class_names: tuple[str, ...], records: list[ImageRecord], folder: Path
) -> None:
    """Write what is about all images."""
    from fss_d2.label.writers import FORMATS, LabelSet, class_list

    if "coco" in args.save:
        ordered = tuple(sorted(records, key=lambda record: record.image))
        for name, content in FORMATS["coco"](LabelSet(class_names, ordered, folder, args.output)):
            write_atomic(args.output / name, content)
    if "mask" in args.save:
        write_atomic(args.output / CLASSES_FILE, class_list(class_names))
    found = sum(bool(record.objects) for record in records)
    names, output = printable(", ".join(class_names)), printable(args.output)
    logger.info("%s found in %d of %d images; see %s", names, found, len(records), output)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the demo."""
    args = parse(argv)
    plan = plan_from(args)
    launch(run, plan, (args, "" if plan.uses_gpu else "cpu"))


if __name__ == "__main__":
    sys.exit(run_command(main))
