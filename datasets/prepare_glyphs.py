"""Draw the procedural few-shot set `glyphs`: 80 symbols, four folds; see datasets/README.md.

The same seed and size give the same files for any number of workers. An interrupted run continues where it
stopped; a complete set is left unchanged.
"""

import argparse
import sys
from functools import partial

from preparation_cli import root_parser

from fss_d2.engine.command_line import run_command, start_log


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code (1: an error, which is printed in one line)."""
    parser = root_parser(__doc__)
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other images (default: 0)")
    parser.add_argument("--size", type=int, default=160, help="side of the images in pixels (default: 160)")
    parser.add_argument("--images-per-class", type=int, default=30, help="can be raised later (default: 30)")
    parser.add_argument("--workers", type=int, default=2, help="worker processes; 0 works in this one")
    parser.add_argument("--check", action="store_true", help="write nothing; verify and count what is there")
    return run_command(partial(prepare, parser.parse_args(argv)))


def prepare(args: argparse.Namespace) -> None:
    """Draw the set, unless ``--check``, and print what is there."""
    from fss_d2.data.datasets.glyphs import check_glyphs, write_glyphs

    if not args.check:
        start_log()
        options = {"images_per_class": args.images_per_class, "workers": args.workers}
        write_glyphs(args.root, seed=args.seed, size=args.size, **options)
    for name, (images, classes) in check_glyphs(args.root).items():
        print(f"{name:20} {images:5} images, {classes} classes")


if __name__ == "__main__":
    sys.exit(main())
