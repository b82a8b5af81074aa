"""One line for the user where something is missing or wrong, a traceback where the program is."""

import logging
import os
import re
import sys
from collections.abc import Callable

import yaml

__all__ = ["TRACEBACK_VARIABLE", "hide_tracebacks", "one_line", "run_command"]

# Set to anything but "" or "0" to see where an error comes from.
TRACEBACK_VARIABLE = "FSS_D2_TRACEBACK"

# What bad input raises: values, keys, files, loss that became NaN, YAML that does not parse.
_USER_ERRORS = (ValueError, KeyError, OSError, FloatingPointError, yaml.YAMLError)
_OUT_OF_MEMORY = "OutOfMemoryError"
# "ValueError: text" as Python ends a traceback, also inside the message of a worker's error.
_LAST_ERROR = re.compile(r"^(?:\w+\.)*(\w+(?:Error|Exception)): (.*)", re.MULTILINE | re.DOTALL)
_TRAIN_LOOP = "detectron2.engine.train_loop"  # logs the traceback of whatever ends a training


def run_command(main: Callable[[], object]) -> int:
    """Run a program's main function and return its exit code.

    Errors of the user's making (`_USER_ERRORS`, memory of the GPU), also those that reach this process from
    a spawned process or a data loader's worker, become ``error: <one line>`` on the standard error stream and
    exit code 1. Others are bugs and keep their traceback, as all do when FSS_D2_TRACEBACK is set.
    """
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        line = None if _traceback_wanted() else one_line(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 1
    return 0


def one_line(error: BaseException) -> str | None:
    """The message of an error that the user can mend, on one line; None for any other error."""
    kind, message = type(error).__name__, _message(error)
    nested = None
    for nested in _LAST_ERROR.finditer(_innermost(message)):
        kind, message = nested.group(1), nested.group(2)
    if kind == _OUT_OF_MEMORY:
        return f"{_first_sentence(message)}; lower SOLVER.IMS_PER_BATCH or INPUT.FEW_SHOT_SIZE"
    known = kind in _user_error_names() if nested else isinstance(error, _USER_ERRORS)
    if not known:
        return None
    line = " ".join(message.split())
    if kind == "KeyError" and " " not in line:  # a bare key says too little
        line = f"missing key {line} (set {TRACEBACK_VARIABLE}=1 to see where)"
    return line or f"{kind} (set {TRACEBACK_VARIABLE}=1 to see where)"


def hide_tracebacks() -> None:
    """Keep Detectron2's training loop from logging the traceback of an error that is the user's to mend."""
    if not _traceback_wanted():
        logging.getLogger(_TRAIN_LOOP).addFilter(_without_traceback)


def _without_traceback(record: logging.LogRecord) -> bool:
    line = one_line(record.exc_info[1]) if record.exc_info and record.exc_info[1] else None
    if line is not None:
        record.msg, record.args, record.exc_info = "Training stopped: %s", (line,), None
    return True


def _traceback_wanted() -> bool:
    return os.environ.get(TRACEBACK_VARIABLE, "") not in ("", "0")


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        name = error.filename if error.filename2 is None else error.filename2  # a renamed temporary file
        return f"{name}: {error.strerror}"
    if isinstance(error, KeyError) and len(error.args) == 1:  # str() would put it in quotes
        return str(error.args[0])
    return str(error)


def _innermost(message: str) -> str:
    """What follows the last "Traceback" of a message that carries the traceback of another process."""
    return message.rpartition("Traceback (most recent call last)")[2] if "Traceback" in message else ""


def _first_sentence(message: str) -> str:
    return " ".join(message.split()).split(". ")[0].rstrip(".")


def _user_error_names() -> set[str]:
    """Names of the user errors and of all that derive from them, as a traceback prints them."""
    names, classes = set(), list(_USER_ERRORS)
    while classes:
        current = classes.pop()
        names.add(current.__name__)
        classes.extend(current.__subclasses__())
    return names
