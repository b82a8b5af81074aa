"""After the network: masks are moved to the outlines that the colours of an image show."""

import cv2
import numpy as np
import torch
from torch import Tensor

__all__ = ["REFINEMENTS", "grabcut", "refine"]

REFINEMENTS = ("", "grabcut")

_SURE = 0.95  # probability above which a pixel keeps its label
_LEAST_PIXELS = 50  # of the object and of the background, needed to model their colours
_ROUNDS = 3
_MARGIN = 0.04  # lead of a changed label's logit: a probability of 0.51


def refine(kind: str, images: Tensor, logits: Tensor, probability: Tensor) -> Tensor:
    """Refine the scores of queries.

    Args:
        kind: of `REFINEMENTS`; "" leaves the scores as they are.
        images: (B, 3, H, W) RGB, 0 to 255.
        logits: (B, 2, H, W) of background and object.
        probability: (B, H, W) of the object; above 0.5 where its logit is the larger one.

    Returns:
        (B, 2, H, W). A pixel that changes its label gets a lead of 0.04 for the new one, which is a
        probability of 0.51: confidence is low where image and network disagree. Other pixels keep their
        scores, and the two scores of a pixel keep their sum.
    """
    if not kind:
        return logits
    pictures = images.detach().clamp(0, 255).to("cpu", torch.uint8).permute(0, 2, 3, 1).numpy()
    lead = logits[:, 1] - logits[:, 0]
    certainty = probability.detach().float().cpu().numpy()
    masks = np.stack([grabcut(*pair) for pair in zip(pictures, certainty, strict=True)])
    inside = torch.from_numpy(masks).to(lead.device)
    change = torch.where(inside, lead.clamp(min=_MARGIN), lead.clamp(max=-_MARGIN)) - lead
    return logits + torch.stack([-change, change], dim=1) / 2


def grabcut(image: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """GrabCut (Rother et al., SIGGRAPH 2004) from a probability map, by OpenCV.

    Pixels with a probability above 0.95 stay object and those below 0.05 stay background. The colours of
    both and the edges between them decide about the others. The same input gives the same mask.

    Args:
        image: (H, W, 3) uint8 RGB.
        probability: (H, W) of the object.

    Returns:
        (H, W) bool; where object or background have too few pixels to model, probability above 0.5.
    """
    found = probability > 0.5
    if min(np.count_nonzero(found), np.count_nonzero(~found)) < _LEAST_PIXELS:
        return found
    labels = np.where(found, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[probability > _SURE], labels[probability < 1 - _SURE] = cv2.GC_FGD, cv2.GC_BGD
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)  # its clustering draws random numbers
    cv2.grabCut(np.ascontiguousarray(image[..., ::-1]), labels, None, *models, _ROUNDS, cv2.GC_INIT_WITH_MASK)
    return (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
