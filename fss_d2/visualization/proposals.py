"""Pictures of a method's proposals for a query, with their scores."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.utils.colormap import colormap

from fss_d2.evaluation.proposals import THRESHOLD, mask_quality, proposals_in_frame
from fss_d2.soft_masks import soft_iou

from .panels import episode_panel, query_in_score_frame
from .tiles import (
    GAP,
    PREDICTION_COLOR,
    SUBTRACTED_COLOR,
    Color,
    draw_regions,
    draw_tile,
    picture_grid,
    picture_row,
)

__all__ = ["proposal_grid", "proposal_panel"]


def proposal_grid(
    image: np.ndarray,
    masks: Sequence[np.ndarray],
    captions: Sequence[str],
    *,
    colors: Sequence[Color] = (PREDICTION_COLOR,),
    marked: Sequence[int] = (),
    columns: int = 4,
    height: int = 192,
) -> np.ndarray:
    """Draw each proposal on its own tile.

    Args:
        image: (H, W, 3) uint8 RGB.
        masks: N >= 1 of (H, W) bool, each with a caption.
        colors: of the masks, repeated as needed.
        marked: positions among the N that get a frame.
        columns: tiles in a row.
        height: of each tile, pixels.
    """
    if not masks or len(masks) != len(captions):
        counts = f"{len(masks)} proposals and {len(captions)} captions"
        raise ValueError(f"{counts}: give at least one, and one caption each")
    tiles = [
        draw_tile(caption, image, height, mask, color, framed=i in marked)
        for i, (caption, mask, color) in enumerate(zip(captions, masks, itertools.cycle(colors)))
    ]
    return picture_grid([picture_row(tiles[i : i + columns]) for i in range(0, len(tiles), columns)])


def proposal_panel(
    inputs: Mapping[str, Any],
    output: Mapping[str, Any],
    *,
    top: int = 8,
    class_name: str | None = None,
    height: int = 192,
) -> np.ndarray:
    """One episode with the proposals of its query.

    The first row is that of `episode_panel`: with the fused mask if the method gives scores, otherwise with
    an overview of the proposals below. Below are the ``top`` proposals with the largest matching coefficients
    in magnitude (violet: negative). Without coefficients they are ranked by similarity to the support, and
    without either by quality, the mean probability inside the mask. A frame marks the oracle, the proposal
    with the highest soft IoU with the truth; it is added as the last one if it is not among the ``top``.

    Args:
        inputs: a mapper's dict; without "target" there is neither truth nor oracle.
        output: the model's dict: "aux" with "proposals" (N, h, w) in [0, 1] in the network's frame and
            optionally "similarity" and "coefficients" (N, 1, 1); optionally "sem_seg".
        height: of each tile, pixels.
    """
    masks = proposals_in_frame(inputs, output, method="the method").detach().cpu()
    oracle = _oracle(masks, inputs.get("target"))
    order, captions, colors = _rank(output["aux"])
    drawn = order[:top] + [oracle] * (oracle is not None and oracle not in order[:top])
    if oracle is not None:
        captions[oracle] = f"oracle {captions[oracle]}"
    regions = {i: masks[i].numpy() > THRESHOLD for i in drawn}
    query = query_in_score_frame(inputs)
    if "sem_seg" in output:
        header = episode_panel(inputs, output, class_name=class_name, height=height)
    else:
        small_on_top = sorted(drawn, key=lambda i: regions[i].sum(), reverse=True)
        together = draw_regions(query, [(regions[i], colors[i]) for i in small_on_top])
        overview = draw_tile(f"{len(drawn)} proposals", together, height)
        header = picture_row([episode_panel(inputs, class_name=class_name, height=height), overview])
    width = max(1, round(query.shape[1] * height / query.shape[0]))
    grid = proposal_grid(
        query,
        [regions[i] for i in drawn],
        [captions[i] for i in drawn],
        colors=[colors[i] for i in drawn],
        marked=[drawn.index(oracle)] if oracle is not None else [],
        columns=max(1, (header.shape[1] + GAP) // (width + GAP)),
        height=height,
    )
    return picture_grid([header, grid])


def _rank(aux: Mapping[str, torch.Tensor]) -> tuple[list[int], list[str], list[Color]]:
    """Indices of all proposals in the order to show; the caption and the colour of each, by index."""
    maps = {name: value.detach().float().cpu().flatten(1) for name, value in aux.items()}  # (N, P) or (N, 1)
    palette = [tuple(color) for color in colormap(rgb=True, maximum=1).tolist()]
    colors = [palette[i % len(palette)] for i in range(len(maps["proposals"]))]
    scores = mask_quality(maps["proposals"][:, None])
    captions = [f"#{i} quality {score:.2f}" for i, score in enumerate(scores)]
    if "similarity" in maps:
        scores = maps["similarity"][:, 0]
        captions = [f"#{i} sim {score:.2f}" for i, score in enumerate(scores)]
    order = scores.argsort(descending=True, stable=True)
    if "coefficients" in maps:
        coefficients = maps["coefficients"][:, 0]
        order = order[coefficients[order].abs().argsort(descending=True, stable=True)]  # ties by similarity
        captions = [f"{text} coef {c:+.2f}" for text, c in zip(captions, coefficients, strict=True)]
        colors = [PREDICTION_COLOR if c >= 0 else SUBTRACTED_COLOR for c in coefficients]
    return order.tolist(), captions, colors


def _oracle(masks: torch.Tensor, target: torch.Tensor | np.ndarray | None) -> int | None:
    """Index of the proposal (N, h, w) with the highest soft IoU with the truth (h, w); None without truth."""
    return None if target is None else int(soft_iou(masks[None], torch.as_tensor(target)[None])[0].argmax())
