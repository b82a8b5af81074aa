#!/usr/bin/env python3
"""Draw what goes on inside a method, as the papers' figures do. One picture an episode, and a grid.

    python tools/visualize_figures.py --config-file configs/dcama/glyphs_efficientnet_lite0.yaml \\
        --weights output/dcama/model_final.pth --dataset glyphs_fold0_val --figure attention \\
        --num 4 --output output/figures

attention   where two pixels of the query look in the supports (DCAMA)
aggregated  the masks of each scale (DCAMA)
activation  activation maps or prior, pseudo masks, and the way back to the supports (DPCN, PFENet, DANet)
agnostic    how much a pixel looks like an object of any class (JC2A; other methods with CKMM)
tsne        the objects of all episodes by their mean feature, one picture (every method)

The proposals of MM-Former have a tool of their own, tools/visualize_proposals.py.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fss_d2.engine.command_line import run_command
from fss_d2.engine.drawing import Panel, draw_episodes, drawing_parser, parse_drawing_arguments

if TYPE_CHECKING:  # imported late, so that --help is quick
    import numpy as np
    from detectron2.config import CfgNode
    from torch import Tensor, nn

    from fss_d2.modeling import FewShotSegmentor

logger = logging.getLogger("fss_d2.tools.visualize_figures")

Episode = dict[str, Any]
Figure = Callable[["FewShotSegmentor", Episode, str, int], "np.ndarray"]


def draw_attention(model: FewShotSegmentor, episode: Episode, class_name: str, height: int) -> np.ndarray:
    """The points that lie deepest in the object and in the background."""
    import numpy as np
    import torch
    from scipy import ndimage

    from fss_d2.visualization import attention_figure

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


def draw_aggregated(model: FewShotSegmentor, episode: Episode, class_name: str, height: int) -> np.ndarray:
    """The masks of each scale."""
    from fss_d2.visualization import aggregated_figure

    return aggregated_figure(episode, model([episode])[0], class_name=class_name, height=height)


def draw_activation(model: FewShotSegmentor, episode: Episode, class_name: str, height: int) -> np.ndarray:
    """Activations of the query by the supports, and of each support by the query as it was segmented."""
    import torch

    from fss_d2.visualization import activation_figure

    (plain,) = model([{"image": episode["image"], "support": episode["support"]}])
    found = {"image": episode["image"], "mask": plain["sem_seg"].argmax(dim=0).to(torch.uint8).cpu()}
    returned = model([{"image": s["image"], "support": [found]} for s in episode["support"]])
    return activation_figure(episode, model([episode])[0], returned, class_name=class_name, height=height)


def draw_agnostic(model: FewShotSegmentor, episode: Episode, class_name: str, height: int) -> np.ndarray:
    """The class-agnostic map."""
    from fss_d2.visualization import agnostic_figure

    return agnostic_figure(episode, model([episode])[0], class_name=class_name, height=height)


FIGURES: dict[str, Figure] = {
    "attention": draw_attention,
    "aggregated": draw_aggregated,
    "activation": draw_activation,
    "agnostic": draw_agnostic,
}


def figures_of(model: FewShotSegmentor, aux: Mapping[str, Tensor]) -> list[str]:
    """The figures that a method has, by its maps of one episode."""
    has = {
        "attention": hasattr(model, "attention_map"),
        "aggregated": any(name.startswith("aggregated_") for name in aux),
        "activation": bool({"activations", "prior"} & aux.keys()),
        "agnostic": "agnostic" in aux,
        "tsne": True,
    }
    return [name for name, there in has.items() if there]


def panel_of(model: FewShotSegmentor, figure: str, height: int) -> Panel:
    """The function that runs the model on one episode and draws.

    Raises (the function):
        ValueError: the method has no such figure.
    """
    import torch

    @torch.no_grad()
    def panel(episode: Episode, class_name: str) -> np.ndarray:
        known = figures_of(model, model([episode])[0]["aux"])
        if figure not in known:
            raise ValueError(
                f"{type(model).__name__} has no figure {figure!r} with these settings: choose from "
                f"{', '.join(known)}"
            )
        return FIGURES[figure](model, episode, class_name, height)

    return panel


def object_features(model: FewShotSegmentor, episode: Episode) -> Tensor:
    """The mean feature of the object in the query and in each support, deepest map: (1 + K, C)."""
    import torch

    from fss_d2.modeling.layers import area_fraction, masked_average

    shown = [{"image": episode["image"], "mask": episode["sem_seg"]}, *episode["support"]]
    name = [n for n in model.backbone.available if n in model.backbone.selected][-1]
    means = []
    for one in shown:
        with torch.no_grad():
            feature = model.extract(model.normalise(one["image"][None]))[name]  # (1, C, h, w)
        share = area_fraction(one["mask"][None, None].to(model.device) == 1, tuple(feature.shape[-2:]))
        means.append(masked_average(feature[:, None], share)[0])
    return torch.stack(means).cpu()


def draw_tsne(cfg: CfgNode, model: FewShotSegmentor, args: argparse.Namespace) -> Path:
    """All episodes in one picture; returns its file."""
    import torch
    from detectron2.data import MetadataCatalog

    from fss_d2.data import build_few_shot_test_loader
    from fss_d2.evaluation.rows import check_writable
    from fss_d2.visualization import embed_tsne, save_picture, tsne_figure

    check_writable(args.output)
    names = MetadataCatalog.get(args.dataset).stuff_classes
    features, labels, roles = [], [], []
    loader = build_few_shot_test_loader(cfg, args.dataset, shots=args.shots, episodes=args.num)
    for episode in itertools.chain.from_iterable(loader):
        features.append(object_features(model, episode))
        labels += [names[episode["class_id"]]] * len(features[-1])
        roles += ["query"] + ["support"] * (len(features[-1]) - 1)
    picture = tsne_figure(embed_tsne(torch.cat(features).numpy()), labels, roles, side=4 * args.height)
    save_picture(args.output / "tsne.png", picture)
    return args.output / "tsne.png"


def load_few_shot_model(cfg: CfgNode) -> FewShotSegmentor:
    """As `load_model`.

    Raises:
        ValueError: a method that reads no supports.
    """
    from fss_d2.engine.loading import load_model
    from fss_d2.modeling import FewShotSegmentor

    model: nn.Module = load_model(cfg)
    if not isinstance(model, FewShotSegmentor):
        raise ValueError(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} reads no supports; choose a config of a "
            "few-shot method, or tools/visualize_proposals.py"
        )
    return model


def main(argv: Sequence[str] | None = None) -> None:
    """Run the tool."""
    parser = drawing_parser(__doc__.splitlines()[0], num=4)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="of a few-shot method")
    parser.add_argument("--weights", metavar="FILE", help="default: MODEL.WEIGHTS")
    parser.add_argument("--figure", required=True, choices=(*FIGURES, "tsne"))
    args = parse_drawing_arguments(parser, argv)
    from fss_d2.config import load_config
    from fss_d2.data import register_datasets_from_cfg
    from fss_d2.engine.setup import start_log

    if args.weights:
        args.opts += ["MODEL.WEIGHTS", args.weights]
    start_log()
    cfg = load_config(args.config_file, args.opts)
    register_datasets_from_cfg(cfg)
    model = load_few_shot_model(cfg)
    if args.figure == "tsne":
        logger.info("Drew %d episodes: %s", args.num, draw_tsne(cfg, model, args))
        return
    panel = panel_of(model, args.figure, args.height)
    files = draw_episodes(cfg, args.dataset, args.output, panel, shots=args.shots, num=args.num)
    logger.info("Drew %d episodes; all of them: %s", len(files) - 1, files[-1])


if __name__ == "__main__":
    sys.exit(run_command(main))
