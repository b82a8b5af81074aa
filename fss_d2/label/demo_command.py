"""The command ``fss-d2 demo``: real pictures labelled by the model of the package, then a training run.

    fss-d2 demo [--output DIR] [--only-pictures] [--fold 0] [KEY VALUE ...]

First, in less than a minute: ten microscopy pictures, of which one of each kind is annotated. The others
are labelled, compared with their known masks, and shown on a page. Then, in minutes on a CPU: it draws the
`glyphs` set, trains dense correlation on the 60 base classes of a fold, and evaluates it and the
training-free baseline on the same episodes of the 20 held-out classes. It needs no network: the drawings go
to $DETECTRON2_DATASETS, or the folder datasets if there is one, or the folder of --output.
"""

import argparse
from collections.abc import Sequence

from fss_d2.engine.command_line import documented_parser, parse_command_line, path_option, start_log

__all__ = ["main", "parse"]


def parse(arguments: Sequence[str] | None = None, program: str | None = None) -> argparse.Namespace:
    """Read the command line; None takes that of the process."""
    parser = documented_parser(__doc__.partition("\n\n")[2], program)
    parser.add_argument(
        "--output", type=path_option, default="output/demo", help="folder of tables, checkpoint and pictures"
    )
    parser.add_argument("--only-pictures", action="store_true", help="label the real pictures, train nothing")
    parser.add_argument("--fold", type=int, default=0, choices=range(4), help="its classes are held out")
    parser.add_argument("--iterations", type=int, default=300, help="of training; the config has more")
    parser.add_argument("--episodes", type=int, default=200, help="per evaluation")
    parser.add_argument("--rows", type=int, default=8, help="episodes in the picture grid")
    return parse_command_line(parser, arguments)


def main(arguments: Sequence[str] | None = None, *, program: str | None = None) -> None:
    """Run the demo; ``program`` is its name in the usage message."""
    args = parse(arguments, program)
    from pathlib import Path

    from detectron2.utils.logger import setup_logger  # late, so that --help is quick

    from fss_d2.engine.glyphs_demo import train_on_glyphs

    from .cells_demo import label_cells, show_page

    setup_logger()
    start_log()
    show_page(label_cells(Path(args.output)))
    if not args.only_pictures:
        train_on_glyphs(args)
