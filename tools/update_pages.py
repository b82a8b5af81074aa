#!/usr/bin/env python3
"""Write the parts of MODEL_ZOO.md and docs/BENCHMARKS.md anew that follow from tables and results.

    python tools/update_pages.py
    python tools/update_pages.py --check

--check writes nothing; the exit code is 1 if a page is stale.
"""

import sys
from pathlib import Path

from fss_d2.engine.command_line import documented_parser, run_command
from fss_d2.engine.pages import PAGES, updated
from fss_d2.io.files import write_atomic

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Run the tool."""
    parser = documented_parser(__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, report stale pages")
    args = parser.parse_args()
    texts = {page: updated(page, ROOT) for page in PAGES}
    stale = [page for page, text in texts.items() if text != (ROOT / page).read_text(encoding="utf-8")]
    for page in stale:
        print(f"{page} is stale" if args.check else f"{page} is written anew")
        if not args.check:
            write_atomic(ROOT / page, texts[page].encode())
    return int(args.check and bool(stale))


if __name__ == "__main__":
    sys.exit(run_command(main))
