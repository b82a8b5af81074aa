#!/usr/bin/env python3
"""From nothing to few-shot segmentation: embedded data, training, evaluation, pictures; a CPU is enough.

Draws the `glyphs` set, trains DCAMA on the 60 base classes of a fold, and evaluates it and the training-free
baseline on the same episodes of the 20 held-out classes.

python demo/glyphs_demo.py [--output DIR] [--fold 0] [KEY VALUE ...]
"""

import argparse
import logging
import sys
from pathlib import Path

from fss_d2.engine.command_line import run_command

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
CONFIG = "glyphs_efficientnet_lite0.yaml"

logger = logging.getLogger("fss_d2.demo")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default="output/demo", help="folder of tables, checkpoint and pictures")
    parser.add_argument("--fold", type=int, default=0, choices=range(4), help="its classes are held out")
    parser.add_argument("--iterations", type=int, default=300, help="of training; the config has more")
    parser.add_argument("--episodes", type=int, default=200, help="per evaluation")
    parser.add_argument("--rows", type=int, default=8, help="episodes in the picture grid")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config keys and values, in turn")
    return parser.parse_args()


def main() -> None:
    """Run the demo."""
    args = parse()
    from detectron2.utils.logger import setup_logger  # late, so that --help is quick

    from fss_d2.data.catalog import dataset_root
    from fss_d2.data.datasets.glyphs import write_glyphs
    from fss_d2.engine.setup import start_log

    setup_logger()
    start_log()
    logger.info("1/4 Drawing the glyphs set in %s (once)", dataset_root() / "glyphs")
    write_glyphs(dataset_root(), workers=2)
    compare(args)


def compare(args: argparse.Namespace) -> None:
    """Train, evaluate both methods, print the table and draw the pictures."""
    from detectron2.utils.env import seed_all_rng

    from fss_d2.engine.evaluate import evaluate
    from fss_d2.engine.trainer import Trainer
    from fss_d2.evaluation import format_table
    from fss_d2.files import check_writable

    output = Path(args.output)
    shared = [
        *("SOLVER.MAX_ITER", str(args.iterations)),
        *("MODEL.DEVICE", "cpu", "FEW_SHOT.TEST.EPISODES", str(args.episodes), "TEST.PICTURES", "0"),
        *("DATASETS.TRAIN", f"('glyphs_fold{args.fold}_train',)"),
        *("DATASETS.TEST", f"('glyphs_fold{args.fold}_val',)"),
        *args.opts,
    ]
    baseline_cfg = _config("prototype", output / "prototype", shared)
    cfg = _config("dcama", output / "dcama", shared)

    logger.info("2/4 Training DCAMA on 60 classes, then evaluating it on 20 others")
    check_writable(cfg.OUTPUT_DIR)
    seed_all_rng(cfg.SEED)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trained = trainer.train()
    logger.info("3/4 Evaluating the training-free baseline on the same episodes")
    baseline = evaluate(baseline_cfg, Trainer.build_model(baseline_cfg).eval())
    logger.info("4/4 Drawing pictures")
    picture = draw(cfg, trainer.model.eval(), args.rows, output / "episodes.png")

    rows = {f"Prototype, {name}": scores for name, scores in baseline.items()}
    rows |= {f"DCAMA, {name}": scores for name, scores in trained.items()}
    logger.info("Held-out classes, %d episodes each, percent:\n%s", args.episodes, format_table(rows))
    logger.info("Support and mask, query, prediction, truth: %s", picture)


def draw(cfg: "CfgNode", model: "nn.Module", rows: int, path: Path) -> Path:  # noqa: F821
    """Segment the first one-shot episodes and draw them, one a row."""
    import torch
    from detectron2.data import MetadataCatalog

    from fss_d2.data import build_few_shot_test_loader
    from fss_d2.visualization import episode_panel, picture_grid, save_picture

    (dataset,) = cfg.DATASETS.TEST
    names = MetadataCatalog.get(dataset).stuff_classes
    loader = build_few_shot_test_loader(cfg, dataset, shots=1, episodes=rows)
    with torch.inference_mode():
        panels = [
            episode_panel(episode, model([episode])[0], class_name=names[episode["class_id"]])
            for batch in loader
            for episode in batch
        ]
    save_picture(path, picture_grid(panels))
    return path


def _config(method: str, output: Path, opts: list[str]) -> "CfgNode":  # noqa: F821
    from fss_d2.config import load_config

    return load_config(str(CONFIGS / method / CONFIG), [*opts, "OUTPUT_DIR", str(output)], num_gpus=0)


if __name__ == "__main__":
    sys.exit(run_command(main))
