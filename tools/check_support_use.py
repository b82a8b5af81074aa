#!/usr/bin/env python3
"""Does a model use its supports? Score it with them, with those of another class, and without the object.

    python tools/check_support_use.py --config-file configs/mmformer/stage2_glyphs.yaml \\
        --weights output/mmformer/stage2_glyphs/model_final.pth --episodes 200

The second run has the same queries and the same truth, but each episode takes the supports, with their
masks, of the next episode of another class. A model that segments what its supports show loses nearly all of
its score; a model that segments any salient object keeps it. In the third run each episode takes the query of
the next episode whose picture does not show the class: nothing should be found. The episodes are determined
by FEW_SHOT.TEST (SEED, QUERY_RULE, MANIFEST), so the scores are the same each time. With TEST.EVALUATORS
"('few_shot_seg', 'support_use')" every evaluation gives the same numbers.
"""

import argparse
import logging
import sys
from collections.abc import Sequence

from fss_d2.engine.command_line import documented_parser, parse_command_line, run_command, start_log

logger = logging.getLogger("fss_d2.check_support_use")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; None takes that of the process."""
    parser = documented_parser(__doc__)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="of a few-shot method")
    parser.add_argument("--dataset", metavar="NAME", help="default: the first of DATASETS.TEST")
    parser.add_argument("--shots", type=int, metavar="K", help="default: the first of FEW_SHOT.TEST.SHOTS")
    parser.add_argument("--episodes", type=int, default=200, metavar="N", help="default: 200")
    args = parse_command_line(parser, arguments, weights=True)
    if args.episodes < 2 or (args.shots is not None and args.shots < 1):
        parser.error("--episodes must be at least 2, --shots at least 1")
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the tool."""
    args = parse_arguments(arguments)
    from detectron2.utils.env import seed_all_rng

    from fss_d2.checkpoint.checkpointer import load_model
    from fss_d2.config import load_config
    from fss_d2.data import register_datasets_from_cfg
    from fss_d2.engine.evaluate import check_support_use
    from fss_d2.engine.support_use import format_support_use
    from fss_d2.modeling import FewShotSegmentor

    start_log()
    cfg = load_config(args.config_file, args.opts)
    method = cfg.MODEL.META_ARCHITECTURE
    register_datasets_from_cfg(cfg)
    if not (args.dataset or cfg.DATASETS.TEST):
        raise ValueError("DATASETS.TEST names no test set; name one there or with --dataset")
    if not (args.shots or cfg.FEW_SHOT.TEST.SHOTS):
        raise ValueError("FEW_SHOT.TEST.SHOTS is empty; give the number of supports there or with --shots")
    dataset = args.dataset or cfg.DATASETS.TEST[0]
    shots = args.shots or cfg.FEW_SHOT.TEST.SHOTS[0]
    seed_all_rng(max(cfg.SEED, 0))  # also seeds the initial weights of a model without a checkpoint
    model = load_model(cfg)
    if not isinstance(model, FewShotSegmentor):
        message = "reads no supports; choose a config of a few-shot method"
        raise ValueError(f"MODEL.META_ARCHITECTURE {method} {message}")
    result, file = check_support_use(cfg, model, dataset, shots, args.episodes)
    print(format_support_use(method, result))
    logger.info("The scores are in %s; the counts of each episode are next to it", file)


if __name__ == "__main__":
    sys.exit(run_command(main))
