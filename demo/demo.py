#!/usr/bin/env python
"""Segment images like a few annotated ones.

    python demo/demo.py --support-dir annotated --input 'photos/*.jpg' --output out

`annotated` contains <class>/<name>.jpg with a mask <name>.png (or <name>_mask.png) next to each image;
without class folders all files belong to one class. It may also contain <class>/images and <class>/masks, or
LabelMe files, or be a COCO JSON file. A single image needs no folder: --support a.jpg --support-mask a.png,
or --support-box 10 20 200 180.

--save takes some of: mask, class maps (0 background, i the class on line i of classes.txt); overlay,
pictures; coco, annotations with RLE masks; attention (DCAMA only), for each class the point of the image with
the highest probability, and the support pixels that it attends to.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fss_d2.engine.command_line import add_launch_arguments, parse_command_line, plan_from, run_command
from fss_d2.engine.launch import launch
from fss_d2.model_zoo import DEFAULT_CONFIG

if TYPE_CHECKING:  # imported late, so that --help is quick
    from fss_d2.label.pictures import Supports

KINDS = ("mask", "overlay", "coco", "attention")


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
    parser.add_argument("--support-mask", nargs="+", default=[], metavar="PNG", help="one per --support")
    parser.add_argument(
        "--support-box",
        nargs=4,
        type=float,
        action="append",
        default=[],
        metavar=("X0", "Y0", "X1", "Y1"),
        help="in pixels; one per --support, or several for a single one",
    )
    parser.add_argument("--class-name", default="object", metavar="NAME", help="if no folder names it")
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
    """The supports on the command line.

    Raises:
        FileNotFoundError, ValueError: they do not exist, or an image has no annotation.
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


def run(args: argparse.Namespace, device: str) -> None:
    """Segment in one process its share of the images."""
    from fss_d2.engine.setup import start_log
    from fss_d2.inference.predictor import FewShotPredictor
    from fss_d2.label.pictures import plan_pictures, segment_pictures

    start_log()
    supports = read_support_arguments(args)
    job = plan_pictures(args.input, args.output, args.save, overwrite=args.overwrite)
    predictor = FewShotPredictor.from_config(
        args.config_file, weights=args.weights, opts=args.opts, device=device
    )
    segment_pictures(job, predictor, supports)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the demo."""
    args = parse(argv)
    plan = plan_from(args)
    launch(run, plan, (args, "" if plan.uses_gpu else "cpu"))


if __name__ == "__main__":
    sys.exit(run_command(main))
