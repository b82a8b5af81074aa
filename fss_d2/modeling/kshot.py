"""Several predictions of one query are fused to one: pure functions."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = [
    "FUSIONS",
    "average",
    "cross_guided",
    "guidance_weights",
    "mean_log_probability",
    "normalized_vote",
    "vote",
]


def mean_log_probability(logits: Sequence[Tensor]) -> Tensor:
    """Logarithm of the mean of softmax probabilities, whose own softmax is that mean.

    Args:
        logits: of S predictions, (..., 2, h, w) of background and object, float32 or float64.

    Returns:
        (..., 2, h, w). In float64 the larger logit of a single prediction stays the larger one, even if only
        by 1e-15, and equal logits stay equal; in float32 a lead below 1e-7 would become a tie.
    """
    logs = torch.stack([x.log_softmax(dim=-3) for x in logits])
    return logs.logsumexp(dim=0) - math.log(len(logits))


def average(probability: Tensor) -> Tensor:
    """Mean foreground probability over the shots: (B, K, H, W) to (B, H, W)."""
    return probability.mean(dim=1)


def vote(probability: Tensor) -> Tensor:
    """Share of the shots that predict foreground: (B, K, H, W) to (B, H, W). Half of them is background."""
    return (probability > 0.5).to(probability.dtype).mean(dim=1)


def normalized_vote(probability: Tensor) -> Tensor:
    """Votes over the most votes that any pixel of the image has (HSNet, Min et al., ICCV 2021).

    (B, K, H, W) to (B, H, W). Exactly half of the most votes counts as foreground there, so scores are
    lifted by one part in a million; pixels without a vote keep 0.
    """
    votes = (probability > 0.5).to(probability.dtype).sum(dim=1)
    most = votes.amax(dim=(1, 2), keepdim=True).clamp(min=1)
    return (votes / most * (1 + 1e-6)).clamp(max=1)


def cross_guided(probability: Tensor, weights: Tensor) -> Tensor:
    """Mean foreground probability, each shot weighted by how well it segments the supports.

    Cross-guided averaging of SCL (Zhang et al., CVPR 2021): (B, K, H, W) and (B, K) from
    `guidance_weights` to (B, H, W). The plain mean where all weights are 0.
    """
    weights = weights + 1e-6
    return torch.einsum("bkhw,bk->bhw", probability, weights / weights.sum(dim=1, keepdim=True))


def guidance_weights(probability: Tensor, masks: Tensor) -> Tensor:
    """IoU of each shot's predictions for all K supports with their masks, averaged over the supports.

    Args:
        probability: (B, K, K, H, W); [b, g, s] is the foreground probability of support s guided by shot g.
        masks: (B, K, H, W) in {0, 1, 255}; 255 is not counted.

    Returns:
        (B, K), one weight per guiding shot, in [0, 1].
    """
    valid, truth = (masks != 255)[:, None], (masks == 1)[:, None]
    predicted = (probability > 0.5) & valid
    intersection = (predicted & truth).sum(dim=(3, 4))
    union = (predicted | truth).sum(dim=(3, 4)).clamp(min=1)
    return (intersection / union).mean(dim=2)


# DCAMA, Table 4; of foreground probabilities.
FUSIONS: dict[str, Callable[..., Tensor]] = {
    "vote": vote,
    "average": average,
    "normalized_vote": normalized_vote,
    "cross_guided": cross_guided,
}
