"""Draw test episodes, as they are or with what is inside a method, and the curves of trainings."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from scipy import ndimage
from torch import Tensor, nn

from fss_d2.data import build_few_shot_test_loader
from fss_d2.data.mapper import ForeignSupportMapper
from fss_d2.io.files import check_writable, parse_json
from fss_d2.modeling import FewShotSegmentor
from fss_d2.visualization import (
    activation_figure,
    aggregated_figure,
    agnostic_figure,
    alignment_figure,
    attention_figure,
    embed_tsne,
    episode_panel,
    line_figure,
    picture_grid,
    proposal_panel,
    save_picture,
    tsne_figure,
)

__all__ = ["FIGURES", "check_figure", "draw_curves", "draw_test_episodes", "pixel_features"]

_PIXELS = 60  # of the object and of the background of each query, in the figure "tsne"
_PERIODIC, _METRIC = "periodic/", "/few_shot_seg/mIoU"  # of a name in metrics.json

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
    only: str = "",
    height: int = 192,
    proposals: int = 8,
) -> Path:
    """Draw the first ``num`` test episodes: one picture each and a grid, or for "tsne" a single picture.

    Args:
        cfg: an evaluation with this config scores the same episodes.
        output: folder of the pictures; it is created.
        figure: one of `FIGURES`; a method without it raises ValueError.
        model: in eval mode, checked by `check_figure`; not needed for "episodes".
        only: name of a class, whose episodes are drawn; "" draws those of all classes.
        height: of a tile, pixels.
        proposals: how many to draw of each query.

    Returns:
        The picture of all episodes, "grid.png" or "tsne.png".
    """
    check_writable(output)
    names = dict(enumerate(MetadataCatalog.get(dataset).get("stuff_classes", ())))
    options = {"shots": shots, "num": num, "only": _class_id(names, only)}
    every = itertools.chain.from_iterable(_loader(cfg, dataset, **options))
    episodes = ((each, names.get(each["class_id"], f"class {each['class_id']}")) for each in every)
    if figure == "tsne":
        save_picture(output / "tsne.png", _tsne(model, (episode for episode, _ in episodes), 2 * height))
        return output / "tsne.png"
    style = {"height": height} | ({"top": proposals} if figure == "proposals" else {})
    foreign = _loader(cfg, dataset, **options, foreign=True) if figure == "robustness" else ()
    others, panels = itertools.chain.from_iterable(foreign), []
    for episode, name in episodes:
        with torch.no_grad():
            shown = _run(model, episode, figure)
            panel = _PANELS[figure](model, episode, shown, class_name=name, **style)
            if figure == "robustness":
                other = next(others)
                further = _PANELS[figure](model, other, _run(model, other, figure), **style)
                panel = picture_grid([panel, further])
        panels.append(panel)
        save_picture(output / f"{episode['episode_index']:04d}.png", panel)
    save_picture(output / "grid.png", picture_grid(panels))
    return output / "grid.png"


def draw_curves(runs: Sequence[Path], output: Path, *, height: int = 384) -> Path:
    """Draw how the mIoU of every test set changed in trainings (DPCN, Fig. A1; DCAMA, Fig. 5).

    Args:
        runs: folders of trainings, with the ``metrics.json`` that they wrote; a panel each.
        output: folder of the picture, "curves.png"; it is created.

    Raises ValueError for a folder without such a file, or without periodic evaluations in it.
    """
    check_writable(output)
    panels = {str(run): _curves(run / "metrics.json") for run in runs}
    picture = line_figure(panels, x="iteration", y="mIoU, %", height=height)
    save_picture(output / "curves.png", picture)
    return output / "curves.png"


def _curves(file: Path) -> dict[str, tuple[list[float], list[float]]]:
    """By test set and number of shots: iterations and mIoU, from the lines of a training's metrics."""
    if not file.is_file():
        raise ValueError(f"{file} does not exist: name the OUTPUT_DIR of a training")
    found: dict[str, tuple[list[float], list[float]]] = {}
    for text in file.read_text().splitlines():
        line = parse_json(text, file, any_number=True)
        for key, value in line.items():
            if key.startswith(_PERIODIC) and key.endswith(_METRIC):
                name = key.removeprefix(_PERIODIC).removesuffix(_METRIC)
                iterations, scores = found.setdefault(name, ([], []))
                iterations.append(line["iteration"])
                scores.append(value)
    if not found:
        raise ValueError(f"{file} holds no periodic evaluation: train with TEST.EVAL_PERIOD above 0")
    return found


def _class_id(names: dict[int, str], only: str) -> int | None:
    if not only:
        return None
    known = {name: number for number, name in names.items()}
    if only not in known:
        raise ValueError(f"there is no class {only!r}: choose from {', '.join(known)}")
    return known[only]


def _loader(
    cfg: CfgNode, dataset: str, *, shots: int, num: int, only: int | None, foreign: bool = False
) -> Iterable[list[Episode]]:
    """The first ``num`` episodes, or those of the class ``only``; with supports of another class if asked."""
    drawn = num if only is None and not foreign else None
    loader = build_few_shot_test_loader(cfg, dataset, shots=shots, episodes=drawn)
    if foreign:
        loader.dataset.mapper = ForeignSupportMapper(loader.dataset.mapper, loader.sampler.all_episodes)
    chosen = [e for e in loader.sampler.episodes if only is None or e.class_id == only][:num]
    if not chosen:
        raise ValueError(f"no episode of {dataset} is of this class: raise FEW_SHOT.TEST.EPISODES")
    loader.sampler.episodes = tuple(chosen)
    return loader


def check_figure(model: nn.Module, figure: str) -> None:
    """Raise ValueError if a model cannot have a figure; for some figures the first episode shows it."""
    name = type(model).__name__
    if figure == "proposals" and not hasattr(model, "proposals"):
        fix = "choose a config of MMFormer or PotentialObjectsSegmenter"
        raise ValueError(f"{name} makes no proposals; {fix}")
    if figure not in ("proposals", "episodes") and not isinstance(model, FewShotSegmentor):
        fix = "choose a config of a few-shot method, or --figure proposals"
        raise ValueError(f"{name} reads no supports; {fix}")
    if figure == "tsne" and not model.score_layer:
        raise ValueError(f"{name} has no figure 'tsne': no layer of it makes scores of features")


@torch.no_grad()
def pixel_features(
    model: FewShotSegmentor, episode: Episode, points: Sequence[tuple[float, float]]
) -> dict[str, np.ndarray]:
    """Features of the query at points (y, x), fractions of its image in [0, 1): title -> (N, C).

    They are the backbone's deepest map that the method reads, and the penultimate features: what the last
    layer makes scores of.
    """
    query = model.normalise(episode["image"][None])
    name = [n for n in model.backbone.available if n in model.backbone.selected][-1]
    penultimate: list[Tensor] = []
    layer = model.get_submodule(model.score_layer)
    hook = layer.register_forward_pre_hook(lambda _, inputs: penultimate.append(inputs[0]))
    try:
        model([episode])
    finally:
        hook.remove()
    maps = {f"backbone ({name})": model.extract(query)[name], "penultimate layer": penultimate[-1]}
    return {title: _at(one[0], points) for title, one in maps.items()}


def _at(features: Tensor, points: Sequence[tuple[float, float]]) -> np.ndarray:
    """(C, h, w) to (N, C), at the cells that hold the points."""
    h, w = features.shape[-2:]
    ys, xs = ([int(point[axis] * side) for point in points] for axis, side in ((0, h), (1, w)))
    return features[:, ys, xs].T.float().cpu().numpy()


def _drawn_points(target: np.ndarray, seed: int) -> list[tuple[float, float, bool]]:
    """Points (y, x, shows the object) of both regions of a target (H, W), as fractions; up to 60 of each."""
    generator, found = np.random.default_rng(seed), []
    for value in (1, 0):
        inside = np.argwhere(target == value)
        chosen = (inside[generator.permutation(len(inside))[:_PIXELS]] + 0.5) / target.shape
        found += [(float(y), float(x), value == 1) for y, x in chosen]
    return found


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
        "alignment": hasattr(model, "channel_weights"),
        "robustness": True,
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


def _alignment(model: nn.Module, episode: Episode, _: Output, **style: Any) -> np.ndarray:
    """The query, then each support, at their own sizes."""
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for image in (episode["image"], *(support["image"] for support in episode["support"])):
        for level, (features, weights) in model.channel_weights(image[None]).items():
            seen.setdefault(level, []).append((features[0], weights[0]))
    return alignment_figure(episode, seen, **style)


def _tsne(model: FewShotSegmentor, episodes: Iterator[Episode], side: int) -> np.ndarray:
    """Pixels of all queries together, in a panel for each kind of features."""
    features: dict[str, list[np.ndarray]] = {}
    shows_object: list[bool] = []
    for episode in episodes:
        points = _drawn_points(episode["sem_seg"].numpy(), episode["episode_index"])
        shows_object += [inside for *_, inside in points]
        for title, own in pixel_features(model, episode, [point[:2] for point in points]).items():
            features.setdefault(title, []).append(own)
    embedded = {title: embed_tsne(np.concatenate(parts)) for title, parts in features.items()}
    return tsne_figure(embedded, shows_object, side=side)


# Functions of the model, an episode and its output, "class_name" and "height" (and "top" of the proposals).
_PANELS: dict[str, Callable[..., np.ndarray]] = {
    "episodes": lambda _, *shown, **style: episode_panel(*shown, **style),
    "proposals": lambda _, *shown, **style: proposal_panel(*shown, **style),
    "attention": _attention,
    "aggregated": lambda _, *shown, **style: aggregated_figure(*shown, **style),
    "activation": _activation,
    "agnostic": lambda _, *shown, **style: agnostic_figure(*shown, **style),
    "alignment": _alignment,
    "robustness": lambda _, *shown, **style: episode_panel(*shown, **style),
}
FIGURES = (*_PANELS, "tsne", "curves")
