"""The console script ``fss-d2``, whose commands work on your own pictures."""

import sys
from collections.abc import Callable, Sequence
from functools import partial

from fss_d2.engine.command_line import run_command

__all__ = ["main"]


def _label(arguments: Sequence[str]) -> None:
    from fss_d2.label.command import main as label  # late, so that the usage is quick

    label(arguments, program="fss-d2 label")


_COMMANDS: dict[str, tuple[Callable[[Sequence[str]], None], str]] = {
    "label": (_label, "label a folder of images like a few annotated ones")
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command by name; the exit code is 0, 1 after an error, 2 for a wrong command line."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in _COMMANDS:
        return run_command(partial(_COMMANDS[words[0]][0], words[1:]))
    usage = ["usage: fss-d2 COMMAND ... (fss-d2 COMMAND --help says more)", ""]
    usage += [f"  {name:10}{text}" for name, (_, text) in _COMMANDS.items()]
    asked = words[:1] in (["-h"], ["--help"])
    (sys.stdout if asked else sys.stderr).write("\n".join(usage) + "\n")
    return 0 if asked else 2


if __name__ == "__main__":
    sys.exit(main())
