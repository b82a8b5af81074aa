"""Settings of every test: one thread, fixed seeds."""

import logging
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import fss_d2  # noqa: F401  (before anything imports detectron2)
from fss_d2.engine.command_line import closing_log_handlers

torch.set_num_threads(1)

# A shell ignores Ctrl-C in its background jobs, and nohup SIGHUP; tests of signals would inherit that.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)

PHOTOGRAPHS = Path(os.environ.get("FSS_D2_DEV_DATA", Path(__file__).parents[2] / "shared/data"))


@pytest.fixture(scope="session")
def photographs() -> Path:
    """The folder of development photographs, which are not part of the repository."""
    if not PHOTOGRAPHS.is_dir():
        pytest.skip(f"no photographs in {PHOTOGRAPHS}: set FSS_D2_DEV_DATA")
    return PHOTOGRAPHS


@pytest.fixture(autouse=True)
def closed_logs() -> Iterator[None]:
    """Each test leaves the logs as it found them: no handler with a closed stream, no logger made silent."""
    before = {name: (log.level, log.propagate) for name, log in _loggers().items()}
    with closing_log_handlers():
        yield
    for name, log in _loggers().items():
        level, log.propagate = before.get(name, (logging.NOTSET, True))
        log.setLevel(level)


def _loggers() -> dict[str, logging.Logger]:
    """Those that programs change, by name."""
    loggers = logging.root.manager.loggerDict.items()
    ours = [(name, log) for name, log in loggers if name.startswith(("fss_d2", "detectron2", "fvcore"))]
    return {name: log for name, log in ours if isinstance(log, logging.Logger)}


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Start each test from the same random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
