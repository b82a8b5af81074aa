"""Prepare FSS-1000; see datasets/README.md.

The data do not contain the split of the 1000 classes into training, validation and test: give a folder with
trn.txt, val.txt and test.txt (520, 240 and 240 class names) with --lists.
"""

import sys

from preparation_cli import make_parser, run


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    args = make_parser(__doc__).parse_args(argv)

    from fss_d2.data.datasets import fss1000

    return run(args, fss1000)


if __name__ == "__main__":
    sys.exit(main())
