#!/usr/bin/env python3
"""Does a model use its supports? Score it with its own supports, and with those of another class.

    python tools/check_support_use.py --config-file configs/mmformer/stage2_glyphs.yaml \\
        --weights output/mmformer/stage2_glyphs/model_final.pth --episodes 200

Both runs have the same queries and the same truth. In the second run each episode takes the supports, with
their masks, of the next episode of another class. A model that segments what its supports show loses nearly
all of its score; a model that segments any salient object keeps it. The episodes are determined by
FEW_SHOT.TEST (SEED, QUERY_RULE, MANIFEST), so the scores are the same each time.
"""

import argparse
import logging
import sys
from collections.abc import Sequence

from fss_d2.engine.command_line import parse_command_line, run_command

logger = logging.getLogger("fss_d2.check_support_use")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; None takes that of the process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="of a few-shot method")
    parser.add_argument("--weights", metavar="FILE", help="default: MODEL.WEIGHTS")
    parser.add_argument("--dataset", metavar="NAME", help="default: the first of DATASETS.TEST")
    parser.add_argument("--shots", type=int, metavar="K", help="default: the first of FEW_SHOT.TEST.SHOTS")
    parser.add_argument("--episodes", type=int, default=200, metavar="N", help="default: 200")
    args = parse_command_line(parser, arguments)
    if args.episodes < 2 or (args.shots is not None and args.shots < 1):
        parser.error("--episodes must be at least 2, --shots at least 1")
    if args.weights:
        args.opts += ["MODEL.WEIGHTS", args.weights]
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the tool.

    Raises:
        ValueError: no test set, no number of shots, one class only, a method without supports, or an
            OUTPUT_DIR that cannot be written to.
        FileNotFoundError: no such weights, or a data set that has not been prepared.
    """
    args = parse_arguments(arguments)
    # Imported late, so that --help is quick.
    from detectron2.utils.env import seed_all_rng

    from fss_d2.config import load_config
    from fss_d2.data import register_datasets_from_cfg
    from fss_d2.engine.setup import start_log
    from fss_d2.engine.support_use import check_support_use, format_support_use
    from fss_d2.inference.loading import load_model
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
        raise ValueError(
            f"MODEL.META_ARCHITECTURE {method} reads no supports; choose a config of a few-shot method"
        )
    result, file = check_support_use(cfg, model, dataset, shots, args.episodes)
    print(format_support_use(method, result))
    logger.info("The scores are in %s; the counts of each episode are next to it", file)


if __name__ == "__main__":
    sys.exit(run_command(main))
