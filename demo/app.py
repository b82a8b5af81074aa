#!/usr/bin/env python
"""The command ``fss-d2 app``, in a checkout that is not installed."""

import sys
from functools import partial

from fss_d2.app.command import main
from fss_d2.engine.command_line import run_command

if __name__ == "__main__":
    sys.exit(run_command(partial(main, sys.argv[1:])))
