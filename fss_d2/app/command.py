"""The command ``fss-d2 app``.

Serve a web page: mark an object in a few pictures, and get its mask in many others.

    fss-d2 app

Open the printed address in a browser. Without --config-file the page uses the trained model that comes with
the package; with several configs a visitor chooses among their methods. Only this machine can reach the page,
unless --host says otherwise.
"""

import argparse
import logging
import threading
from collections.abc import Sequence

from fss_d2.engine.command_line import documented_parser, start_log
from fss_d2.model_zoo import DEFAULT_CONFIG

__all__ = ["main", "parse"]

logger = logging.getLogger(__name__)


def parse(argv: Sequence[str] | None = None, program: str | None = None) -> argparse.Namespace:
    """Read the command line; None takes that of the process."""
    parser = documented_parser(__doc__.partition("\n\n")[2], program)
    add, files = parser.add_argument, {"nargs": "+", "metavar": "FILE"}
    default = [str(DEFAULT_CONFIG)]
    add("--config-file", default=default, **files, help="one per method; default: the model of the package")
    add("--weights", default=[], **files, help="one per config; - takes its MODEL.WEIGHTS")
    add("--device", default="", metavar="NAME", help="cpu or cuda; default: a GPU if any")
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="default: %(default)s")
    add("--port", type=int, metavar="N", help="default: a free one from 7860 on")
    number = {"type": int, "default": 20, "metavar": "N"}
    add("--max-upload-mb", **number, help="megabytes of one file; default: %(default)s")
    add("--max-pictures", **number, help="pictures of objects, and as many to search; default: %(default)s")
    pixels, disk = (
        "million pixels of all pictures of a visitor",
        "megabytes that a visitor uploads in an hour",
    )
    add("--max-megapixels", type=float, default=96, metavar="N", help=f"{pixels}; default: %(default)s")
    add("--max-disk-mb", type=int, default=2000, metavar="N", help=f"{disk}; default: %(default)s")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None, *, program: str | None = None) -> None:
    """Serve the page until Ctrl-C or SIGTERM; ``program`` is the name in the usage message."""
    args = parse(argv, program)

    from .methods import MethodPool
    from .server import check_address, check_gradio, serve  # after --help, which needs no torch
    from .uploads import Limits

    check_gradio()  # before models are loaded
    check_address(args.host, args.port)
    start_log()
    limits = Limits(
        upload_mb=args.max_upload_mb,
        pictures=args.max_pictures,
        total_megapixels=args.max_megapixels,
        disk_mb=args.max_disk_mb,
    )
    pool = MethodPool.load(args.config_file, args.weights, device=args.device)
    with serve(pool, limits, host=args.host, port=args.port) as url:
        logger.info("Open %s in a browser; Ctrl-C ends it", url)
        threading.Event().wait()
