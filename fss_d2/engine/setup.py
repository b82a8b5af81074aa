"""What a program sets up before it trains or evaluates: config, data sets, logs, seeds."""

import argparse

from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from fss_d2.config import load_config
from fss_d2.data.catalog import get_records, register_datasets_from_cfg
from fss_d2.files import check_writable

from .command_line import hide_tracebacks

__all__ = ["setup", "start_log"]


def setup(args: argparse.Namespace) -> CfgNode:
    """Read the config, register the data sets that it lists, start the logs and seed all generators.

    Args:
        args: what `argument_parser` parses; ``OUTPUT_DIR`` receives ``config.yaml`` and ``log.txt``.

    Raises:
        ValueError: a wrong config, an unknown data set, or an OUTPUT_DIR that cannot be written to.
        FileNotFoundError: a data set that has not been prepared; nothing has been written then.
    """
    cfg = load_config(args.config_file, args.opts, num_gpus=args.num_gpus)
    if args.eval_only and not cfg.DATASETS.TEST:
        raise ValueError("DATASETS.TEST names no test set; there is nothing to evaluate")
    if cfg.DATASETS.TEST and not cfg.FEW_SHOT.TEST.SHOTS:
        raise ValueError("FEW_SHOT.TEST.SHOTS is empty; give the numbers of supports to evaluate with")
    register_datasets_from_cfg(cfg)
    for name in cfg.DATASETS.TEST if args.eval_only else (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        get_records(name)  # so that a missing test set is an error now, not at the first evaluation
    check_writable(cfg.OUTPUT_DIR)
    default_setup(cfg, args)
    start_log(cfg.OUTPUT_DIR)
    hide_tracebacks()
    return cfg


def start_log(output_dir: str | None = None) -> None:
    """Show the log of fss_d2 on the console (main process), and in ``output_dir/log.txt``."""
    setup_logger(output_dir, distributed_rank=comm.get_rank(), name="fss_d2")
