"""How each position of a query compares with the positions of its supports, in absolute terms."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .pooling import weighted_sum

__all__ = ["COMPARISONS", "compare", "region_prototypes", "unit"]

COMPARISONS = ("vote", "object", "contrast", "nearest", "nearest_contrast", "relative")
"""The maps of `compare`, in their order."""

_OBJECT = 0.5  # a position shows the object from this share of the largest share on
_GROUND = 0.7  # a position is background from this share on
_LEAST = 1e-6  # of a position's shares, so that its logarithm is finite


def unit(features: Tensor) -> Tensor:
    """Features (B, C, ...) scaled to unit length at each position, in float32."""
    return F.normalize(features.float(), dim=1)


def region_prototypes(tokens: Tensor, objects: Tensor, grounds: Tensor) -> Tensor:
    """Unit prototypes of object and background: the mean directions of the tokens, (B, 2, C) float32.

    Args:
        tokens: (B, N, C) unit vectors.
        objects, grounds: (B, N) in [0, 1], the tokens' shares; zeros give a prototype of zeros.
    """
    weights = torch.stack([objects, grounds], dim=1)[:, None, :, None]  # (B, 1, 2, 1, N)
    features = tokens.transpose(1, 2)[:, None, :, None]  # (B, 1, C, 1, N)
    return F.normalize(weighted_sum(features, weights)[:, 0], dim=2)


def compare(
    query: Tensor,
    tokens: Tensor,
    objects: Tensor,
    grounds: Tensor,
    prototypes: Tensor,
    temperature: float | Tensor,
) -> Tensor:
    """Compare each position of a query with the tokens of its supports.

    Args:
        query: (B, C, h, w) unit vectors.
        tokens: (B, N, C) unit vectors of all supports.
        objects, grounds: (B, N) in [0, 1], the share of object and of background at each token. A token that
            has neither counts for nothing.
        prototypes: (B, 2, C) of `region_prototypes`.
        temperature: of "vote" and "relative".

    Returns:
        (B, 6, h, w), the `COMPARISONS`: the attention-weighted mean of the objects, less 0.5; cosine to the
        object's prototype; that, less the cosine to the background's; largest cosine to a token that shows
        the object; that, less the largest to a token of the background; the sigmoid of half the difference
        of the two prototypes' cosines over the temperature, less 0.5. A largest cosine to nothing is -1.
    """
    size = query.shape[-2:]
    queries = query.flatten(2).transpose(1, 2)  # (B, h*w, C)
    cosines = queries @ tokens.transpose(1, 2)  # (B, h*w, N)
    known = (objects + grounds).clamp(min=_LEAST).log()[:, None]
    weights = (cosines.float() / temperature + known).softmax(dim=2)
    vote = (weights @ objects[..., None])[..., 0]
    to_object, to_ground = (queries @ prototypes.transpose(1, 2)).float().unbind(dim=2)  # (B, h*w) each
    shows = objects >= (_OBJECT * objects.amax(dim=1, keepdim=True)).clamp(min=_LEAST)
    nearest = _largest(cosines, shows)
    nearest_ground = _largest(cosines, grounds >= _GROUND)
    relative = ((to_object - to_ground) / temperature / 2).sigmoid()
    maps = (
        vote - 0.5,
        to_object,
        to_object - to_ground,
        nearest,
        nearest - nearest_ground,
        relative - 0.5,
    )
    return torch.stack(maps, dim=1).unflatten(2, size)


def _largest(cosines: Tensor, among: Tensor) -> Tensor:
    """Largest of (B, M, N) over the tokens that (B, N) names: (B, M) float32, -1 where it names none."""
    return cosines.masked_fill(~among[:, None], -1.0).amax(dim=2).float()
