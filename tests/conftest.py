"""Settings of every test: one thread, fixed seeds."""

import logging
import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import fss_d2  # noqa: F401  isort: skip  (before anything imports detectron2)
from detectron2.utils import logger as detectron2_logger

torch.set_num_threads(1)

PHOTOGRAPHS = Path(os.environ.get("FSS_D2_DEV_DATA", Path(__file__).parents[2] / "shared/data"))


@pytest.fixture(scope="session")
def photographs() -> Path:
    """The folder of development photographs, which are not part of the repository."""
    if not PHOTOGRAPHS.is_dir():
        pytest.skip(f"no photographs in {PHOTOGRAPHS}: set FSS_D2_DEV_DATA")
    return PHOTOGRAPHS


@pytest.fixture
def closed_logs() -> Iterator[None]:
    """Close the log handlers that earlier tests left, and after the test its own."""
    _close_logs()
    yield
    _close_logs()


def _close_logs() -> None:
    for name in ("detectron2", "fvcore", "fss_d2"):
        log = logging.getLogger(name)
        for handler in list(log.handlers):
            log.removeHandler(handler)
            handler.close()
    detectron2_logger.setup_logger.cache_clear()  # otherwise the next call adds no handlers
    detectron2_logger._cached_log_stream.cache_clear()


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Start each test from the same random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
