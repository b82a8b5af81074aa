#!/usr/bin/env python3
"""Fit the numbers of `Output.presence`, and write a checkpoint that holds them.

    python tools/fit_presence.py --config-file configs/prototype/pascal_part_efficientnet_lite0.yaml \\
        --dataset pascal_part_fold1_train --output output/prototype_with_presence.pth

Each episode of FEW_SHOT.TEST is run with its own query and with one that does not show its class. The data
set should have classes on which the weights were not trained: the scores of the method are signals, and they
are too good on those. Features are compared by their deviations from the mean over the queries. What was
fitted belongs to the weights, INPUT.FEW_SHOT_SIZE, FEW_SHOT.TEST.SUPPORT_VIEWS and MODEL.PRESENCE.BLOCKS.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fss_d2.engine.command_line import documented_parser, parse_command_line, run_command, start_log

if TYPE_CHECKING:  # imported late, so that --help is quick
    from detectron2.config import CfgNode

    from fss_d2.modeling import FewShotSegmentor

logger = logging.getLogger("fss_d2.tools.fit_presence")

_PENALTY = 0.001  # of the squared weights
_REPORT = 50  # episodes between two lines


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = documented_parser(__doc__)
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="of a few-shot method")
    add("--dataset", metavar="NAME", help="default: the first of DATASETS.TEST")
    add("--shots", type=int, nargs="+", default=[1, 5], metavar="K", help="fitted together; default: 1 5")
    add("--episodes", type=int, default=300, metavar="N", help="of each number of shots; default: 300")
    add("--output", type=Path, required=True, metavar="FILE", help="the checkpoint to write")
    args = parse_command_line(parser, arguments, weights=True)
    if args.episodes < 2 or min(args.shots) < 1:
        parser.error("--episodes must be at least 2, --shots at least 1")
    return args


def pairs_of(cfg: CfgNode, dataset: str, shots: int, count: int) -> Iterator[tuple[dict[str, Any], ...]]:
    """Mapped episodes, each with its own query and with one that does not show its class."""
    from fss_d2.data.build import build_few_shot_test_loader
    from fss_d2.data.mapper import AbsentQueryMapper
    from fss_d2.engine.support_use import absent_donors

    loader = build_few_shot_test_loader(cfg, dataset, shots=shots, episodes=count)
    episodes, mapper = loader.sampler.all_episodes, loader.dataset.mapper
    donors = absent_donors(dataset, episodes)
    if not donors:
        raise ValueError(f"{dataset}: each picture shows each class, so there are no queries without one")
    absent = AbsentQueryMapper(mapper, donors)
    for number, episode in enumerate((e for e in episodes if e.index in donors), start=1):
        yield mapper(episode), absent(episode)
        if number % _REPORT == 0:
            logger.info("%d of %d episodes with %d supports", number, len(donors), shots)


def fit(model: FewShotSegmentor, cfg: CfgNode, dataset: str, args: argparse.Namespace) -> None:
    """Collect the signals and fill the model's presence."""
    from dataclasses import replace

    import numpy as np
    import torch

    from fss_d2.evaluation.presence import area_under_curve, calibration_error
    from fss_d2.modeling.evidence import DEEP
    from fss_d2.modeling.logistic import Logistic, sigmoid
    from fss_d2.modeling.meta_arch.contract import stack_supports

    cells = {}  # of each picture the mean and the deviation of its cells
    kept = []  # what the signals are made of: evidence, guide, probability, the method's own logit
    for shots in args.shots:
        for episodes in pairs_of(cfg, dataset, shots, args.episodes):
            support = model.encode_support(*stack_supports(episodes[:1]))
            for episode in episodes:
                query = model.encode_query(episode["image"][None])
                grid = query.evidence.maps[DEEP][0].flatten(1)  # (C, cells)
                cells[episode["image_id"]] = grid.mean(dim=1), grid.std(dim=1, correction=0)
                evidence = replace(query.evidence, maps={DEEP: query.evidence.maps[DEEP]})
                output = model.match(query, support)
                kept.append((evidence, support.guide, output.probability(), output.own_presence))
    centre, spread = (torch.stack(values).mean(dim=0) for values in zip(*cells.values(), strict=True))
    model.presence.fill(centre, spread.clamp(min=1e-6))
    signals = torch.cat([model.presence.signals(*each) for each in kept]).double().cpu().numpy()
    shown = np.arange(len(signals)) % 2 == 0
    numbers = Logistic.fit(signals, shown.astype(float), np.ones(len(shown)), penalty=_PENALTY)
    model.presence.fill(centre, spread.clamp(min=1e-6), numbers)
    probability = sigmoid(numbers.logits(signals))
    scores = 100 * area_under_curve(probability, shown), 100 * calibration_error(probability, shown)
    logger.info("%d queries: AUC %.1f %%, calibration error %.1f %%", len(shown), *scores)


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit and write."""
    args = parse(arguments)
    import torch
    from detectron2.utils.env import seed_all_rng

    from fss_d2.checkpoint.checkpointer import load_model
    from fss_d2.config import load_config
    from fss_d2.data import register_datasets_from_cfg
    from fss_d2.io.files import atomic_path
    from fss_d2.io.state_dict import local_file, read_state_dict
    from fss_d2.modeling import FewShotSegmentor

    start_log()
    cfg = load_config(args.config_file, [*args.opts, "TEST.REFINEMENT", "", "TEST.SCALES", "()"])
    register_datasets_from_cfg(cfg)
    if not (args.dataset or cfg.DATASETS.TEST):
        raise ValueError("DATASETS.TEST names no data set; name one there or with --dataset")
    seed_all_rng(max(cfg.SEED, 0))
    model = load_model(cfg)
    if not isinstance(model, FewShotSegmentor):
        raise ValueError(f"{type(model).__name__} reads no supports: choose a config of a few-shot method")
    with torch.no_grad():
        fit(model, cfg, args.dataset or cfg.DATASETS.TEST[0], args)
    state = {}
    if cfg.MODEL.WEIGHTS:
        state = read_state_dict(local_file(cfg.MODEL.WEIGHTS, "MODEL.WEIGHTS"), "MODEL.WEIGHTS")
    state |= {f"presence.{name}": t.cpu() for name, t in model.presence.state_dict().items()}
    with atomic_path(args.output) as temporary:
        torch.save({"model": state}, temporary)
    logger.info("The weights and the numbers of the presence are in %s", args.output)


if __name__ == "__main__":
    sys.exit(run_command(main))
