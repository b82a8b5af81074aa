"""The auto-labeller's command line, for ``tools/autolabel.py`` and ``fss-d2 label``."""

import argparse
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

from fss_d2.engine.command_line import add_launch_arguments, parse_command_line, plan_from
from fss_d2.engine.launch import launch
from fss_d2.files import printable
from fss_d2.model_zoo import DEFAULT_CONFIG

__all__ = ["main"]

logger = logging.getLogger(__name__)

_FORMATS = "coco,png,yolo,labelme"  # of .writers, which --help does not wait for
_DESCRIPTION = "Label a folder of images like a few annotated ones."


def main(arguments: Sequence[str] | None = None, *, program: str | None = None) -> None:
    """Run the auto-labeller.

    Args:
        arguments: of the command line; None takes those of the process.
        program: what its usage message calls it.

    Raises:
        ValueError, FileNotFoundError: as `read_supports`, `FewShotPredictor.from_config` and `run_job`.
    """
    args = _parse(arguments, program)
    plan = plan_from(args)
    try:
        launch(_run, plan, (args, "" if plan.uses_gpu else "cpu"))
    except KeyboardInterrupt:
        logger.info("What is done is kept: the same command goes on where it stopped")
        raise


def _run(args: argparse.Namespace, device: str) -> None:
    from fss_d2.engine.setup import start_log
    from fss_d2.inference.predictor import FewShotPredictor

    from .job import Job, run_job
    from .supports import read_supports

    start_log()
    formats = tuple(dict.fromkeys(name.strip() for name in args.formats.split(",")))
    images, output = Path(args.images), Path(args.output)
    job = Job(images, output, formats, args.review_below, args.min_area, args.check)
    supports = read_supports(args.support, args.support_images)
    predictor = FewShotPredictor.from_config(
        args.config_file, weights=args.weights, opts=args.opts, device=device
    )
    summary = run_job(job, predictor, supports, _model(args, device))
    if summary:
        logger.info(
            "Labelled %d images (%d to review, %d unreadable); look at %s",
            summary["labelled"],
            summary["needs_review"],
            len(summary["unreadable"]),
            printable(output / "report.html"),
        )


def _model(args: argparse.Namespace, device: str) -> dict[str, str]:
    """Digests of the settings and of the weights, wherever they lie."""
    from detectron2.utils.file_io import PathManager

    from fss_d2.config import load_config

    cfg = load_config(args.config_file, args.opts, num_gpus=0 if device == "cpu" else None).clone()
    weights = PathManager.get_local_path(args.weights or cfg.MODEL.WEIGHTS)
    cfg.defrost()
    cfg.MODEL.WEIGHTS = cfg.OUTPUT_DIR = ""
    if Path(weights).is_file():
        weights = hashlib.sha256(Path(weights).read_bytes()).hexdigest()
    return {"config": hashlib.sha256(cfg.dump().encode()).hexdigest(), "weights": weights}


def _parse(arguments: Sequence[str] | None, program: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=program, description=_DESCRIPTION)
    parser.add_argument(
        "--config-file", default=str(DEFAULT_CONFIG), metavar="FILE", help="default: the model of the package"
    )
    parser.add_argument("--weights", default="", metavar="FILE", help="default: MODEL.WEIGHTS")
    parser.add_argument(
        "--support",
        required=True,
        metavar="PATH",
        help="annotated images: a folder of <class>/images and <class>/masks, or of <class>/<name>.jpg and "
        "<name>_mask.png, a COCO JSON file, or a folder of LabelMe JSON files",
    )
    parser.add_argument(
        "--support-images", metavar="FOLDER", help="where a COCO JSON's images are; default: beside it"
    )
    parser.add_argument("--images", required=True, metavar="FOLDER", help="images to label, with subfolders")
    parser.add_argument(
        "--output", required=True, metavar="FOLDER", help="new, or that of a run to go on with"
    )
    parser.add_argument("--formats", default=_FORMATS, metavar="A,B", help="default: all, %(default)s")
    parser.add_argument(
        "--review-below",
        type=float,
        default=0.6,
        metavar="P",
        help="list images of less confidence in needs_review.txt; default: %(default)s",
    )
    parser.add_argument(
        "--min-area",
        type=int,
        metavar="N",
        help="pixels of the smallest object; default: a two-thousandth of the image",
    )
    parser.add_argument(
        "--no-check", dest="check", action="store_false", help="do not label the supports by each other first"
    )
    add_launch_arguments(parser)
    return parse_command_line(parser, arguments)
