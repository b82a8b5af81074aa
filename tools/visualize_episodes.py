#!/usr/bin/env python
"""Draw episodes of a dataset: supports with their masks, the query, the truth. One picture each, and a grid.

    python tools/visualize_episodes.py --config-file configs/dcama/glyphs_efficientnet_lite0.yaml \
        --dataset glyphs_fold0_val --shots 5 --num 8 --output output/episodes
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from fss_d2.engine.command_line import run_command
from fss_d2.engine.drawing import draw_episodes, drawing_parser, parse_drawing_arguments

BASE_CONFIG = Path(__file__).resolve().parents[1] / "configs" / "Base-FewShot.yaml"

logger = logging.getLogger("fss_d2.tools.visualize_episodes")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the tool."""
    parser = drawing_parser(__doc__.splitlines()[0])
    parser.add_argument("--config-file", default=str(BASE_CONFIG), help="its FEW_SHOT.TEST, INPUT, ...")
    args = parse_drawing_arguments(parser, argv)
    # Imported late, so that --help is quick.
    from fss_d2.config import load_config
    from fss_d2.data import register_datasets_from_cfg
    from fss_d2.engine.setup import start_log
    from fss_d2.visualization import episode_panel

    start_log()
    cfg = load_config(args.config_file, args.opts)
    register_datasets_from_cfg(cfg)
    files = draw_episodes(
        cfg,
        args.dataset,
        args.output,
        lambda episode, name: episode_panel(episode, class_name=name, height=args.height),
        shots=args.shots,
        num=args.num,
    )
    logger.info("Drew %d episodes; all of them: %s", len(files) - 1, files[-1])


if __name__ == "__main__":
    sys.exit(run_command(main))
