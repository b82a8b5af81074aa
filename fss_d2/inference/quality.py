"""The IoU to expect of a predicted mask: a logistic model of the signals of `fss_d2.inference.mask_signals`.

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
from fss_d2.modeling.logistic import Logistic, logit, sigmoid

from .mask_signals import SIGNALS
from .support_file import weights_digest

__all__ = ["QualityModel", "class_shift", "load_quality", "prior_quality", "shifted"]

_FIX = "make it anew with tools/fit_quality.py"
_STEPS = 30  # of Newton's method, which needs fewer than ten


@dataclass(frozen=True)
class QualityModel:
    """Expected IoU: a logistic model of the `SIGNALS`.

    Attributes:
        origin: what its numbers were fitted on, a text for reports.
        spread: standard deviation of what `class_shift` adds to the logits of a class.
    """

    origin: str
    numbers: Logistic
    spread: float = 1.0

    def expected(self, signals: np.ndarray) -> np.ndarray:
        """The IoU to expect, (...), from signals (..., len(SIGNALS))."""
        return sigmoid(self.numbers.logits(signals))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "QualityModel":
        """Read what `to_json` gave; raises KeyError or ValueError for anything else."""
        return cls(content["origin"], Logistic.from_json(content, SIGNALS), float(content["spread"]))

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"origin": self.origin, "spread": self.spread, **self.numbers.to_json(SIGNALS)}


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
    logits, shift = logit(expected), 0.0
    for _ in range(_STEPS):
        now = sigmoid(logits + shift)
        slope = (true - now).sum() - shift / spread**2
        shift += slope / ((now * (1 - now)).sum() + 1 / spread**2)
    return float(shift)


def shifted(expected: float, shift: float) -> float:
    """An expected IoU whose logit is raised by ``shift``; 0 and 1 stay."""
    if not 0 < expected < 1:
        return expected
    return float(sigmoid(logit(np.float64(expected)) + shift))
