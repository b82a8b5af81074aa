"""Leave-one-out over the supports of one episode: the setting with which they segment each other best."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Chosen", "Trial", "choose_setting"]

_OFFSETS = tuple(step / 2 for step in range(-8, 9))  # of the threshold, in temperatures
_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the temperature


@dataclass(frozen=True)
class Trial:
    """Leads that one choice of layers gives the M pictures left out, and what they should be."""

    leads: Tensor  # (M, h, w)
    objects: Tensor  # (M, h, w), share of the object in each cell
    known: Tensor  # (M, h, w), share that is object or background


@dataclass(frozen=True)
class Chosen:
    """A setting: which of the trials, the lead above which a cell is object, and the temperature."""

    layers: int
    threshold: float
    temperature: float


def choose_setting(
    trials: Sequence[Trial], threshold: float, temperature: float, what: Sequence[str], least: float
) -> Chosen:
    """Choose among the trials, and around a threshold and a temperature, what `what` names.

    Layers and threshold have the largest mean soft IoU; of equals, the first trial and the threshold nearest
    to the given one. The temperature then has the smallest cross entropy. No threshold is below ``least``.
    """
    offsets = sorted(_OFFSETS, key=abs) if "threshold" in what else (0.0,)
    thresholds = [max(threshold + offset * temperature, least) for offset in offsets]
    ious = torch.tensor([[_mean_iou(trial, t) for t in thresholds] for trial in trials])
    layers, best = divmod(int(ious.argmax()), len(thresholds))
    factors = sorted(_FACTORS, key=lambda f: f != 1) if "temperature" in what else (1.0,)
    losses = [_entropy(trials[layers], thresholds[best], temperature * factor) for factor in factors]
    return Chosen(layers, thresholds[best], temperature * factors[losses.index(min(losses))])


def _mean_iou(trial: Trial, threshold: float) -> float:
    """Mean IoU of the cells above a threshold with the objects, by area."""
    found = (trial.leads > threshold) * trial.known
    hits = torch.minimum(found, trial.objects).sum(dim=(1, 2))
    union = torch.maximum(found, trial.objects).sum(dim=(1, 2))
    return float((hits / union.clamp(min=1e-6)).mean())


def _entropy(trial: Trial, threshold: float, temperature: float) -> float:
    """Cross entropy of the leads, the mean over the known area."""
    logits = (trial.leads - threshold) / temperature
    shares = trial.objects / trial.known.clamp(min=1e-6)
    losses = F.binary_cross_entropy_with_logits(logits, shares.clamp(max=1), weight=trial.known)
    return float(losses)
