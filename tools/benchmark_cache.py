#!/usr/bin/env python3
"""What DATALOADER.FEATURE_CACHE saves: the time of a training iteration and of a test episode.

    python tools/benchmark_cache.py --config-file configs/dcama/photos_efficientnet_lite0.yaml \\
        INPUT.TRAIN_AUGMENTATIONS "('flip',)" DATASETS.TEST "('coco_mini',)"

The first iterations fill a new cache in a temporary folder. Then the same ones run alternately without the
cache and from it, and so do the test episodes. Times are medians, with one thread and without workers. They
include the loading of the episodes and, in training, the backward pass; the weights stay as they are.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from statistics import median
from typing import TYPE_CHECKING, Any

from fss_d2.engine.command_line import documented_parser, parse_command_line, run_command, start_log

if TYPE_CHECKING:
    from detectron2.config import CfgNode

    from fss_d2.modeling import FewShotSegmentor


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; None takes that of the process."""
    parser = documented_parser(__doc__)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="of a method that is trained")
    note = "iterations, and test episodes, that are measured; default: 20"
    parser.add_argument("--number", type=int, default=20, metavar="N", help=note)
    args = parse_command_line(parser, arguments)
    if args.number < 1:
        parser.error("--number must be at least 1")
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print a table of times relative to those without the cache."""
    args = parse_arguments(arguments)
    import torch
    from detectron2.utils.env import seed_all_rng

    from fss_d2.checkpoint.checkpointer import load_model
    from fss_d2.config import load_config
    from fss_d2.data import register_datasets_from_cfg

    start_log()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        more = ("DATALOADER.FEATURE_CACHE", folder, "DATALOADER.NUM_WORKERS", "0", "TEST.PICTURES", "0")
        cfg = load_config(args.config_file, [*args.opts, *more])
        register_datasets_from_cfg(cfg)
        seed_all_rng(max(cfg.SEED, 0))
        print(_table(cfg, [load_model(cfg), load_model(cfg)], args.number))


def _table(cfg: "CfgNode", models: Sequence["FewShotSegmentor"], number: int) -> str:
    from tabulate import tabulate

    from fss_d2.data.build import build_few_shot_test_loader, build_few_shot_train_loader
    from fss_d2.engine.feature_cache import open_features

    store = open_features(cfg, models[0], training=True)
    test = {"dataset_name": cfg.DATASETS.TEST[0], "shots": cfg.FEW_SHOT.TEST.SHOTS[0], "episodes": number}
    rows = []
    for name, training, build in (
        ("training iteration", True, partial(build_few_shot_train_loader, cfg)),
        ("test episode", False, partial(build_few_shot_test_loader, cfg, **test)),
    ):
        for model in models:
            model.train(training)
        rows.append([name, *_measure(*models, build, store, number)])
    count, size = store.usage()
    headers = ["", "without, s", "filling the cache", "from the cache"]
    table = tabulate(rows, headers=headers, tablefmt="pipe", floatfmt=("", ".3f", ".2f", ".2f"))
    return f"{table}\n\n{count} entries of {size / count / 2**20:.2f} MiB each"


def _measure(
    plain: "FewShotSegmentor", cached: "FewShotSegmentor", build: Callable[..., Any], store: Any, number: int
) -> tuple[float, float, float]:
    """Seconds without the cache, and the shares of that while it is filled and when it is full."""
    from fss_d2.engine.feature_cache import with_features

    with with_features(cached, store):
        filling = list(islice(_timed(cached, build(features=store)), number))
        pairs = zip(_timed(plain, build()), _timed(cached, build(features=store)), strict=False)
        without, full = map(median, zip(*islice(pairs, number), strict=True))
    return without, median(filling) / without, full / without


def _timed(model: "FewShotSegmentor", loader: Any) -> Iterator[float]:
    """Seconds of each batch: loading, forward, and backward in training."""
    import torch

    batches = iter(loader)
    while True:
        start = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        with torch.set_grad_enabled(model.training):
            outputs = model(batch)
        if model.training:
            model.zero_grad()
            sum(outputs.values()).backward()
        yield time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(run_command(main))
