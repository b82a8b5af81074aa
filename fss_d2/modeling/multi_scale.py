"""Multi-scale testing: the mean of a method's predictions for an episode at several sizes."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn import functional as F

from .kshot import mean_log_probability

__all__ = ["MultiScaleSegmentor"]


class MultiScaleSegmentor(nn.Module):
    """Run a few-shot segmentor on each view of an episode and average the probabilities of each pixel.

    DPCN's test protocol (Table A3). Evaluation only; the segmentor is not changed.

    Example:
        >>> model = MultiScaleSegmentor(model).eval()  # episodes of an EpisodeMapper with TEST.SCALES
        >>> scores = model(batch)[0]["sem_seg"]  # (2, height, width) log-probabilities
    """

    def __init__(self, model: nn.Module) -> None:
        """
        Args:
            model: a `FewShotSegmentor`, or a module with the same inputs and outputs. This module takes over
                its mode, training or evaluation.
        """
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Run episodes.

        Args:
            batched_inputs: one dict per episode: "height", "width", and "views", a list of inputs of the
                model. Their scores may be smaller than (height, width); the pixels right of and below them
                are background.

        Returns:
            One dict per episode: "sem_seg": (2, height, width) float64 log-probabilities of background and
            object; "aux": the maps of the first view.

        Raises:
            ValueError: an episode without views.
            RuntimeError: in training mode.
        """
        if self.training:
            raise RuntimeError("MultiScaleSegmentor cannot be trained: call eval(), or train its model")
        for episode in batched_inputs:
            if not episode.get("views"):
                raise ValueError(
                    f"episode {episode.get('episode_index', '?')}: no 'views' to average over; load it with "
                    "an EpisodeMapper whose TEST.SCALES lists sizes"
                )
        by_episode = [self.model(episode["views"]) for episode in batched_inputs]
        return [_fuse(*pair) for pair in zip(batched_inputs, by_episode, strict=True)]


def _fuse(episode: Mapping[str, Any], outputs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Average the outputs of an episode's views."""
    scores = []
    for output in outputs:
        h, w = output["sem_seg"].shape[-2:]
        padding = (0, episode["width"] - w, 0, episode["height"] - h)  # with ties, which are background
        scores.append(F.pad(output["sem_seg"].double(), padding))
    return {"sem_seg": mean_log_probability(scores), "aux": outputs[0].get("aux", {})}
