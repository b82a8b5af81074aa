"""The console script ``fss-d2``: what an installed package does by one command."""

import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module

import fss_d2
from fss_d2.engine.command_line import run_command, suggestion
from fss_d2.io.files import shortened

__all__ = ["main"]

# The module of each command, whose `main` takes the arguments and the program's name, and what it does.
_COMMANDS = {
    "label": ("fss_d2.label.command", "label a folder of images like a few annotated ones"),
    "app": ("fss_d2.app.command", "serve the web page: paint on a few pictures, find in others"),
    "export": ("fss_d2.inference.export_command", "write a model with its supports as one file (ONNX, ...)"),
    "check": ("fss_d2.check_env", "say what is right and wrong with the environment"),
    "demo": ("fss_d2.label.demo_command", "label real pictures, then train on drawings: minutes on a CPU"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command by name; the exit code is 0, 1 after an error, 2 for a wrong command line."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    asked = words[0] if words else ""
    if asked in _COMMANDS:
        command = import_module(_COMMANDS[asked][0]).main  # late, so that the usage is quick
        return run_command(partial(command, words[1:], program=f"fss-d2 {asked}"))
    if asked == "--version":
        print(f"fss_d2 {fss_d2.__version__}")
    elif asked in ("-h", "--help", "help"):
        print(_usage())
    elif not asked:
        print(_usage(), file=sys.stderr)
    else:
        what = f"error: there is no command {shortened(asked)!r}"
        print(f"{what}; {suggestion(asked, _COMMANDS)}", file=sys.stderr)
    return 0 if asked in ("-h", "--help", "help", "--version") else 2


def _usage() -> str:
    lines = [f"  {name:10}{text}" for name, (_, text) in _COMMANDS.items()]
    first = "usage: fss-d2 COMMAND ... (fss-d2 COMMAND --help says more; fss-d2 --version)"
    return "\n".join([first, "", *lines])


if __name__ == "__main__":
    sys.exit(main())
