#!/usr/bin/env python
"""Convert an official checkpoint: convert_checkpoint.py --method dcama|hsnet|mask2former|... IN OUT.

OUT loads with MODEL.WEIGHTS; the config keys that it needs are printed. IN is a PyTorch file or, for
Mask2Former, a pickle of numpy arrays. Code in a pickle is not run.
"""

import sys

from fss_d2.engine.command_line import documented_parser, path_option, run_command

METHODS = ("dcama", "hsnet", "mask2former", "mmformer", "pfenet")


def main(arguments: list[str] | None = None) -> None:
    """Convert one file."""
    parser = documented_parser(__doc__.splitlines()[0])
    parser.add_argument("--method", required=True, choices=METHODS)
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    parser.add_argument("--verbose", action="store_true", help="list the dropped and missing names")
    parser.add_argument("input", metavar="IN", type=path_option, help="official checkpoint")
    parser.add_argument("output", metavar="OUT", type=path_option, help="file to write")
    args = parser.parse_args(arguments)

    from fss_d2.checkpoint.convert import CONVERTERS, check_output, write_converted
    from fss_d2.io.state_dict import read_state_dict

    check_output(args.output, force=args.force)
    conversion = CONVERTERS[args.method](read_state_dict(args.input))
    write_converted(args.output, conversion, force=args.force)
    print(f"{conversion.summary()}; wrote {args.output}")
    for kind in ("dropped", "missing") if args.verbose else ():
        for name in getattr(conversion, kind):
            print(f"{kind} {name}")


if __name__ == "__main__":
    sys.exit(run_command(main))
