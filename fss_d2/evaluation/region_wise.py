"""ROM and RUM: region-wise over- and under-segmentation of one mask against another.

DCAMA (Shi et al., ECCV 2022, Table S1) reports both and cites Zhang, Mehta and Caspi, "Rethinking semantic
segmentation evaluation for explainability and model selection", arXiv:2101.08418, without printing their
formulas. What is **taken as the definition** here, G being the connected true regions and P the connected
predicted regions of the class:

* a true and a predicted region match when they share at least one pixel (there is no threshold);
* G_O = true regions matched by two or more predicted ones, P_O = the predicted regions that match one of G_O,
  m_O = sum over G_O of (number of matches - 1); ROM = tanh(m_O * |G_O| |P_O| / (|G| |P|));
* P_U = predicted regions matched by two or more true ones, G_U = the true regions that match one of P_U,
  m_U = sum over P_U of (number of matches - 1); RUM = tanh(m_U * |G_U| |P_U| / (|G| |P|)).

Both lie in [0, 1), smaller is better, and are 0 where either side is empty. Three choices are ours: regions
are 8-connected, ignored pixels belong to no region, and a run's value is the mean over its episodes.
"""

import numpy as np
from scipy import ndimage

from .metrics import IGNORE_LABEL

__all__ = ["match_table", "region_wise_measures"]

_EIGHT_NEIGHBOURS = np.ones((3, 3), int)


def region_wise_measures(pred: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    """Return (ROM, RUM) of one episode.

    Args:
        pred: (H, W) bool or {0, 1}, the predicted foreground.
        target: (H, W) in {0, 1, 255}, the truth.
    """
    matches = match_table(pred, target)
    return _measure(matches), _measure(matches.T)


def match_table(pred: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return (|G|, |P|) bool: whether a true and a predicted foreground region share a pixel."""
    valid = target != IGNORE_LABEL
    true_regions, n_true = ndimage.label((target == 1) & valid, _EIGHT_NEIGHBOURS)
    pred_regions, n_pred = ndimage.label((pred != 0) & valid, _EIGHT_NEIGHBOURS)
    matches = np.zeros((n_true + 1, n_pred + 1), bool)
    matches[true_regions, pred_regions] = True
    return matches[1:, 1:]  # row and column 0 are the background


def _measure(matches: np.ndarray) -> float:
    """tanh(m |split| |parts| / (rows * columns)) for the rows of a match table that several columns split."""
    if not matches.size:
        return 0.0
    per_row = matches.sum(axis=1)
    split = per_row > 1
    parts = matches[split].any(axis=0).sum()
    extra = (per_row[split] - 1).sum()
    return float(np.tanh(extra * split.sum() * parts / matches.size))
