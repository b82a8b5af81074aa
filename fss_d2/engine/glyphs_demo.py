"""The command ``fss-d2 demo``: embedded data, training, evaluation, pictures; a CPU is enough.

    fss-d2 demo [--output DIR] [--fold 0] [KEY VALUE ...]

Draws the `glyphs` set, trains DCAMA on the 60 base classes of a fold, and evaluates it and the training-free
baseline on the same episodes of the 20 held-out classes. It needs no network: the drawings go to
$DETECTRON2_DATASETS, or the folder datasets if there is one, or the folder of --output.
"""

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from fss_d2.engine.command_line import documented_parser, parse_command_line, path_option, start_log

__all__ = ["compare", "main", "parse"]

logger = logging.getLogger(__name__)


def parse(arguments: Sequence[str] | None = None, program: str | None = None) -> argparse.Namespace:
    """Read the command line; None takes that of the process."""
    parser = documented_parser(__doc__.partition("\n\n")[2], program)
    parser.add_argument(
        "--output", type=path_option, default="output/demo", help="folder of tables, checkpoint and pictures"
    )
    parser.add_argument("--fold", type=int, default=0, choices=range(4), help="its classes are held out")
    parser.add_argument("--iterations", type=int, default=300, help="of training; the config has more")
    parser.add_argument("--episodes", type=int, default=200, help="per evaluation")
    parser.add_argument("--rows", type=int, default=8, help="episodes in the picture grid")
    return parse_command_line(parser, arguments)


def main(arguments: Sequence[str] | None = None, *, program: str | None = None) -> None:
    """Run the demo; ``program`` is its name in the usage message."""
    args = parse(arguments, program)
    from detectron2.utils.logger import setup_logger  # late, so that --help is quick

    from fss_d2.data.catalog import dataset_root
    from fss_d2.data.datasets.glyphs import write_glyphs

    setup_logger()
    start_log()
    if "DETECTRON2_DATASETS" not in os.environ and not dataset_root().is_dir():
        os.environ["DETECTRON2_DATASETS"] = str(args.output)
    logger.info("1/4 Drawing the glyphs set in %s (once)", dataset_root() / "glyphs")
    write_glyphs(dataset_root(), workers=2)
    compare(args)


def compare(args: argparse.Namespace) -> None:
    """Train, evaluate both methods, print the table and draw the pictures."""
    from detectron2.utils.env import seed_all_rng

    from fss_d2.config import load_config
    from fss_d2.engine.drawing import draw_test_episodes
    from fss_d2.engine.evaluate import evaluate
    from fss_d2.engine.trainer import Trainer
    from fss_d2.evaluation import format_table
    from fss_d2.io.files import check_writable
    from fss_d2.model_zoo import DEMO_CONFIGS

    output = Path(args.output)
    sets = [f"('glyphs_fold{args.fold}_{split}',)" for split in ("train", "val")]
    shared = ["DATASETS.TRAIN", sets[0], "DATASETS.TEST", sets[1], "SOLVER.MAX_ITER", str(args.iterations)]
    shared += ["MODEL.DEVICE", "cpu", "FEW_SHOT.TEST.EPISODES", str(args.episodes), "TEST.PICTURES", "0"]
    shared += args.opts
    baseline_cfg, cfg = (
        load_config(str(config), [*shared, "OUTPUT_DIR", str(output / name)], num_gpus=0)
        for name, config in DEMO_CONFIGS.items()
    )
    logger.info("2/4 Training DCAMA on 60 classes, then evaluating it on 20 others")
    check_writable(cfg.OUTPUT_DIR)
    seed_all_rng(cfg.SEED)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trained = trainer.train()
    logger.info("3/4 Evaluating the training-free baseline on the same episodes")
    baseline = evaluate(baseline_cfg, Trainer.build_model(baseline_cfg).eval())
    logger.info("4/4 Drawing pictures")
    (dataset,) = cfg.DATASETS.TEST
    model = trainer.model.eval()
    picture = draw_test_episodes(cfg, dataset, output / "episodes", model=model, num=args.rows)

    rows = {f"Prototype, {name}": scores for name, scores in baseline.items()}
    rows |= {f"DCAMA, {name}": scores for name, scores in trained.items()}
    logger.info("Held-out classes, %d episodes each, percent:\n%s", args.episodes, format_table(rows))
    logger.info("Support and mask, query, prediction, truth: %s", picture)
