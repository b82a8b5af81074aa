"""The papers' figures of the maps inside a method.

Every figure takes a mapper's dict (``inputs``) and the height of its tiles in pixels, and returns (H, W, 3)
uint8. Those of a model's maps also take the model's dict (``output``) and the class name for the captions;
they raise ValueError if the method gives no such maps.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fss_d2.soft_masks import otsu_mask, resize

from .panels import attention_panel, episode_panel, query_in_score_frame
from .tiles import draw_tile, heat_map, picture_grid, picture_row

__all__ = ["activation_figure", "aggregated_figure", "agnostic_figure", "alignment_figure"]
__all__ += ["attention_figure"]


def attention_figure(
    inputs: Mapping[str, Any],
    points: Mapping[str, tuple[float, float]],
    attention: Mapping[str, Tensor],
    *,
    height: int = 192,
) -> np.ndarray:
    """Which support pixels single query pixels attend to (DCAMA, Fig. S5); one row per point.

    Args:
        points: name -> (y, x) as fractions of the network's image, in [0, 1).
        attention: name -> (K, Hs, Ws), not negative, from `DCAMA.attention_map`.
    """
    query, *supports = (one["image"].cpu().permute(1, 2, 0).numpy() for one in (inputs, *inputs["support"]))
    rows = []
    for name, (y, x) in points.items():
        maps = [
            resize(one[None, None].float().cpu(), support.shape[:2])[0, 0].numpy()
            for one, support in zip(attention[name], supports, strict=True)
        ]
        place = (x * query.shape[1], y * query.shape[0])
        rows.append(attention_panel(query, place, supports, maps, title=name, height=height))
    return picture_grid(rows)


def aggregated_figure(
    inputs: Mapping[str, Any], output: Mapping[str, Any], *, class_name: str | None = None, height: int = 192
) -> np.ndarray:
    """The masks that a method aggregates at each scale (DCAMA, Fig. 4b).

    Below the episode is, for each level, the mean over its layers, and where that mean exceeds Otsu's
    threshold, as in the paper. The maps are "aggregated_<level>" (layers, h, w) in [0, 1] of "aux".
    """
    levels = {n: m for n, m in output.get("aux", {}).items() if n.startswith("aggregated_")}
    maps = _maps_in_frame(inputs, {n.removeprefix("aggregated_"): m.mean(dim=0) for n, m in levels.items()})
    query = query_in_score_frame(inputs)
    masks = [draw_tile(f"{name}, Otsu", query, height, otsu_mask(m)) for name, m in maps.items()]
    panel = episode_panel(inputs, output, class_name=class_name, height=height)
    return picture_grid([panel, picture_row(_heat_tiles(query, maps, height)), picture_row(masks)])


def activation_figure(
    inputs: Mapping[str, Any],
    output: Mapping[str, Any],
    returned: Sequence[Mapping[str, Any]] = (),
    *,
    class_name: str | None = None,
    height: int = 192,
) -> np.ndarray:
    """Activation maps, pseudo mask and refined mask (DPCN, Fig. A7), and the way back to the supports.

    The maps in "aux", all in [0, 1], are "activations" (n, h, w), "pseudo_mask" (1, h, w) and optionally
    "refined_mask", or "prior" (1, h, w) alone (PFENet, DANet).

    Args:
        returned: for each support the model's dict for the reversed episode, whose support is the query with
            its predicted mask; the maps and the mask are drawn on the support. Empty draws no way back.
    """
    query, maps = query_in_score_frame(inputs), _maps_in_frame(inputs, _activations(output))
    rows = [
        episode_panel(inputs, output, class_name=class_name, height=height),
        picture_row(_heat_tiles(query, maps, height)),
    ]
    pairs = zip(inputs["support"], returned, strict=bool(returned))
    for number, (support, back) in enumerate(pairs, start=1):
        maps = {f"to support {number}: {name}": m for name, m in _activations(back).items()}
        image = query_in_score_frame(support)
        tiles = _heat_tiles(image, _maps_in_frame(support, maps), height)
        background, foreground = back["sem_seg"].cpu()
        mask = torch.gt(foreground, background).numpy()
        rows.append(picture_row([*tiles, draw_tile(f"to support {number}: mask", image, height, mask)]))
    return picture_grid(rows)


def agnostic_figure(
    inputs: Mapping[str, Any], output: Mapping[str, Any], *, class_name: str | None = None, height: int = 192
) -> np.ndarray:
    """How similar each pixel is to an object of any class (JC2A, Fig. 4): "agnostic" (1, h, w) of "aux"."""
    aux = output.get("aux", {})
    maps = _maps_in_frame(inputs, {"class-agnostic": aux["agnostic"][0]} if "agnostic" in aux else {})
    panel = episode_panel(inputs, output, class_name=class_name, height=height)
    return picture_row([panel, *_heat_tiles(query_in_score_frame(inputs), maps, height, stretch=True)])


def alignment_figure(
    inputs: Mapping[str, Any],
    seen: Mapping[str, Sequence[tuple[Tensor, Tensor]]],
    *,
    class_name: str | None = None,
    height: int = 192,
) -> np.ndarray:
    """What self-alignment does to the channels of query and supports (MM-Former, Fig. 5).

    A row for each image. Of each level it has the mean over the channels; an important channel, which gets
    the largest weight; and an outlier, the channel whose strongest response is farthest above what its weight
    says. Both are drawn after they were weighted, on the scale that they had before.

    Args:
        seen: level -> features (C, h, w) and channel weights (C,), of the query and then of each support.
    """
    rows = []
    images = [inputs["image"], *(support["image"] for support in inputs["support"])]
    for number, image in enumerate(images):
        picture = np.ascontiguousarray(np.asarray(image).transpose(1, 2, 0)).astype(np.uint8)
        name = f"support {number}" if number else f"query: {class_name}" if class_name else "query"
        tiles = [draw_tile(name, picture, height)]
        for level, pairs in seen.items():
            features, weights = (t.detach().float().cpu() for t in pairs[number])
            peaks = features.amax(dim=(1, 2))
            agreement = weights.clamp(1e-6, 1 - 1e-6).logit()
            chosen = {"important": int(weights.argmax()), "outlier": int((peaks - agreement).argmax())}
            mean = features.mean(dim=0)
            maps = [(f"{level}: mean", mean, float(mean.min()), float(mean.max()))]
            for kind, channel in chosen.items():
                one, weight = features[channel], float(weights[channel])
                caption = f"{level}: {kind} {channel}, {weight:.2f}"
                maps.append((caption, one * weight, float(one.min()), float(one.max())))
            for caption, values, low, high in maps:
                shown = resize(values[None, None], picture.shape[:2])[0, 0].numpy()
                tiles.append(draw_tile(caption, heat_map(picture, shown, low, high), height))
        rows.append(picture_row(tiles))
    return picture_grid(rows)


def _activations(output: Mapping[str, Any]) -> dict[str, Tensor]:
    """The maps (h, w) for `activation_figure` in a model's dict, by caption."""
    aux, maps = output.get("aux", {}), {}
    for number, one in enumerate(aux.get("activations", ()), start=1):
        maps[f"activation {number}"] = one
    for name in ("prior", "pseudo_mask", "refined_mask"):
        if name in aux:
            maps[name.replace("_", " ")] = aux[name][0]
    return maps


def _maps_in_frame(inputs: Mapping[str, Any], maps: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Bring maps (h, w) of the network's image to the frame of `query_in_score_frame`."""
    if not maps:
        raise ValueError("the method gives no maps for this figure; choose another figure or method")
    size = tuple(inputs["image"].shape[-2:])
    h, w = inputs.get("valid_size", size)
    frame = (int(inputs.get("height", h)), int(inputs.get("width", w)))
    placed = {}
    for name, one in maps.items():
        whole = resize(one.detach().float().cpu()[None, None], size)[:, :, :h, :w]
        placed[name] = resize(whole, frame)[0, 0].numpy()
    return placed


def _heat_tiles(
    image: np.ndarray, maps: Mapping[str, np.ndarray], height: int, *, stretch: bool = False
) -> list[np.ndarray]:
    """Each map over the image, from 0 (dark) to 1 (bright), or stretched to its own range."""
    heats = {
        name: heat_map(image, m, float(m.min()), float(m.max())) if stretch else heat_map(image, m)
        for name, m in maps.items()
    }
    return [draw_tile(name, heat, height) for name, heat in heats.items()]
