"""The command ``fss-d2 label``."""

import argparse
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fss_d2.engine.command_line import (
    add_launch_arguments,
    add_mask_values,
    add_presence,
    documented_parser,
    parse_command_line,
    path_option,
    plan_from,
    start_log,
)
from fss_d2.engine.launch import launch
from fss_d2.model_zoo import DEFAULT_CONFIG

from . import REVIEW_BELOW

if TYPE_CHECKING:  # modules that load torch are imported where they are used: --help answers without them
    from detectron2.config import CfgNode

    from fss_d2.inference.predictor import FewShotPredictor

__all__ = ["main"]

logger = logging.getLogger(__name__)

_MOST_CHECKED = 24  # `check.MOST_CHECKED`
_FORMATS = "coco,png,yolo,labelme"  # the keys of `writers.FORMATS`
_DESCRIPTION = """Label a folder of images like a few annotated ones.

    fss-d2 label --support annotated --images photos --output labels

First each annotated image is segmented with the others of its class: that shows what IoU to expect, and which
annotated image makes the others worse. Then every image is labelled, unless it is judged not to show the
object, and the IoU of its labels estimated. The output folder gets the labels in all formats,
needs_review.txt (images of low expected IoU) and report.html (all labels on one page). After an interruption,
the same command goes on where it stopped."""
_SUPPORT = """annotated images: a folder of <class>/images and <class>/masks, or of <class>/<name>.jpg and
<name>_mask.png, a COCO JSON file, or a folder of LabelMe JSON files"""


def main(arguments: Sequence[str] | None = None, *, program: str | None = None) -> None:
    """Run the command; ``program`` is its name in the usage message."""
    parser = _parser(program)
    add_launch_arguments(parser)
    args = parse_command_line(parser, arguments)
    plan = plan_from(args)
    try:
        launch(_run, plan, (args, None if plan.uses_gpu else 0))
    except KeyboardInterrupt:
        logger.info("Finished images are kept: the same command goes on where it stopped")
        raise


def _run(args: argparse.Namespace, num_gpus: int | None) -> None:
    """Label, in each process."""
    from detectron2.utils.env import seed_all_rng

    from fss_d2.config import load_config
    from fss_d2.inference.predictor import FewShotPredictor
    from fss_d2.io.files import printable

    from .job import Job, run_job
    from .negatives import read_negatives
    from .supports import read_supports

    start_log()
    formats = args.formats
    if formats is not None:
        formats = tuple(dict.fromkeys(name.strip() for name in formats.split(",")))
    job = Job(args.images, args.output, formats, args.review_below, args.min_area, args.check)
    options = {"mask_values": args.mask_values, "image_option": "--support-images"}
    supports = read_supports(args.support, args.support_images, **options)
    negatives = read_negatives(args.negative, supports)
    weights = ["MODEL.WEIGHTS", args.weights] if args.weights else []
    cfg = load_config(args.config_file, [*args.opts, *weights], num_gpus=num_gpus)
    seed_all_rng(max(cfg.SEED, 0))  # weights that no file has are the same in each run and process
    predictor = FewShotPredictor.from_cfg(cfg, present_above=args.present_above)
    summary = run_job(job, predictor, supports, _model(cfg, predictor), negatives)
    if summary:
        lost = len(summary["unreadable"]), len(summary["left_out"])
        counts = summary["labelled"], summary["nothing_found"], summary["needs_review"], *lost
        page = printable(job.output / "report.html")
        text = "Labelled %d images (%d show nothing, %d to review, %d unreadable, %d left out); look at %s"
        logger.info(text, *counts, page)


def _model(cfg: "CfgNode", predictor: "FewShotPredictor") -> dict[str, str]:
    """What predictions depend on: config keys with their values, and a digest of the weights."""
    from fss_d2.inference.support_file import encoding_settings, weights_digest

    refinement = {"TEST.REFINEMENT": cfg.TEST.REFINEMENT}
    return {"weights": weights_digest(predictor.model), **refinement, **encoding_settings(cfg)}


def _parser(program: str | None) -> argparse.ArgumentParser:
    parser = documented_parser(_DESCRIPTION, program)
    add, folder = parser.add_argument, {"required": True, "metavar": "FOLDER", "type": path_option}
    zoo = str(DEFAULT_CONFIG)
    add("--config-file", default=zoo, metavar="FILE", help="default: the model of the package")
    add("--weights", default="", metavar="FILE", help="default: MODEL.WEIGHTS")
    add("--support", required=True, metavar="PATH", type=path_option, help=_SUPPORT)
    images = "pictures of JSON files; default: near each file, also in a folder images"
    add("--support-images", metavar="FOLDER", type=path_option, help=images)
    add_mask_values(parser)
    add_presence(parser)
    add("--images", **folder, help="images to label, with subfolders")
    add("--output", **folder, help="a new folder, or that of a run to resume")
    add("--formats", metavar="A,B", help=f"default: {_FORMATS}, all that the images allow")
    review = "list images of less expected IoU in needs_review.txt; default: %(default)s"
    add("--review-below", type=float, default=REVIEW_BELOW, metavar="P", help=review)
    area = "pixels of the smallest object; default: 1/2000 of the image"
    add("--min-area", type=int, metavar="N", help=area)
    check = "check at most N supports of each class first; default: %(default)s"
    add("--check", type=int, default=_MOST_CHECKED, metavar="N", help=check)
    add("--no-check", dest="check", action="store_const", const=0, help="the same as --check 0")
    return parser
