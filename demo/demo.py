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
from typing import TYPE_CHECKING

from fss_d2.engine import command_line
from fss_d2.engine.launch import launch
from fss_d2.model_zoo import DEFAULT_CONFIG

if TYPE_CHECKING:  # imported late, so that --help is quick
    from fss_d2.label.pictures import Supports

KINDS = ("mask", "overlay", "coco", "attention")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_line.documented_parser(__doc__)
    add, zoo = parser.add_argument, str(DEFAULT_CONFIG)
    add("--config-file", default=zoo, metavar="FILE", help="default: the model of the package")
    add("--weights", default="", metavar="FILE", help="default: MODEL.WEIGHTS")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--support-dir", type=command_line.path_option, metavar="PATH", help="annotated images, see above"
    )
    source.add_argument("--support", nargs="+", metavar="IMAGE", help="annotated images of one class")
    add("--support-mask", nargs="+", default=[], metavar="PNG", help="one per --support")
    corners = {"nargs": 4, "type": float, "metavar": ("X0", "Y0", "X1", "Y1")}
    note = "in pixels; one per --support, or several for a single one"
    add("--support-box", **corners, action="append", default=[], help=note)
    command_line.add_mask_values(parser)
    command_line.add_presence(parser)
    add("--class-name", default="object", metavar="NAME", help="if no folder names it")
    add("--input", nargs="+", required=True, metavar="IMAGE", help="files, folders, 'a/*.jpg'")
    add("--output", type=command_line.path_option, required=True, metavar="FOLDER")
    add("--save", default="mask,overlay", metavar="A,B", help="default: %(default)s")
    add("--overwrite", action="store_true", help="replace files of an earlier run")
    add("--opts", dest="_", action="store_true", help="before KEY VALUE; may be left out")
    command_line.add_launch_arguments(parser)
    args = command_line.parse_command_line(parser, argv)
    args.save = tuple(dict.fromkeys(kind.strip() for kind in args.save.split(",")))
    if unknown := [kind for kind in args.save if kind not in KINDS]:
        parser.error(f"--save {unknown[0]!r}: choose from {','.join(KINDS)}")
    return args


def read_support_arguments(args: argparse.Namespace) -> Supports:
    """The supports on the command line."""
    from fss_d2.data.mask_values import parse_mask_values
    from fss_d2.inference.annotations import Box, Boxes, read_support, support_pairs
    from fss_d2.label.supports import read_supports

    if folder := args.support_dir:
        if args.support_mask or args.support_box:
            raise ValueError("--support-mask and --support-box go with --support, not with --support-dir")
        options = {"mask_values": args.mask_values, "image_option": ""}
        found = read_supports(folder, class_name=args.class_name, **options)
        return {name: ([s.image for s in some], [s.mask for s in some]) for name, some in found.items()}
    if bool(args.support_mask) == bool(args.support_box):
        raise ValueError("--support needs either --support-mask or --support-box")
    boxes = [Box(*corners) for corners in args.support_box]
    if boxes and len(args.support) == 1:
        return {args.class_name: (args.support, [Boxes(boxes)])}
    if boxes:
        return {args.class_name: (args.support, boxes)}
    name, rule = args.class_name, parse_mask_values(args.mask_values).of(args.class_name)
    given = enumerate(support_pairs(args.support, args.support_mask, name), start=1)
    pairs = [read_support(*pair, f"{name}, support {number}", rule) for number, pair in given]
    return {name: ([image for image, _ in pairs], [mask for _, mask in pairs])}


def run(args: argparse.Namespace, device: str) -> None:
    """Segment in one process its share of the images."""
    from fss_d2.inference.predictor import FewShotPredictor
    from fss_d2.label.negatives import as_pairs, read_negatives
    from fss_d2.label.pictures import plan_pictures, segment_pictures

    command_line.start_log()
    supports = read_support_arguments(args)
    job = plan_pictures(args.input, args.output, args.save, overwrite=args.overwrite)
    negatives = as_pairs(read_negatives(args.negative, supports))
    options = {"weights": args.weights, "opts": args.opts, "device": device}
    options["present_above"] = args.present_above
    segment_pictures(job, FewShotPredictor.from_config(args.config_file, **options), supports, negatives)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the demo."""
    args = parse(argv)
    plan = command_line.plan_from(args)
    launch(run, plan, (args, "" if plan.uses_gpu else "cpu"))


if __name__ == "__main__":
    sys.exit(command_line.run_command(main))
