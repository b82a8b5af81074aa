"""The training run of ``fss-d2 demo``: embedded drawings, training, evaluation, pictures; a CPU is enough."""

import argparse
import logging
import os
from pathlib import Path

__all__ = ["train_on_glyphs"]

logger = logging.getLogger(__name__)


def train_on_glyphs(args: argparse.Namespace) -> None:
    """Draw the `glyphs` set, train a model on the base classes of a fold, compare it with the baseline.

    ``args`` are those of `fss_d2.label.demo_command`.
    """
    from fss_d2.data.catalog import dataset_root
    from fss_d2.data.datasets.glyphs import write_glyphs

    if "DETECTRON2_DATASETS" not in os.environ and not dataset_root().is_dir():
        os.environ["DETECTRON2_DATASETS"] = str(args.output)
    logger.info("1/4 Drawing the glyphs set in %s (once)", dataset_root() / "glyphs")
    write_glyphs(dataset_root(), workers=2)
    _compare(args)


def _compare(args: argparse.Namespace) -> None:
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
    shared += ["DATALOADER.FEATURE_CACHE", str(output / "features"), *args.opts]
    baseline_cfg, cfg = (
        load_config(str(config), [*shared, "OUTPUT_DIR", str(output / name)], num_gpus=0)
        for name, config in DEMO_CONFIGS.items()
    )
    logger.info("2/4 Training dense correlation on 60 classes, then evaluating it on 20 others")
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
    rows |= {f"dense correlation, {name}": scores for name, scores in trained.items()}
    logger.info("Held-out classes, %d episodes each, percent:\n%s", args.episodes, format_table(rows))
    logger.info("Support and mask, query, prediction, truth: %s", picture)
