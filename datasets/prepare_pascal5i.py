"""Prepare PASCAL-5i from VOC 2012 and SBD; see datasets/README.md.

HSNet's PASCAL lists (346, 451, 725, 346 test pairs) follow no known rule: give their folder with --lists to
get the `pascal5i_hsnet_*` sets as well.
"""

import sys

from preparation_cli import make_parser, run


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    args = make_parser(__doc__).parse_args(argv)

    from fss_d2.data.datasets import pascal5i

    return run(args, pascal5i)


if __name__ == "__main__":
    sys.exit(main())
