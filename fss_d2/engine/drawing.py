"""What the programs that draw episodes share: their arguments, and the loop over the episodes."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .command_line import parse_command_line

if TYPE_CHECKING:
    import numpy as np
    from detectron2.config import CfgNode

__all__ = ["draw_episodes", "drawing_parser", "parse_drawing_arguments"]

Panel = Callable[[dict[str, Any], str], "np.ndarray"]


def drawing_parser(description: str, *, num: int = 8) -> argparse.ArgumentParser:
    """The arguments of every drawing program but its config; ``num`` is the default number of episodes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--dataset", required=True, help="registered name, e.g. glyphs_fold0_val")
    parser.add_argument("--shots", type=int, default=1, help="supports per episode")
    parser.add_argument("--num", type=int, default=num, help="episodes to draw")
    parser.add_argument("--height", type=int, default=192, help="of a tile, pixels")
    parser.add_argument("--output", type=Path, required=True, help="folder of the pictures")
    return parser


def parse_drawing_arguments(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> argparse.Namespace:
    """As `parse_command_line`; no number may be below 1."""
    args = parse_command_line(parser, argv)
    for name, value in vars(args).items():
        if isinstance(value, int) and value < 1:
            parser.error(f"--{name} must be at least 1")
    return args


def draw_episodes(
    cfg: CfgNode, dataset: str, output: Path, panel: Panel, *, shots: int = 1, num: int = 8
) -> list[Path]:
    """Draw the first ``num`` test episodes of ``dataset`` to ``output``, one picture each, and a grid.

    Args:
        cfg: FEW_SHOT.TEST, INPUT, ...; the episodes are those that an evaluation with it scores.
        dataset: registered name.
        output: folder, made if it does not exist.
        panel: draws one episode, given the mapper's dict and the class name.
        shots: supports of each episode.
        num: episodes.

    Returns:
        The files, the grid last.
    """
    from detectron2.data import MetadataCatalog

    from fss_d2.data import build_few_shot_test_loader
    from fss_d2.evaluation.rows import check_writable
    from fss_d2.visualization import picture_grid, save_picture

    check_writable(output)
    names = MetadataCatalog.get(dataset).get("stuff_classes", ())
    panels, files = [], []
    loader = build_few_shot_test_loader(cfg, dataset, shots=shots, episodes=num)
    for episode in itertools.chain.from_iterable(loader):
        class_id = episode["class_id"]
        panels.append(panel(episode, names[class_id] if class_id < len(names) else f"class {class_id}"))
        files.append(output / f"{episode['episode_index']:04d}.png")
        save_picture(files[-1], panels[-1])
    files.append(output / "grid.png")
    save_picture(files[-1], picture_grid(panels))
    return files
