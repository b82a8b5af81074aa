"""How several predictions of one query become one: of several supports, or of several sizes of an episode."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "CROSS_GUIDED",
    "FUSIONS",
    "POOLS",
    "VOTES",
    "MultiScaleSegmentor",
    "cross_guided",
    "either",
    "guidance_weights",
    "mean_log_probability",
    "normalized_vote",
    "vote",
]


def mean_log_probability(logits: Sequence[Tensor]) -> Tensor:
    """Logarithm of the mean of softmax probabilities, whose own softmax is that mean.

    From logits (..., 2, h, w) of background and object, float32 or float64. In float64 the larger logit of a
    single prediction stays the larger one, be it by 1e-15, and equals stay equal; in float32 a lead below
    1e-7 would become a tie.
    """
    logs = torch.stack([x.log_softmax(dim=-3) for x in logits])
    return logs.logsumexp(dim=0) - math.log(len(logits))


def either(logs: Sequence[Tensor]) -> Tensor:
    """Object where any prediction says so: log-probabilities (..., 2, h, w), that of the largest of each."""
    background, foreground = torch.stack(list(logs)).unbind(dim=-3)
    return torch.stack([background.amin(dim=0), foreground.amax(dim=0)], dim=-3)


def vote(found: Tensor) -> Tensor:
    """Share of the shots that call a pixel object: (B, K, H, W) bool to (B, H, W). A half is background."""
    return found.float().mean(dim=1)


def normalized_vote(found: Tensor) -> Tensor:
    """Votes over the most votes that any pixel of the image has (HSNet, Min et al., ICCV 2021).

    (B, K, H, W) bool to (B, H, W). Exactly half of the most votes counts as object there, so scores are
    lifted by one part in a million; pixels without a vote keep 0.
    """
    votes = found.float().sum(dim=1)
    most = votes.amax(dim=(1, 2), keepdim=True).clamp(min=1)
    return (votes / most * (1 + 1e-6)).clamp(max=1)


def cross_guided(logits: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Mean of the logits of K shots, (B, 2, H, W) each, with the weights (B, K) of `guidance_weights`.

    Cross-guided averaging of SCL (Zhang et al., CVPR 2021). The plain mean where all weights are 0.
    """
    weights = (weights + 1e-6) / (weights + 1e-6).sum(dim=1, keepdim=True)
    return torch.einsum("kbchw,bk->bchw", torch.stack(list(logits)), weights)


def guidance_weights(found: Tensor, masks: Tensor) -> Tensor:
    """How well each shot segments the K supports: (B, K).

    It is the mean of the IoUs of object and background, averaged over the supports. In ``found``
    (B, K, K, H, W) bool, [b, g, s] is where shot g sees the object in support s; ``masks`` are (B, K, H, W)
    in {0, 1, 255}, and 255 is not counted.
    """
    valid, truth = (masks != 255)[:, None], (masks == 1)[:, None]
    ious = []
    for predicted, true in ((found & valid, truth), (~found & valid, ~truth & valid)):
        union = (predicted | true).sum(dim=(3, 4)).clamp(min=1)
        ious.append((predicted & true).sum(dim=(3, 4)) / union)
    return torch.stack(ious).mean(dim=(0, 3))


# TEST.KSHOT: DCAMA, Table 4; DPCN, Sec. 4.3.
VOTES: dict[str, Callable[[Tensor], Tensor]] = {"vote": vote, "normalized_vote": normalized_vote}
POOLS: dict[str, Callable[[Sequence[Tensor]], Tensor]] = {"average": mean_log_probability, "or": either}
CROSS_GUIDED = "cross_guided"
FUSIONS = (*VOTES, *POOLS, CROSS_GUIDED)


class MultiScaleSegmentor(nn.Module):
    """Run a few-shot segmentor on each view of an episode and average the probabilities, pixel by pixel.

    DPCN's test protocol (Table A3), for evaluation only; the segmentor stays as it is. It is a
    `FewShotSegmentor`, or anything that takes and gives the same dicts; its mode becomes that of this module.

    Example:
        >>> model = MultiScaleSegmentor(model).eval()  # episodes of an EpisodeMapper with TEST.SCALES
        >>> scores = model(batch)[0]["sem_seg"]  # (2, height, width) log-probabilities
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Run episodes: "height", "width", and "views", a list of inputs of the model.

        The scores of views may be smaller than (height, width); the rest, right and below, is then
        background. Returns for each episode "sem_seg", (2, height, width) float64 log-probabilities of
        background and object, "aux", the maps of the first view, and "presence", the mean of the views'
        logits, where the model gives one. Raises RuntimeError in training mode.
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
        padding = (0, episode["width"] - w, 0, episode["height"] - h)  # ties
        scores.append(F.pad(output["sem_seg"].double(), padding))
    fused = {"sem_seg": mean_log_probability(scores), "aux": outputs[0].get("aux", {})}
    if "presence" in outputs[0]:
        fused["presence"] = torch.stack([output["presence"] for output in outputs]).mean(dim=0)
    return fused
