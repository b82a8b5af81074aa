#!/usr/bin/env python
"""Draw the proposals of episodes with what the method thinks of them. One picture an episode, and a grid.

    python tools/visualize_proposals.py --config-file configs/mmformer/stage2_glyphs.yaml \
        --dataset glyphs_fold0_val --shots 1 --num 4 --output output/proposals \
        MODEL.WEIGHTS output/mmformer/stage2_glyphs/model_final.pth

For MMFormer: supports, query, fused mask with its IoU, truth; below, the proposals with the largest matching
coefficients. For PotentialObjectsSegmenter, which reads no supports: the proposals of the highest quality,
each and in one overview. A green frame marks the oracle, the proposal that fits the truth best.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fss_d2.engine.command_line import run_command
from fss_d2.engine.drawing import Panel, draw_episodes, drawing_parser, parse_drawing_arguments

if TYPE_CHECKING:  # imported late, so that --help is quick
    import numpy as np
    from detectron2.config import CfgNode
    from torch import nn

logger = logging.getLogger("fss_d2.tools.visualize_proposals")


def load_proposing_model(cfg: CfgNode) -> nn.Module:
    """As `load_model`.

    Raises:
        ValueError: a method without proposals.
    """
    from fss_d2.engine.loading import load_model

    model = load_model(cfg)
    if not hasattr(model, "proposals"):
        raise ValueError(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} makes no proposals; choose a config of "
            "MMFormer or PotentialObjectsSegmenter"
        )
    return model


def panel_of(model: nn.Module, *, top: int, height: int) -> Panel:
    """The function that runs the model on one episode and draws what comes out."""
    import torch

    from fss_d2.visualization import proposal_panel

    @torch.inference_mode()
    def panel(episode: dict, class_name: str) -> np.ndarray:
        (output,) = model([episode])
        return proposal_panel(episode, output, top=top, class_name=class_name, height=height)

    return panel


def main(argv: Sequence[str] | None = None) -> None:
    """Run the tool."""
    parser = drawing_parser(__doc__.splitlines()[0], num=4)
    parser.add_argument("--config-file", required=True, help="of a method that makes proposals")
    parser.add_argument("--proposals", type=int, default=8, help="proposals to draw of each query")
    args = parse_drawing_arguments(parser, argv)
    from fss_d2.config import load_config
    from fss_d2.data import register_datasets_from_cfg
    from fss_d2.engine.setup import start_log

    start_log()
    cfg = load_config(args.config_file, args.opts)
    register_datasets_from_cfg(cfg)
    panel = panel_of(load_proposing_model(cfg), top=args.proposals, height=args.height)
    files = draw_episodes(cfg, args.dataset, args.output, panel, shots=args.shots, num=args.num)
    logger.info("Drew %d episodes; all of them: %s", len(files) - 1, files[-1])


if __name__ == "__main__":
    sys.exit(run_command(main))
