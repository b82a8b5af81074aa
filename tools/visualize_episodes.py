#!/usr/bin/env python
"""Draw episodes of a dataset: supports with their masks, the query, the truth. One picture each, and a grid.

    python tools/visualize_episodes.py --config-file configs/dcama/glyphs_efficientnet_lite0.yaml \
        --dataset glyphs_fold0_val --shots 5 --num 8 --output output/episodes
"""

import argparse
import itertools
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import fss_d2  # noqa: F401  isort: skip  (before detectron2: fss_d2.compat)
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils.logger import setup_logger

from fss_d2.data import build_few_shot_test_loader, register_datasets_from_cfg
from fss_d2.engine.arguments import load_config
from fss_d2.engine.errors import run_command
from fss_d2.evaluation.rows import check_writable
from fss_d2.visualization import episode_panel, picture_grid, save_picture

BASE_CONFIG = Path(__file__).resolve().parents[1] / "configs" / "Base-FewShot.yaml"

logger = logging.getLogger("fss_d2.tools.visualize_episodes")


def draw_episodes(
    cfg: CfgNode, dataset: str, output: Path, *, shots: int = 1, num: int = 8, height: int = 192
) -> list[Path]:
    """Draw the first ``num`` test episodes of ``dataset`` to ``output``; returns the files, the grid last.

    The episodes are those that an evaluation with this config scores (FEW_SHOT.TEST), before any model.
    """
    check_writable(output)
    names = MetadataCatalog.get(dataset).get("stuff_classes", ())
    panels, files = [], []
    loader = build_few_shot_test_loader(cfg, dataset, shots=shots, episodes=num)
    for episode in itertools.chain.from_iterable(loader):
        class_id = episode["class_id"]
        name = names[class_id] if class_id < len(names) else f"class {class_id}"
        panels.append(episode_panel(episode, class_name=name, height=height))
        files.append(output / f"{episode['episode_index']:04d}.png")
        save_picture(files[-1], panels[-1])
    files.append(output / "grid.png")
    save_picture(files[-1], picture_grid(panels))
    return files


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", default=str(BASE_CONFIG), help="its FEW_SHOT.TEST, INPUT, ...")
    parser.add_argument("--dataset", required=True, help="registered name, e.g. glyphs_fold0_val")
    parser.add_argument("--shots", type=int, default=1, help="supports per episode")
    parser.add_argument("--num", type=int, default=8, help="episodes to draw")
    parser.add_argument("--height", type=int, default=192, help="of a tile, pixels")
    parser.add_argument("--output", type=Path, required=True, help="folder of the pictures")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that override the config")
    args = parser.parse_args(argv)
    for name in ("shots", "num", "height"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Run the tool."""
    args = parse_args(argv)
    setup_logger(name="fss_d2")
    cfg = load_config(args.config_file, args.opts)
    register_datasets_from_cfg(cfg)
    files = draw_episodes(cfg, args.dataset, args.output, shots=args.shots, num=args.num, height=args.height)
    logger.info("Drew %d episodes; all of them: %s", len(files) - 1, files[-1])


if __name__ == "__main__":
    sys.exit(run_command(main))
