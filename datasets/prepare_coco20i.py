"""Prepare COCO-20i from the instances JSON files; see datasets/README.md.

The sets of images per class are derived from the data by a rule. The order of the published lists, which
decides the test episodes, cannot be derived: give the folder of HSNet's lists with --lists to get the
`coco20i_hsnet_*` sets, or with --year 2017 that of MM-Former's for the order of `coco20i_mmformer_*`.
"""

import sys

from preparation_cli import make_parser, run


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = make_parser(__doc__)
    parser.add_argument("--year", type=int, choices=(2014, 2017), default=2014, help="2017 is MM-Former's")
    note = "also write the class maps of coco20i_flat, coco20i_hsnet, coco20i_mmformer"
    parser.add_argument("--class-maps", action="store_true", help=note)
    args = parser.parse_args(argv)

    from fss_d2.data.datasets import prepare_coco20i

    return run(args, prepare_coco20i, {"year": args.year}, class_maps=args.class_maps)


if __name__ == "__main__":
    sys.exit(main())
