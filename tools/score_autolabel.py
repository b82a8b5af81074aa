#!/usr/bin/env python3
"""Score the auto-labeller per class, on a folder whose masks are all known.

    python tools/score_autolabel.py --data datasets/voc_coseg --shots 1 3 --draws 3 \\
        --config-file configs/prototype/voc_coseg_efficientnet_lite0.yaml DEFAULT

`--data` contains <class>/images/* and <class>/masks/<same name>.png. For each class K images are drawn as
supports, the others are labelled as `fss-d2 label` does, and its PNG masks are compared with the true ones.
All configs get the same supports. DEFAULT is the model of the package.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from tabulate import tabulate

from fss_d2.engine.command_line import (
    add_mask_values,
    documented_parser,
    parse_command_line,
    path_option,
    run_command,
    start_log,
)
from fss_d2.io.files import json_text, write_atomic
from fss_d2.io.progress import track
from fss_d2.model_zoo import DEFAULT_CONFIG

if TYPE_CHECKING:  # imported late, so that --help is quick
    from fss_d2.inference.predictor import FewShotPredictor
    from fss_d2.label.supports import Support

logger = logging.getLogger("fss_d2.tools.score_autolabel")

Scores = dict[str, list[float]]  # by class: the IoU of each labelled image of each draw
_RESAMPLES = 1000


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = documented_parser(__doc__)
    parser.add_argument("--data", type=path_option, required=True, metavar="FOLDER")
    add_mask_values(parser)
    parser.add_argument("--config-file", nargs="+", default=["DEFAULT"], metavar="FILE")
    parser.add_argument("--shots", type=int, nargs="+", default=[1], metavar="K")
    parser.add_argument("--draws", type=int, default=1, metavar="N", help="of supports (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--device", default="", help="cpu, cuda; default: a GPU, if there is one")
    parser.add_argument(
        "--output", type=path_option, metavar="JSON", help="also write the IoU of every image"
    )
    args = parse_command_line(parser, arguments)
    for name in ("shots", "draws"):
        if np.min(getattr(args, name)) < 1:
            parser.error(f"--{name} {getattr(args, name)}: give 1 or more")
    return args


def draw_supports(supports: Sequence[Support], shots: int, seed: Sequence[int]) -> list[Support]:
    """Draw K supports; one image or more must be left to label."""
    if len(supports) <= shots:
        raise ValueError(f"--shots {shots}: {supports[0].files[0].parent} has only {len(supports)} images")
    chosen = np.random.default_rng(seed).choice(len(supports), shots, replace=False)
    return [supports[i] for i in sorted(chosen)]


def label_and_score(
    predictor: FewShotPredictor, name: str, of_class: Sequence[Support], chosen: Sequence[Support]
) -> list[float]:
    """Label the images of a class that were not chosen; return their IoU with the true masks, 0 to 100."""
    from fss_d2.label.job import Job, run_job
    from fss_d2.label.writers import file_stems

    images = of_class[0].files[0].parent
    with tempfile.TemporaryDirectory() as folder:
        job = Job(images, Path(folder) / "labels", formats=("png",), check=0)
        run_job(job, predictor, {name: chosen})
        truth = {support.files[0].name: support.mask for support in of_class if support not in chosen}
        stems = file_stems(sorted(truth))
        return [iou(job.output / f"png/{stems[image]}.png", mask) for image, mask in truth.items()]


def iou(file: Path, truth: np.ndarray) -> float:
    """IoU of a class map of one class with a mask {0, 1, 255}, 0 to 100; pixels of 255 do not count."""
    found, counts = np.asarray(Image.open(file)) == 1, truth != 255
    union = np.count_nonzero((found | (truth == 1)) & counts)
    return 100 * np.count_nonzero(found & (truth == 1)) / max(union, 1)


def score(predictor: FewShotPredictor, args: argparse.Namespace, shots: int, data: Mapping) -> Scores:
    """Label and score all draws of all classes."""
    scores: Scores = {name: [] for name in data}
    for number, (name, of_class) in enumerate(track(data.items(), f"{shots}-shot", len(data))):
        for draw in range(args.draws):
            chosen = draw_supports(of_class, shots, (args.seed, number, draw))
            scores[name] += label_and_score(predictor, name, of_class, chosen)
    return scores


def mean_of_classes(scores: Scores) -> str:
    """Mean over classes of the mean over images, with a bootstrap interval over images."""
    from fss_d2.evaluation.bootstrap import interval

    rng = np.random.default_rng(0)
    drawn = ([rng.choice(s, len(s)).mean() for s in scores.values()] for _ in range(_RESAMPLES))
    low, high = interval(np.array([np.mean(means) for means in drawn]))
    return f"{np.mean([np.mean(s) for s in scores.values()]):.1f} [{low:.1f}, {high:.1f}]"


def main(arguments: Sequence[str] | None = None) -> None:
    """Score all configs and print the table."""
    args = parse(arguments)
    from fss_d2.inference.predictor import FewShotPredictor
    from fss_d2.label.supports import read_supports

    start_log()
    logging.getLogger("fss_d2.label").setLevel(logging.WARNING)
    data = read_supports(args.data, mask_values=args.mask_values, image_option="")
    columns: dict[str, Scores] = {}
    for config in args.config_file:
        file = DEFAULT_CONFIG if config == "DEFAULT" else config
        predictor = FewShotPredictor.from_config(file, opts=args.opts, device=args.device)
        for shots in args.shots:
            columns[f"{config} {shots}-shot"] = score(predictor, args, shots, data)
    rows = [[name, *(f"{np.mean(scores[name]):.1f}" for scores in columns.values())] for name in data]
    rows.append(["mean", *(mean_of_classes(scores) for scores in columns.values())])
    print(tabulate(rows, ["class", *columns], tablefmt="github"))
    if args.output:
        write_atomic(args.output, json_text(columns).encode())


if __name__ == "__main__":
    sys.exit(run_command(main))
