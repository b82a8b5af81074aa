"""The IoU to expect of a predicted mask: a logistic model of the signals of `fss_d2.inference.evidence`.

Its numbers are fitted by ``tools/fit_quality.py`` on photographs whose true masks are known, and lie next to
the weights that they belong to. Other weights and settings get those of the prior, a fit over several
methods.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from fss_d2.io.files import read_json_object
from fss_d2.model_zoo import QUALITY_FILES, QUALITY_PRIOR

from .evidence import SIGNALS
from .support_file import weights_digest

__all__ = ["QualityModel", "class_shift", "fit_quality", "load_quality", "prior_quality", "shifted"]

_FIX = "make it anew with tools/fit_quality.py"
_STEPS = 30  # of Newton's method, which needs fewer than ten
_CLIP = 4.0  # standard deviations of a signal from its mean, at most
_LIMIT = 1e-6  # from 0 and 1, so that logits are finite


@dataclass(frozen=True)
class QualityModel:
    """Expected IoU = sigmoid(bias + sum of weight * (signal - mean) / scale).

    Attributes:
        origin: what its numbers were fitted on, a text for reports.
        spread: standard deviation of what `class_shift` adds to the logits of a class.
    """

    origin: str
    bias: float
    means: tuple[float, ...]  # of each of `SIGNALS`
    scales: tuple[float, ...]
    weights: tuple[float, ...]
    spread: float = 1.0

    def expected(self, signals: np.ndarray) -> np.ndarray:
        """The IoU to expect, (...), from signals (..., len(SIGNALS))."""
        standard = (signals - np.array(self.means)) / np.array(self.scales)
        return _sigmoid(standard.clip(-_CLIP, _CLIP) @ np.array(self.weights) + self.bias)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "QualityModel":
        """Read what `to_json` gave; raises KeyError or ValueError for anything else."""
        rows = [content["signals"][name] for name in SIGNALS]
        columns = (tuple(float(row[key]) for row in rows) for key in ("mean", "scale", "weight"))
        return cls(content["origin"], float(content["bias"]), *columns, float(content["spread"]))

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        rows = zip(SIGNALS, self.means, self.scales, self.weights, strict=True)
        signals = {name: {"mean": m, "scale": s, "weight": w} for name, m, s, w in rows}
        return {"origin": self.origin, "bias": self.bias, "spread": self.spread, "signals": signals}


def fit_quality(
    signals: np.ndarray, true: np.ndarray, weights: np.ndarray, *, origin: str, penalty: float = 0.01
) -> QualityModel:
    """Fit a logistic model of the true IoU by Newton's method, with an L2 penalty on the weights.

    Args:
        signals: (N, len(SIGNALS)).
        true: (N,) IoUs in [0, 1].
        weights: (N,) of the masks.
        penalty: of the squared weights, against the mean log-likelihood of a mask.
    """
    means, scales = signals.mean(axis=0), signals.std(axis=0) + _LIMIT
    x = np.column_stack([np.ones(len(signals)), ((signals - means) / scales).clip(-_CLIP, _CLIP)])
    shares = weights / weights.sum()
    ridge = np.diag([_LIMIT, *[2 * penalty] * signals.shape[1]])
    solution = np.zeros(x.shape[1])
    for _ in range(_STEPS):
        now = _sigmoid(x @ solution)
        slope = x.T @ (shares * (true - now)) - ridge @ solution
        curvature = (x * (shares * now * (1 - now))[:, None]).T @ x + ridge
        solution += np.linalg.solve(curvature, slope)
    bias, *found = solution.tolist()
    return QualityModel(origin, bias, tuple(means.tolist()), tuple(scales.tolist()), tuple(found))


def prior_quality() -> QualityModel:
    """The numbers for weights and settings that nothing was fitted for."""
    return QualityModel.from_json(read_json_object(QUALITY_PRIOR, _FIX))


def load_quality(model: nn.Module, settings: Mapping[str, str]) -> QualityModel:
    """The numbers that were fitted for these weights and settings, or those of the prior.

    ``settings`` are config keys and values; a key that only one side knows does not count.
    """
    for file in QUALITY_FILES:
        content = read_json_object(file, _FIX)
        fitted = content["settings"]
        same = all(fitted[key] == settings[key] for key in fitted.keys() & settings.keys())
        if same and content["method"] == type(model).__name__ and content["weights"] == weights_digest(model):
            return QualityModel.from_json(content)
    return prior_quality()


def class_shift(pairs: Iterable[tuple[float, float]], spread: float) -> float:
    """What to add to the logits of a class's expected IoUs, from pairs (expected IoU, true IoU) of it.

    It maximises the likelihood of the true values, with a normal prior of standard deviation ``spread``: the
    fewer pairs, the smaller it is. Without pairs it is 0.
    """
    expected, true = np.array(list(pairs), dtype=np.float64).reshape(-1, 2).T
    logits, shift = _logit(expected), 0.0
    for _ in range(_STEPS):
        now = _sigmoid(logits + shift)
        slope = (true - now).sum() - shift / spread**2
        shift += slope / ((now * (1 - now)).sum() + 1 / spread**2)
    return float(shift)


def shifted(expected: float, shift: float) -> float:
    """An expected IoU whose logit is raised by ``shift``; 0 and 1 stay."""
    if not 0 < expected < 1:
        return expected
    return float(_sigmoid(_logit(np.float64(expected)) + shift))


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def _logit(shares: np.ndarray) -> np.ndarray:
    shares = np.clip(shares, _LIMIT, 1 - _LIMIT)
    return np.log(shares / (1 - shares))
