"""Settings of every test: one thread, fixed seeds."""

import random

import numpy as np
import pytest
import torch

import fss_d2  # noqa: F401  (before anything imports detectron2)

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Start each test from the same random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
