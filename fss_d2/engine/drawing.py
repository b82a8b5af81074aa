"""Draw test episodes: as they are, with a method's proposals, or with the maps inside a method."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from scipy import ndimage
from torch import Tensor, nn

from fss_d2.data import build_few_shot_test_loader
from fss_d2.io.files import check_writable
from fss_d2.modeling import FewShotSegmentor
from fss_d2.modeling.layers import area_fraction, weighted_sum
from fss_d2.visualization import (
    activation_figure,
    aggregated_figure,
    agnostic_figure,
    attention_figure,
    embed_tsne,
    episode_panel,
    picture_grid,
    proposal_panel,
    save_picture,
    tsne_figure,
)

__all__ = ["FIGURES", "check_figure", "draw_test_episodes", "object_features"]

Episode = dict[str, Any]
Output = dict[str, Any]


def draw_test_episodes(
    cfg: CfgNode,
    dataset: str,
    output: Path,
    *,
    figure: str = "episodes",
    model: nn.Module | None = None,
    shots: int = 1,
    num: int = 8,
    height: int = 192,
    proposals: int = 8,
) -> Path:
    """Draw the first ``num`` test episodes: one picture each and a grid, or for "tsne" a single picture.

    Args:
        cfg: an evaluation with this config scores the same episodes.
        output: folder of the pictures; it is created.
        figure: one of `FIGURES`; a method without it raises ValueError.
        model: in eval mode, checked by `check_figure`; not needed for "episodes".
        height: of a tile, pixels.
        proposals: how many to draw of each query.

    Returns:
        The picture of all episodes, "grid.png" or "tsne.png".
    """
    check_writable(output)
    names = MetadataCatalog.get(dataset).get("stuff_classes", ())
    loader = build_few_shot_test_loader(cfg, dataset, shots=shots, episodes=num)
    known, every = dict(enumerate(names)), itertools.chain.from_iterable(loader)
    episodes = ((each, known.get(each["class_id"], f"class {each['class_id']}")) for each in every)
    if figure == "tsne":
        save_picture(output / "tsne.png", _tsne(model, episodes, 4 * height))
        return output / "tsne.png"
    style = {"height": height} | ({"top": proposals} if figure == "proposals" else {})
    panels = []
    for episode, name in episodes:
        with torch.no_grad():
            shown = _run(model, episode, figure)
            panels.append(_PANELS[figure](model, episode, shown, class_name=name, **style))
        save_picture(output / f"{episode['episode_index']:04d}.png", panels[-1])
    save_picture(output / "grid.png", picture_grid(panels))
    return output / "grid.png"


def check_figure(model: nn.Module, figure: str) -> None:
    """Raise ValueError if a model cannot have a figure; for some figures the first episode shows it."""
    name = type(model).__name__
    if figure == "proposals" and not hasattr(model, "proposals"):
        fix = "choose a config of MMFormer or PotentialObjectsSegmenter"
        raise ValueError(f"{name} makes no proposals; {fix}")
    if figure not in ("proposals", "episodes") and not isinstance(model, FewShotSegmentor):
        fix = "choose a config of a few-shot method, or --figure proposals"
        raise ValueError(f"{name} reads no supports; {fix}")


@torch.no_grad()
def object_features(model: FewShotSegmentor, episode: Episode) -> Tensor:
    """The mean feature of the object in the query and in each support, from the deepest map: (1 + K, C)."""
    shown = [{"image": episode["image"], "mask": episode["sem_seg"]}, *episode["support"]]
    name = [n for n in model.backbone.available if n in model.backbone.selected][-1]
    means = []
    for one in shown:
        feature = model.extract(model.normalise(one["image"][None]))[name]  # (1, C, h, w)
        share = area_fraction(one["mask"][None, None].to(model.device) == 1, tuple(feature.shape[-2:]))
        means.append(weighted_sum(feature[:, None], share[:, None])[0, 0, 0] / share.sum().clamp(min=1e-6))
    return torch.stack(means).cpu()


def _run(model: nn.Module | None, episode: Episode, figure: str) -> Output | None:
    """The model's output for an episode, if the figure needs one and the method has the figure."""
    if model is None:
        return None
    (output,) = model([episode])
    aux = output.get("aux", {})
    has = {
        "attention": hasattr(model, "attention_map"),
        "aggregated": any(name.startswith("aggregated_") for name in aux),
        "activation": bool({"activations", "prior"} & aux.keys()),
        "agnostic": "agnostic" in aux,
        "tsne": True,
    }
    if not has.get(figure, True):
        known = ", ".join(name for name, there in has.items() if there)
        what = f"{type(model).__name__} has no figure {figure!r} with these settings"
        raise ValueError(f"{what}; choose from {known}")
    return output


def _attention(model: nn.Module, episode: Episode, _: Output, *, class_name: str, height: int) -> np.ndarray:
    """Two query pixels: those farthest from the border of the object and of the background."""
    images, masks = (torch.stack([s[name] for s in episode["support"]])[None] for name in ("image", "mask"))
    support = model.encode_support(images, masks)
    truth, points = episode["sem_seg"].numpy(), {}
    for name, region in ((class_name, truth == 1), ("background", truth == 0)):
        if region.any():
            depth = ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
            y, x = np.unravel_index(depth.argmax(), depth.shape)
            points[name] = ((y + 0.5) / truth.shape[0], (x + 0.5) / truth.shape[1])
    query = episode["image"][None]
    maps = {name: model.attention_map(query, support, point)[0] for name, point in points.items()}
    return attention_figure(episode, points, maps, height=height)


def _activation(model: nn.Module, episode: Episode, output: Output, **style: Any) -> np.ndarray:
    """The way back: each support is segmented with the query and its predicted mask as the support."""
    (plain,) = model([{"image": episode["image"], "support": episode["support"]}])
    found = {"image": episode["image"], "mask": plain["sem_seg"].argmax(dim=0).to(torch.uint8).cpu()}
    returned = model([{"image": s["image"], "support": [found]} for s in episode["support"]])
    return activation_figure(episode, output, returned, **style)


def _tsne(model: nn.Module | None, episodes: Iterator[tuple[Episode, str]], side: int) -> np.ndarray:
    features, labels, roles = [], [], []
    for episode, name in episodes:
        features.append(object_features(model, episode))
        labels += [name] * len(features[-1])
        roles += ["query"] + ["support"] * (len(features[-1]) - 1)
    return tsne_figure(embed_tsne(torch.cat(features).numpy()), labels, roles, side=side)


# Functions of the model, an episode and its output, "class_name" and "height" (and "top" of the proposals).
_PANELS: dict[str, Callable[..., np.ndarray]] = {
    "episodes": lambda _, *shown, **style: episode_panel(*shown, **style),
    "proposals": lambda _, *shown, **style: proposal_panel(*shown, **style),
    "attention": _attention,
    "aggregated": lambda _, *shown, **style: aggregated_figure(*shown, **style),
    "activation": _activation,
    "agnostic": lambda _, *shown, **style: agnostic_figure(*shown, **style),
}
FIGURES = (*_PANELS, "tsne")
