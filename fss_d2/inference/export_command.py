"""The command ``fss-d2 export``.

Write a method together with its supports, of one class, as one file.

    fss-d2 export --support a.jpg b.jpg --support-mask a_mask.png b_mask.png --output dog.onnx

The file takes an image and gives logits. Its ending says the format: .pt2 (torch_export, read by
torch.export.load), .ts, .pt or .torchscript (torchscript, torch.jit.load), .onnx (needs the extra "export").
The image has a fixed size, INPUT.FEW_SHOT_SIZE or --size, and RGB values from 0 to 255; the file normalises
it. The file is read back and compared with the method on noise and on pictures. A JSON file with the same
name plus ".json" describes inputs and outputs, and the largest difference.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fss_d2.engine.command_line import (
    add_mask_values,
    documented_parser,
    parse_command_line,
    path_option,
    start_log,
)
from fss_d2.model_zoo import DEFAULT_CONFIG

if TYPE_CHECKING:  # imported late, so that --help is quick
    from torch import Tensor

    from .predictor import FewShotPredictor
    from .support_file import ClassSupport

__all__ = ["main", "parse_arguments"]

FORMATS, INPUT_TYPES = ("torch_export", "torchscript", "onnx"), ("uint8", "float32")  # of inference.export

logger = logging.getLogger(__name__)


def parse_arguments(arguments: Sequence[str] | None = None, program: str | None = None) -> argparse.Namespace:
    """The command line; None takes that of the process."""
    parser = documented_parser(__doc__.partition("\n\n")[2], program)
    add, zoo = parser.add_argument, str(DEFAULT_CONFIG)
    file, image = ({"type": path_option, "metavar": name} for name in ("FILE", "IMAGE"))
    add("--config-file", default=zoo, metavar="FILE", help="default: the model of the package")
    support = parser.add_mutually_exclusive_group(required=True)
    support.add_argument("--support-file", **file, help="written by FewShotPredictor.save_support")
    support.add_argument("--support", nargs="+", **image, help="support images")
    add("--support-mask", nargs="+", type=path_option, metavar="PNG", help="their masks, in the same order")
    add_mask_values(parser)
    add("--class-name", metavar="NAME", help="of --support-file; default: its only class")
    add("--format", choices=FORMATS, help="default: what the ending of --output says")
    add("--input-type", choices=INPUT_TYPES, default="uint8")
    shape = {"nargs": 2, "type": int, "metavar": ("H", "W")}
    add("--size", **shape, help="of the image; default: INPUT.FEW_SHOT_SIZE")
    add("--image", nargs="+", default=[], **image, help="further pictures to compare")
    add("--output", required=True, **file)
    add("--overwrite", action="store_true", help="replace the file of an earlier run")
    args = parse_command_line(parser, arguments, weights=True)
    if (args.support is None) != (args.support_mask is None):
        parser.error("--support and --support-mask go together")
    if args.size and min(args.size) < 1:
        parser.error("--size must be at least 1 1")
    return args


def encoded_support(predictor: FewShotPredictor, args: argparse.Namespace) -> tuple[str, ClassSupport]:
    """Name and supports of the chosen class."""
    if args.support:
        named = {} if args.class_name is None else {"name": args.class_name}
        predictor.set_support(args.support, args.support_mask, **named, mask_values=args.mask_values)
    else:
        predictor.load_support(args.support_file)
    known = ", ".join(predictor.names)
    if args.class_name is None and len(predictor.names) > 1:
        what = f"{args.support_file} has several classes, but one is exported"
        raise ValueError(f"{what}; give --class-name, one of {known}")
    name = args.class_name or predictor.names[0]
    if name not in predictor.names:
        raise KeyError(f"no class {name!r} in {args.support_file}; choose from {known}")
    support = predictor.supports[name]
    if (sizes := len(support.sets)) > 1:
        raise ValueError(f"TEST.SCALES gives {sizes} sizes, but one is exported; add TEST.SCALES '()'")
    return name, support


def read_at(path: Path, size: Sequence[int]) -> Tensor:
    """A picture squashed to (H, W): (3, H, W) uint8."""
    import numpy as np

    from fss_d2.data.augmentations import Squash
    from fss_d2.data.samples import transform_sample

    from .annotations import read_picture

    pixels, _ = read_picture(path)
    return transform_sample(Squash(size), pixels, np.zeros(pixels.shape[:2], np.uint8)).image


def main(arguments: Sequence[str] | None = None, *, program: str | None = None) -> None:
    """Run the command; ``program`` is its name in the usage message."""
    args = parse_arguments(arguments, program)
    from fss_d2.config import load_config
    from fss_d2.io.files import check_writable

    from .export import FrozenQuery, export_query, format_of
    from .predictor import FewShotPredictor

    start_log()
    there = [file for file in (args.output, Path(f"{args.output}.json")) if file.exists()]
    if there and (not args.overwrite or args.output.is_dir()):
        raise FileExistsError(f"--output {there[0]} exists: give another name, or add --overwrite for a file")
    file_format = format_of(args.output, args.format)
    cfg = load_config(args.config_file, args.opts, num_gpus=0)
    predictor = FewShotPredictor.from_cfg(cfg)
    name, support = encoded_support(predictor, args)
    check_writable(args.output.parent)
    size = tuple(args.size or cfg.INPUT.FEW_SHOT_SIZE)
    details = {"class": name, "config": args.config_file, "options": args.opts, "weights": cfg.MODEL.WEIGHTS}
    details["resize"] = cfg.INPUT.TEST_RESIZE
    details["support_views"] = list(cfg.FEW_SHOT.TEST.SUPPORT_VIEWS)
    details["left_out"] = {"TEST.REFINEMENT": cfg.TEST.REFINEMENT} if cfg.TEST.REFINEMENT else {}
    if support.enlarged is not None:
        details["left_out"]["TEST.ZOOM_TILES"] = cfg.TEST.ZOOM_TILES
        logger.warning("%s is small: the file sees images as they are, not enlarged (TEST.ZOOM_TILES)", name)
    images = {str(path): read_at(path, size) for path in [*(args.support or []), *args.image]}
    options = {"file_format": file_format, "input_type": args.input_type}
    logger.info("Exporting %s for images of %d x %d, and comparing the file with the method", name, *size)
    frozen = FrozenQuery(predictor.model, support.sets[0], shots=len(support.frames))
    content = export_query(frozen, args.output, size=size, images=images, details=details, **options)
    if cfg.TEST.REFINEMENT:
        logger.warning("TEST.REFINEMENT %s comes after the network, not in the file", cfg.TEST.REFINEMENT)
    worst = max(content["max_relative_error"].values())
    what = (args.output, file_format, worst)
    logger.info("Wrote %s (%s); it differs from the method by %.1e of the largest logit", *what)
