"""A logistic model of a few signals: its numbers, and their fit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from typing_extensions import Self

__all__ = ["CLIP", "Logistic", "logit", "sigmoid"]

CLIP = 4.0  # standard deviations of a signal from its mean, at most
_STEPS = 30  # of Newton's method, which needs fewer than ten
_LIMIT = 1e-6  # from 0 and 1, so that logits are finite


@dataclass(frozen=True)
class Logistic:
    """Probability = sigmoid(bias + sum of weight * (signal - mean) / scale)."""

    bias: float
    means: tuple[float, ...]
    scales: tuple[float, ...]
    weights: tuple[float, ...]

    def logits(self, signals: np.ndarray) -> np.ndarray:
        """The logits, (...), of signals (..., S)."""
        standard = (signals - np.array(self.means)) / np.array(self.scales)
        return standard.clip(-CLIP, CLIP) @ np.array(self.weights) + self.bias

    @classmethod
    def from_json(cls, content: Mapping[str, Any], names: Sequence[str]) -> Self:
        """Read what `to_json` gave; raises KeyError or ValueError for anything else."""
        rows = [content["signals"][name] for name in names]
        columns = (tuple(float(row[key]) for row in rows) for key in ("mean", "scale", "weight"))
        return cls(float(content["bias"]), *columns)

    def to_json(self, names: Sequence[str]) -> dict[str, Any]:
        """Plain numbers."""
        rows = zip(names, self.means, self.scales, self.weights, strict=True)
        return {
            "bias": self.bias,
            "signals": {name: {"mean": m, "scale": s, "weight": w} for name, m, s, w in rows},
        }

    @classmethod
    def fit(
        cls, signals: np.ndarray, true: np.ndarray, weights: np.ndarray, *, penalty: float = 0.01
    ) -> Self:
        """Maximise the likelihood by Newton's method, with an L2 penalty on the weights.

        Args:
            signals: (N, S).
            true: (N,) shares in [0, 1].
            weights: (N,) of the rows.
            penalty: of the squared weights, against the mean log-likelihood of a row.
        """
        means, scales = signals.mean(axis=0), signals.std(axis=0) + _LIMIT
        x = np.column_stack([np.ones(len(signals)), ((signals - means) / scales).clip(-CLIP, CLIP)])
        shares = weights / weights.sum()
        ridge = np.diag([_LIMIT, *[2 * penalty] * signals.shape[1]])
        solution = np.zeros(x.shape[1])
        for _ in range(_STEPS):
            now = sigmoid(x @ solution)
            slope = x.T @ (shares * (true - now)) - ridge @ solution
            curvature = (x * (shares * now * (1 - now))[:, None]).T @ x + ridge
            solution += np.linalg.solve(curvature, slope)
        bias, *found = solution.tolist()
        return cls(bias, tuple(means.tolist()), tuple(scales.tolist()), tuple(found))


def sigmoid(values: np.ndarray) -> np.ndarray:
    """Probabilities of logits."""
    return 1 / (1 + np.exp(-values))


def logit(shares: np.ndarray) -> np.ndarray:
    """Logits of shares, of 0 and 1 as well."""
    shares = np.clip(shares, _LIMIT, 1 - _LIMIT)
    return np.log(shares / (1 - shares))
