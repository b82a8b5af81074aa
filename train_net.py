#!/usr/bin/env python3
"""Train and evaluate a few-shot segmentation model.

python train_net.py --config-file configs/dcama/glyphs_efficientnet_lite0.yaml --num-gpus 0
python train_net.py --config-file configs/dcama/pascal5i_r50.yaml --num-gpus 4 OUTPUT_DIR ./output/fold0
python train_net.py --config-file configs/dcama/pascal5i_r50.yaml --eval-only MODEL.WEIGHTS model.pth
torchrun --nproc-per-node 4 train_net.py --config-file configs/dcama/pascal5i_r50.yaml
"""

import argparse
import sys
from pathlib import Path

from fss_d2.engine.command_line import argument_parser, parse_command_line, plan_from, run_command, setup
from fss_d2.engine.launch import launch


def main(args: argparse.Namespace) -> None:
    """What every process runs; imported here, so that wrong arguments are reported at once."""
    from fss_d2.checkpoint.checkpointer import FewShotCheckpointer
    from fss_d2.engine.evaluate import write_summary
    from fss_d2.engine.replay import replay
    from fss_d2.engine.trainer import Trainer
    from fss_d2.modeling.build import check_base_knowledge

    cfg = setup(args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        checkpointer = FewShotCheckpointer(model, cfg.OUTPUT_DIR, cfg=cfg)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        resumed = args.resume and checkpointer.has_checkpoint()
        weights = checkpointer.get_checkpoint_file() if resumed else cfg.MODEL.WEIGHTS
        check_base_knowledge(model)
        trained = getattr(model, "trainable", True)
        write_summary(cfg, Trainer.test(cfg, model), weights=weights, trained=trained)
    elif args.replay:
        replay(Trainer(cfg), Path(args.replay))
    else:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        trainer.train()


def run() -> None:
    """Parse the command line and start the processes that it asks for."""
    args = parse_command_line(argument_parser("Train and evaluate a few-shot segmentation model."))
    plan = plan_from(args)
    from fss_d2.config import load_config

    load_config(args.config_file, args.opts)  # a wrong key is reported here, before any process starts
    launch(main, plan, (args,))


if __name__ == "__main__":
    sys.exit(run_command(run))
