#!/usr/bin/env python3
"""Measure whether the list of labels to review holds the bad ones, on folders whose masks are all known.

    python tools/score_review.py --data voc_folders --classes dog sheep car --draws 3

`--data` contains <class>/images/* and <class>/masks/<same name>.png. For each class and draw, 3, 4 or 5
images (in turn) are supports, and a folder of others is labelled as `fss-d2 label` does it, with the check of
the supports. A label is bad if its true IoU is below 0.6. The table has for each class: images, bad ones, the
share of images in needs_review.txt, its recall and precision; the recall of a list of 35 % of the images, and
of the best list of that length; the AUC; and by how much the mean expected IoU misses the mean true one, with
the check, without it, and for the mean probability in the mask. `--without` mixes in images that do not show
the object: any mask on them is bad.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from tabulate import tabulate

from fss_d2.engine.command_line import documented_parser, parse_command_line, run_command, start_log
from fss_d2.io.files import write_json
from fss_d2.label import REVIEW_BELOW
from fss_d2.model_zoo import DEFAULT_CONFIG

if TYPE_CHECKING:  # imported late, so that --help is quick
    from fss_d2.inference.predictor import FewShotPredictor
    from fss_d2.label.supports import Support

logger = logging.getLogger("fss_d2.tools.score_review")

_SHOTS = (3, 4, 5)
_COLUMNS = ("images", "bad", "listed", "recall", "precision", "recall at 35 %", "best at 35 %", "AUC")
_ERRORS = ("off", "off without check", "off by probability")


class Label(NamedTuple):
    """The label of an image."""

    expected: float  # IoU, after the check
    unchecked: float  # before it
    probability: float  # mean in the mask
    true: float


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = documented_parser(__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="FOLDER")
    add("--queries", type=Path, metavar="FOLDER", help="of the images to label; default: --data")
    add("--classes", nargs="+", metavar="NAME", help="default: all")
    add("--config-file", default=str(DEFAULT_CONFIG), metavar="FILE")
    add("--draws", type=int, default=1, metavar="N", help="of supports, per class; default: %(default)s")
    add("--images", type=int, default=40, metavar="N", help="per draw; default: %(default)s")
    add("--without", type=int, default=0, metavar="N", help="images without the object, too; default: 0")
    add("--device", default="", help="cpu, cuda; default: a GPU, if there is one")
    add("--output", type=Path, metavar="JSON", help="also write all numbers of all images")
    return parse_command_line(parser, arguments)


def draw(
    data: Mapping[str, Sequence[Support]], name: str, number: int, args: argparse.Namespace, queries: Mapping
) -> tuple[list[Support], list[Support]]:
    """Supports of a class, and the images to label; of those without the object the masks are empty."""
    rng = np.random.default_rng((number, sorted(data).index(name)))
    shots = min(_SHOTS[number % len(_SHOTS)], len(data[name]) - 1)
    chosen = [data[name][i] for i in rng.permutation(len(data[name]))[:shots]]
    taken, own = {s.files[0].name for s in chosen}, {s.files[0].name for s in queries[name]}
    rest = [s for s in queries[name] if s.files[0].name not in taken]
    labelled = [rest[i] for i in rng.permutation(len(rest))[: args.images]]
    others = {s.files[0].name: s for key in sorted(queries) for s in queries[key]}
    absent = [s for file, s in others.items() if file not in own | taken]
    for i in rng.permutation(len(absent))[: args.without]:
        labelled.append(dataclasses.replace(absent[i], mask=np.zeros_like(absent[i].mask)))
    return chosen, labelled


def label(
    predictor: FewShotPredictor, name: str, chosen: Sequence[Support], labelled: Sequence[Support]
) -> Iterator[Label]:
    """Label a folder of images as a user does; yield what was expected of each, and its true IoU."""
    from fss_d2.evaluation.metrics import count_areas, iou
    from fss_d2.label.job import Job, run_job
    from fss_d2.label.output import Journal

    with tempfile.TemporaryDirectory() as folder:
        images, output = Path(folder) / "images", Path(folder) / "labels"
        images.mkdir()
        for support in labelled:
            os.symlink(support.files[0].resolve(), images / support.files[0].name)
        run_job(Job(images, output, formats=("coco",)), predictor, {name: chosen})
        shift = json.loads((output / "leave_one_out.json").read_bytes())[0]["shift"]
        journal = Journal(output / "records")
        for support in labelled:
            path = images / support.files[0].name
            state = path.stat().st_size, path.stat().st_mtime_ns
            record = journal.read(path.name, state)
            if record is None:
                raise ValueError(f"{support.files[0]} was not labelled; look at the log")
            found = record.class_map([name]) == 1
            area = sum(item.area for item in record.objects)
            probability = sum(item.area * item.score for item in record.objects) / max(area, 1)
            true = 1.0
            if (support.mask == 1).any() or found.any():
                true = float(iou(*count_areas(found, support.mask))[1])
            shifted = record.shifted({name: shift})
            yield Label(shifted.lowest_iou, record.lowest_iou, probability, true)


def row(name: str, jobs: Sequence[Sequence[Label]]) -> list[str | int]:
    """A row of the table: counts and recalls over all jobs, AUC and errors as means over jobs."""
    from fss_d2.evaluation.review import score_review

    scores = [score_review([x.expected for x in job], [x.true for x in job], REVIEW_BELOW) for job in jobs]
    images = np.array([s.images for s in scores])
    bad, listed = (np.array([getattr(s, key) for s in scores]) * images for key in ("bad", "listed"))

    def over(key: str, weights: np.ndarray) -> float:
        values = np.array([getattr(s, key) for s in scores])
        known = ~np.isnan(values)
        return float(np.average(values[known], weights=weights[known])) if weights[known].sum() else np.nan

    shares = [bad.sum() / images.sum(), listed.sum() / images.sum(), over("recall", bad)]
    shares += [over("precision", listed), over("recall_at", bad), over("best_at", bad)]
    errors = [
        np.mean([abs(np.mean([x[i] - x.true for x in job])) for job in jobs])
        for i in range(len(Label._fields) - 1)
    ]
    cells = [f"{100 * value:.0f} %" for value in shares]
    auc = np.nanmean([s.auc for s in scores]) if not all(np.isnan(s.auc) for s in scores) else np.nan
    return [name, int(images.sum()), *cells, f"{auc:.2f}", *(f"{error:.2f}" for error in errors)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Label, score and print the table."""
    args = parse(arguments)
    from fss_d2.inference.predictor import FewShotPredictor
    from fss_d2.label.supports import read_supports

    start_log()
    logging.getLogger("fss_d2.label").setLevel(logging.WARNING)
    data = read_supports(args.data)
    queries = read_supports(args.queries) if args.queries else data
    predictor = FewShotPredictor.from_config(args.config_file, opts=args.opts, device=args.device)
    jobs: dict[str, list[list[Label]]] = {}
    for name in args.classes or data:
        for number in range(args.draws):
            jobs.setdefault(name, []).append(
                list(label(predictor, name, *draw(data, name, number, args, queries)))
            )
            logger.info("%s, draw %d of %d", name, number + 1, args.draws)
    rows = [row(name, of_class) for name, of_class in jobs.items()]
    rows.append(row("all", [job for of_class in jobs.values() for job in of_class]))
    print(tabulate(rows, ["class", *_COLUMNS, *_ERRORS], tablefmt="github"))
    if args.output:
        write_json(args.output, {n: [[x._asdict() for x in job] for job in many] for n, many in jobs.items()})


if __name__ == "__main__":
    sys.exit(run_command(main))
