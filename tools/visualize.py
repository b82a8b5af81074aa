#!/usr/bin/env python3
"""Draw test episodes, or what goes on inside a method: one picture per episode, and a grid of all.

    python tools/visualize.py --dataset glyphs_fold0_val --shots 5 --output output/episodes
    python tools/visualize.py --config-file configs/dcama/glyphs_efficientnet_lite0.yaml \\
        --weights output/dcama/model_final.pth --dataset glyphs_fold0_val --figure attention \\
        --num 4 --output output/figures

episodes    supports with their masks, query, truth; needs no model
proposals   the proposals for the query with their scores; a green frame marks the one that fits the truth
            best (MM-Former; the proposal segmenter, which reads no supports)
attention   where in the supports two pixels of the query look (DCAMA, Fig. S5)
aggregated  the masks of each scale (DCAMA, Fig. 4b)
activation  activation maps or prior, pseudo masks, and the way back to the supports (DPCN, Fig. A7; PFENet,
            DANet)
agnostic    how similar each pixel is to an object of any class (JC2A, Fig. 4; other methods with CKMM)
alignment   mean features, an important channel and an outlier, as self-alignment sees and weights them
            (MM-Former, Fig. 5)
robustness  the same query with supports of its class and of another (MM-Former, Fig. 6; every few-shot
            method)
tsne        pixels of object and background, by the backbone's and the penultimate features, in one picture
            (DCAMA, Fig. S6; methods that learn)
curves      mIoU in the course of trainings, a panel for each of --runs (DPCN, Fig. A1; DCAMA, Fig. 5)
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from fss_d2.engine.command_line import (
    documented_parser,
    parse_command_line,
    path_option,
    run_command,
    start_log,
)

BASE_CONFIG = Path(__file__).resolve().parents[1] / "configs" / "Base-FewShot.yaml"
FIGURES = (
    *("episodes", "proposals", "attention", "aggregated", "activation", "agnostic", "alignment"),
    *("robustness", "tsne", "curves"),
)

_OPTIONS = ("figure", "shots", "num", "only", "height", "proposals")

logger = logging.getLogger("fss_d2.tools.visualize")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = documented_parser(__doc__)
    parser.add_argument("--figure", choices=FIGURES, default=FIGURES[0], help="default: %(default)s")
    parser.add_argument("--config-file", metavar="FILE", help="of the method; optional for episodes")
    parser.add_argument("--dataset", metavar="NAME", help="glyphs_fold0_val for example")
    note = "of curves: folders of trainings that evaluated periodically (TEST.EVAL_PERIOD)"
    parser.add_argument("--runs", nargs="+", type=path_option, default=[], metavar="FOLDER", help=note)
    parser.add_argument("--class", dest="only", default="", metavar="NAME", help="draw its episodes alone")
    parser.add_argument("--shots", type=int, default=1, metavar="K", help="supports per episode")
    parser.add_argument("--num", type=int, metavar="N", help="episodes; default: 8, or 4 with a model")
    parser.add_argument("--height", type=int, default=192, metavar="PIXELS", help="of a tile")
    parser.add_argument("--proposals", type=int, default=8, metavar="N", help="to draw for each query")
    parser.add_argument("--output", type=path_option, required=True, metavar="FOLDER")
    args = parse_command_line(parser, argv, weights=True)
    plain = args.figure in ("episodes", "curves")
    if args.figure == "curves" and not args.runs:
        parser.error("--figure curves needs --runs")
    if args.figure != "curves" and args.dataset is None:
        parser.error("the following arguments are required: --dataset")
    if args.config_file is None and not plain:
        parser.error(f"--figure {args.figure} needs --config-file")
    args.config_file = args.config_file or str(BASE_CONFIG)
    args.num = (8 if plain else 4) if args.num is None else args.num
    for name in ("shots", "num", "height", "proposals"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Run the tool."""
    args = parse(argv)
    from fss_d2.checkpoint.checkpointer import load_model
    from fss_d2.config import load_config
    from fss_d2.data import register_datasets_from_cfg
    from fss_d2.engine.drawing import check_figure, draw_curves, draw_test_episodes

    start_log()
    if args.figure == "curves":
        logger.info("Drew %s", draw_curves(args.runs, args.output, height=2 * args.height))
        return
    cfg = load_config(args.config_file, args.opts)
    register_datasets_from_cfg(cfg)
    model = load_model(cfg) if args.figure != "episodes" else None
    if model is not None:
        check_figure(model, args.figure)
    options = {name: getattr(args, name) for name in _OPTIONS}
    picture = draw_test_episodes(cfg, args.dataset, args.output, model=model, **options)
    logger.info("Drew %d episodes; all of them: %s", args.num, picture)


if __name__ == "__main__":
    sys.exit(run_command(main))
