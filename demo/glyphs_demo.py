#!/usr/bin/env python3
"""The command ``fss-d2 demo``, in a checkout that is not installed."""

import sys
from functools import partial

from fss_d2.engine.command_line import run_command
from fss_d2.label.demo_command import main

if __name__ == "__main__":
    sys.exit(run_command(partial(main, sys.argv[1:])))
