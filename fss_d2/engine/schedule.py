"""The length of a training: SOLVER.EPOCHS and the periods in epochs become iterations of the data at hand."""

import logging

from detectron2.config import CfgNode

from fss_d2.data.build import training_episodes

__all__ = ["in_iterations", "iterations_of_epoch"]

logger = logging.getLogger(__name__)


def in_iterations(cfg: CfgNode) -> CfgNode:
    """Return a config whose SOLVER.MAX_ITER and periods are iterations; it is ``cfg`` if they are already.

    Where SOLVER.MAX_ITER is 0, SOLVER.EPOCHS counts, and with it SOLVER.CHECKPOINT_EPOCHS and
    TEST.EVAL_EPOCHS where they are above 0. The training set is read. ValueError if both lengths are 0.
    """
    solver, test = cfg.SOLVER, cfg.TEST
    if solver.MAX_ITER:
        if solver.EPOCHS:
            logger.info("SOLVER.MAX_ITER %d counts, not SOLVER.EPOCHS %d", solver.MAX_ITER, solver.EPOCHS)
        return cfg
    if not solver.EPOCHS:
        raise ValueError("SOLVER.MAX_ITER and SOLVER.EPOCHS are 0; set one of them")
    epoch = iterations_of_epoch(cfg)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.MAX_ITER = solver.EPOCHS * epoch
    cfg.SOLVER.CHECKPOINT_PERIOD = solver.CHECKPOINT_EPOCHS * epoch or solver.CHECKPOINT_PERIOD
    if test.EVAL_PERIOD:
        cfg.TEST.EVAL_PERIOD = test.EVAL_EPOCHS * epoch or test.EVAL_PERIOD
    cfg.freeze()
    logger.info("%d epochs of %d iterations: %d in all", solver.EPOCHS, epoch, cfg.SOLVER.MAX_ITER)
    return cfg


def iterations_of_epoch(cfg: CfgNode) -> int:
    """Return the batches of an epoch; the last one counts if it is full or SOLVER.DROP_LAST is False."""
    queries, batch = training_episodes(cfg).epoch_length, max(cfg.SOLVER.IMS_PER_BATCH, 1)
    iterations = queries // batch if cfg.SOLVER.DROP_LAST else -(-queries // batch)
    if not iterations:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH {batch} is more than the {queries} queries of an epoch, and "
            "SOLVER.DROP_LAST leaves out the incomplete batch; lower the first or set the second False"
        )
    return iterations
