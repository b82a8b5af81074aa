"""Prepare FSS-1000; see datasets/README.md.

Which of the 1000 classes are for training, validation and test is not in the data: give a folder with
trn.txt, val.txt and test.txt (520, 240 and 240 class names) with --lists.
"""

import sys
from functools import partial

from preparation_cli import make_parser, run


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    args = make_parser(__doc__).parse_args(argv)
    from fss_d2.data.datasets import build_fss  # late, so that --help is quick

    prepare = partial(build_fss.prepare, args.root, workers=args.workers, lists=args.lists)
    return run(args, prepare, partial(build_fss.check, args.root))


if __name__ == "__main__":
    sys.exit(main())
