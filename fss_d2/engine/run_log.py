"""The log of a run: all of it in ``log.txt``, what people want to see on the console. Needs no torch."""

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

from .errors import one_line, traceback_wanted

if TYPE_CHECKING:
    from detectron2.config import CfgNode

__all__ = ["closing_log_handlers", "describe_run", "hide_tracebacks", "quiet_console", "start_log"]

_TRAIN_LOOP = "detectron2.engine.train_loop"  # logs the traceback of any error that ends a training
_NAMES = ("fss_d2", "detectron2", "fvcore")  # loggers that `setup_logger` gives a console and a file


def start_log(output_dir: str | None = None) -> None:
    """Show the log of fss_d2 on the console (main process), and in ``output_dir/log.txt``."""
    from detectron2.utils import comm
    from detectron2.utils.logger import setup_logger

    setup_logger(output_dir, distributed_rank=comm.get_rank(), name="fss_d2")
    _survive_a_full_disk()


@contextmanager
def quiet_console(output_dir: str) -> Iterator[None]:
    """In the block, Detectron2 and fvcore log to ``output_dir/log.txt``, only warnings on the console."""
    from detectron2.utils import comm
    from detectron2.utils.logger import setup_logger

    # As Detectron2's `default_setup` calls it, so that its own calls add no further handlers.
    setup_logger(output_dir, distributed_rank=comm.get_rank(), name="fvcore")
    setup_logger(output_dir, distributed_rank=comm.get_rank())
    _survive_a_full_disk()
    handlers = [h for name in _NAMES for h in logging.getLogger(name).handlers]
    console = [h for h in handlers if getattr(h, "stream", None) is sys.stdout]
    before = [handler.level for handler in console]
    for handler in console:
        handler.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for handler, level in zip(console, before, strict=True):
            handler.setLevel(level)


@contextmanager
def closing_log_handlers() -> Iterator[None]:
    """Remove and close, at the end of the block, all log handlers that were added in it.

    Otherwise a second command in the same process would write to the streams of the first.
    """
    before = {handler for logger in _loggers() for handler in logger.handlers}
    try:
        yield
    finally:
        for logger in _loggers():
            for handler in set(logger.handlers) - before:
                logger.removeHandler(handler)
                handler.close()
        if detectron2_logger := sys.modules.get("detectron2.utils.logger"):
            detectron2_logger.setup_logger.cache_clear()  # otherwise the next call adds no handlers
            detectron2_logger._cached_log_stream.cache_clear()


def describe_run(cfg: "CfgNode", *, training: bool) -> str:
    """What a run does, in about ten lines; its data sets are registered."""
    from detectron2.utils import comm

    solver, test, backbone = cfg.SOLVER, cfg.FEW_SHOT.TEST, cfg.MODEL.BACKBONE
    names = {"build_timm_backbone": f" {cfg.MODEL.TIMM.NAME}"}
    count = comm.get_world_size()
    where = f"{cfg.MODEL.DEVICE}, {count} process{'es' if count > 1 else ''}"
    lines = {
        "method": cfg.MODEL.META_ARCHITECTURE,
        "backbone": backbone.NAME + names.get(backbone.NAME, "") + (", frozen" if backbone.FREEZE else ""),
        "weights": cfg.MODEL.WEIGHTS or "none",
    }
    if training:
        rate = solver.BASE_LR * solver.LR_FACTOR
        length = solver.MAX_ITER or f"of {solver.EPOCHS} epochs"
        lines |= {
            "training set": f"{_named_sets(cfg.DATASETS.TRAIN)}, {_shots(cfg.FEW_SHOT.TRAIN.SHOTS)}",
            "iterations": f"{length}, {solver.IMS_PER_BATCH} episodes each, seed {cfg.SEED}",
            "learning rate": f"{rate:g}, {solver.OPTIMIZER}, {solver.LR_SCHEDULER_NAME}",
        }
    episodes = f"{test.EPISODES} episodes" if test.EPISODES else "one episode per image and class"
    tested = f"{_named_sets(cfg.DATASETS.TEST)}, {_shots(test.SHOTS)}, {test.MANIFEST or episodes}"
    lines |= {"test set": tested if cfg.DATASETS.TEST else "none", "device": where}
    lines["output"] = f"{cfg.OUTPUT_DIR} (config.yaml: all keys; log.txt: this log and the environment)"
    return "\n".join(["The run:", *(f"  {name:14}{value}" for name, value in lines.items())])


def _named_sets(names: Sequence[str]) -> str:
    """Names of data sets, with the fold where the name does not say it."""
    from detectron2.data import MetadataCatalog

    folds = [(name, MetadataCatalog.get(name).get("fold")) for name in names]
    known = [fold is None or f"fold{fold}" in name for name, fold in folds]
    return ", ".join(
        name if k else f"{name} (fold {fold})" for (name, fold), k in zip(folds, known, strict=True)
    )


def _shots(shots: Sequence[int]) -> str:
    return " or ".join(map(str, shots)) + "-shot"


def _survive_a_full_disk() -> None:
    """Let the log go on where a file or the console cannot be written, or has been left before."""
    for logger in map(logging.getLogger, _NAMES):
        for handler in list(logger.handlers):
            stream = getattr(handler, "stream", None)
            if stream is not None and stream.closed:
                logger.removeHandler(handler)
            elif stream not in (None, sys.stderr):
                handler.handleError = partial(_leave_file, handler)


def _leave_file(handler: logging.StreamHandler, record: logging.LogRecord) -> None:
    """Log without a stream that cannot be written, and say so once; other errors are shown as usual."""
    error = sys.exc_info()[1]
    if not isinstance(error, OSError):
        logging.Handler.handleError(handler, record)
        return
    stream = handler.stream
    for logger in _loggers():
        for other in [h for h in logger.handlers if getattr(h, "stream", None) is stream]:
            logger.removeHandler(other)
    if stream is sys.stdout:  # a pipe whose reader has gone, `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    else:
        with suppress(OSError):
            stream.close()  # now, or its end would be an error of its own
    name = getattr(stream, "name", "the log file")
    print(f"warning: {name}: {error.strerror}; the log goes on without it", file=sys.stderr)


def _loggers() -> list[logging.Logger]:
    """All loggers of the process."""
    named = [entry for entry in logging.root.manager.loggerDict.values() if isinstance(entry, logging.Logger)]
    return [logging.root, *named]


def hide_tracebacks() -> None:
    """Keep Detectron2's training loop from logging the traceback of an error that the user can fix."""
    if not traceback_wanted():
        logging.getLogger(_TRAIN_LOOP).addFilter(_without_traceback)


def _without_traceback(record: logging.LogRecord) -> bool:
    line = one_line(record.exc_info[1]) if record.exc_info and record.exc_info[1] else None
    if line is not None:
        record.msg, record.args, record.exc_info = "Training stopped: %s", (line,), None
    return True
