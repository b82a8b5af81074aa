"""What the auto-labeller asks of a predictor; `fss_d2.inference.predictor.FewShotPredictor` has it."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from fss_d2.inference.prediction import Prediction

__all__ = ["Predictor"]


class Predictor(Protocol):
    """Encodes supports once, then labels any number of images."""

    def set_support_classes(
        self, classes: Mapping[str, tuple[Sequence[np.ndarray], Sequence[np.ndarray]]]
    ) -> None:
        """Take the supports of one or more classes, which compete for each pixel.

        Args:
            classes: images (H, W, 3) uint8 and masks (H, W) in {0, 1, 255} of each.
        """

    def predict(self, image: np.ndarray) -> Prediction:
        """Label an image (H, W, 3) uint8."""
