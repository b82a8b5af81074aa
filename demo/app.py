#!/usr/bin/env python
"""A web page on this machine: mark an object in a few pictures, and get its mask in many others.

    python demo/app.py

Then open the printed address in a browser. Without --config-file the page uses the trained model that comes
with the package; with several configs a visitor chooses among their methods. Only this machine can reach the
page, unless --host says otherwise.
"""

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Sequence

from fss_d2.engine.command_line import run_command
from fss_d2.model_zoo import DEFAULT_CONFIG

logger = logging.getLogger("fss_d2.app")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file",
        nargs="+",
        default=[str(DEFAULT_CONFIG)],
        metavar="FILE",
        help="one per method; default: the model of the package",
    )
    parser.add_argument(
        "--weights", nargs="+", default=[], metavar="FILE", help="one per config; - takes its MODEL.WEIGHTS"
    )
    parser.add_argument("--device", default="", metavar="NAME", help="cpu or cuda; default: a GPU if any")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="default: %(default)s")
    parser.add_argument("--port", type=int, metavar="N", help="default: a free one from 7860 on")
    for name, text in (
        ("--max-upload-mb", "megabytes of one file"),
        ("--max-pictures", "pictures of objects, and as many to search"),
    ):
        parser.add_argument(name, type=int, default=20, metavar="N", help=f"{text}; default: %(default)s")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Serve the page until Ctrl-C or SIGTERM."""
    args = parse(argv)

    from fss_d2.app.server import check_gradio, serve  # after --help, which needs no torch
    from fss_d2.app.session import MethodPool
    from fss_d2.app.uploads import Limits
    from fss_d2.engine.setup import start_log

    check_gradio()  # before models are loaded
    start_log()
    limits = Limits(upload_mb=args.max_upload_mb, pictures=args.max_pictures)
    pool = MethodPool.load(args.config_file, args.weights, device=args.device)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with serve(pool, limits, host=args.host, port=args.port) as url:
        logger.info("Open %s in a browser; Ctrl-C ends it", url)
        threading.Event().wait()


if __name__ == "__main__":
    sys.exit(run_command(main))
