"""Proposals of an image in the frame of its target."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fss_d2.soft_masks import resize

__all__ = ["THRESHOLD", "proposals_in_frame"]

THRESHOLD = 0.5  # a pixel belongs to a proposal above it


def proposals_in_frame(episode: Mapping[str, Any], output: Mapping[str, Any], *, method: str) -> Tensor:
    """Bring a model's proposals to the frame in which it is scored, still soft.

    They are resized to the network's image (align_corners False, as in Mask2Former), its padding is cut off,
    and the rest resized to the target's size (align_corners True, as few-shot scores are).

    Args:
        episode: "image" (3, H, W), "height" and "width", optionally "valid_size" (h, w), "episode_index".
        output: "aux" with "proposals" (N, h', w') in [0, 1].
        method: name of the model, for messages.

    Returns:
        (N, height, width) float32 on the proposals' device.

    Raises:
        ValueError: no proposals, or NaN among them.
    """
    proposals = output.get("aux", {}).get("proposals")
    if proposals is None:
        raise ValueError(
            f"TEST.EVALUATORS: oracle and proposal_recall score proposals, and {method} gives none; "
            "set it to ('few_shot_seg',)"
        )
    if torch.isnan(proposals).any():
        index = episode.get("episode_index", "?")
        raise ValueError(f"episode {index}: the proposals hold NaN; check the model's weights and precision")
    masks = resize(proposals[None].float(), episode["image"].shape[-2:], align_corners=False)  # (1, N, H, W)
    h, w = episode.get("valid_size", masks.shape[-2:])
    return resize(masks[:, :, :h, :w], (episode["height"], episode["width"]), align_corners=True)[0]
