"""Shared by the evaluation tests."""

import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fss_d2.evaluation.bootstrap import EpisodeCounts

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


@pytest.fixture(scope="session")
def recipe_tensor() -> Callable[..., np.ndarray]:
    """The reproducible inputs of the golden files, by name and shape."""
    return runpy.run_path(str(GOLDEN / "recipe.py"))["recipe_tensor"]


@pytest.fixture
def make_rows() -> Callable[..., list[EpisodeCounts]]:
    """Random rows over classes 0 to 3; ``gain`` moves wrong foreground pixels to the intersection."""

    def make(n: int, seed: int = 0, gain: int = 0) -> list[EpisodeCounts]:
        rng = np.random.default_rng(seed)
        rows = []
        for index in range(n):
            inter, extra = (int(v) for v in rng.integers(20, 100, 2))
            right = inter + min(gain, extra)
            rows.append(
                EpisodeCounts(
                    episode_index=index,
                    class_id=int(rng.integers(4)),
                    query=f"q{index}",
                    supports=(f"s{index}",),
                    intersection=(200 - inter, right),
                    union=(200 + extra, inter + extra),
                )
            )
        return rows

    return make
