#!/usr/bin/env python3
"""Compare two ways in which classes share the pixels of an image: by pixel, and as the predictor does it.

    python tools/score_competition.py --images photos --maps class_maps --names labels.json \\
        --classes pants coat bag --classes skirt blouse bag --draws 2

`--maps` contains <stem>.png: 0 background, i the i-th class of `--names` (a JSON file {number: name}). For
each `--classes` and draw, three images of each are supports, and images with two or more of the classes are
segmented. By pixel, the class with the highest probability gets it. The table has the mIoU (pixels of all
images of a draw, then the mean of classes, draws and groups) and the number of 8-connected parts of each
class that was found in an image.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from tabulate import tabulate

from fss_d2.engine.command_line import documented_parser, parse_command_line, run_command, start_log
from fss_d2.model_zoo import DEFAULT_CONFIG

_SHOTS = 3
_LEAST = 0.015  # share of an image that a class covers in a support, and two classes in a query


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = documented_parser(__doc__)
    add = parser.add_argument
    add("--images", type=Path, required=True, metavar="FOLDER")
    add("--maps", type=Path, required=True, metavar="FOLDER")
    add("--names", type=Path, required=True, metavar="JSON")
    add("--classes", nargs="+", action="append", required=True, metavar="NAME")
    add("--config-file", default=str(DEFAULT_CONFIG), metavar="FILE")
    add("--draws", type=int, default=1, metavar="N")
    add("--queries", type=int, default=20, metavar="N", help="images per draw; default: %(default)s")
    add("--device", default="", help="cpu, cuda; default: a GPU, if there is one")
    return parse_command_line(parser, arguments)


def by_pixel(probability: np.ndarray) -> np.ndarray:
    """Labels (H, W) of the most probable class (N, H, W) above 0.5."""
    return np.where(probability.max(axis=0) > 0.5, 1 + probability.argmax(axis=0), 0)


def parts(labels: np.ndarray, count: int) -> list[int]:
    """The number of 8-connected parts of each class that is there."""
    found = [cv2.connectedComponents((labels == i).astype(np.uint8))[0] - 1 for i in range(1, count + 1)]
    return [number for number in found if number]


def score(labels: Sequence[np.ndarray], truth: Sequence[np.ndarray], count: int) -> tuple[float, float]:
    """The mIoU in percent over the pixels of all images, and the mean number of parts."""
    ious = []
    for i in range(1, count + 1):
        both = sum(np.count_nonzero((a == i) & (t == i)) for a, t in zip(labels, truth, strict=True))
        either = sum(np.count_nonzero((a == i) | (t == i)) for a, t in zip(labels, truth, strict=True))
        ious.append(both / max(either, 1))
    return 100 * float(np.mean(ious)), float(np.mean([n for a in labels for n in parts(a, count)] or [0]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Segment, score and print the table."""
    args = parse(arguments)
    from fss_d2.inference.predictor import FewShotPredictor

    start_log()
    predictor = FewShotPredictor.from_config(args.config_file, opts=args.opts, device=args.device)
    number = {name: int(i) for i, name in json.loads(args.names.read_bytes()).items()}
    files = {file.stem: file for file in sorted(args.images.iterdir())}
    maps = {stem: np.asarray(Image.open(args.maps / f"{stem}.png")) for stem in files}
    shares = {stem: np.bincount(m.ravel(), minlength=256) / m.size for stem, m in maps.items()}
    scores = []
    for names in args.classes:
        ids = [number[name] for name in names]
        for draw in range(args.draws):
            rng, taken, supports = np.random.default_rng((draw, *ids)), set(), {}
            for name, i in zip(names, ids, strict=True):
                shown = [stem for stem in files if shares[stem][i] > _LEAST and stem not in taken]
                chosen = [shown[k] for k in rng.permutation(len(shown))[:_SHOTS]]
                supports[name] = ([files[s] for s in chosen], [maps[s] == i for s in chosen])
                taken.update(chosen)
            predictor.set_support_classes(supports)
            several = [s for s in files if s not in taken and sum(shares[s][i] > _LEAST for i in ids) > 1]
            queries = [several[k] for k in rng.permutation(len(several))[: args.queries]]
            found = [predictor.predict(files[stem]) for stem in queries]
            truth = [sum((k + 1) * (maps[s] == i) for k, i in enumerate(ids)) for s in queries]
            ways = ([by_pixel(p.probability) for p in found], [p.labels for p in found])
            scores.append([score(way, truth, len(ids)) for way in ways])
    mean = np.mean(scores, axis=0)  # (2, 2)
    rows = [
        [way, f"{m:.1f}", f"{n:.1f}"] for way, (m, n) in zip(("by pixel", "predictor"), mean, strict=True)
    ]
    print(tabulate(rows, ["classes compete", "mIoU", "parts per object"], tablefmt="github"))


if __name__ == "__main__":
    sys.exit(run_command(main))
