"""Other masks from the scores that are there already."""

import dataclasses

import numpy as np

from fss_d2.prediction import Prediction

__all__ = ["USUAL", "at_threshold"]

USUAL = 0.5  # at which a prediction's own labels are made


def at_threshold(prediction: Prediction, threshold: float) -> Prediction:
    """The prediction with the class of highest probability wherever that exceeds a threshold.

    Args:
        prediction: of a predictor.
        threshold: in [0, 1); at 0.5 the prediction's own labels stay.

    Raises:
        ValueError: another threshold.
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold {threshold}: give a number from 0 to below 1")
    if threshold == USUAL:
        return prediction
    best = prediction.probability.argmax(axis=0)
    labels = np.where(prediction.probability.max(axis=0) > threshold, best + 1, 0)
    return dataclasses.replace(prediction, labels=labels.astype(prediction.labels.dtype))
