"""Errors that users can fix, as one line each; others are bugs and keep their traceback. Needs no torch."""

import errno
import json
import os
import re
import time

import yaml

__all__ = ["LOST_PROCESS", "TRACEBACK_VARIABLE", "one_line", "report_to_torchrun", "traceback_wanted"]

# Set to anything but "" or "0" to see where an error comes from.
TRACEBACK_VARIABLE = "FSS_D2_TRACEBACK"

# What bad input raises: values, keys, files, a loss that became NaN, YAML that does not parse.
_USER_ERRORS = (ValueError, KeyError, OSError, FloatingPointError, yaml.YAMLError)
_OUT_OF_MEMORY = "OutOfMemoryError"
# "ValueError: text" as Python ends a traceback, also inside the message of a worker's error.
_LAST_ERROR = re.compile(r"^(?:\w+\.)*(\w+(?:Error|Exception)): (.*)", re.MULTILINE | re.DOTALL)
_LONGEST_LINE = 1000  # characters of an error, in which a file may have put a text of any length
_EXPLAINED_KINDS = ("RuntimeError", "DistBackendError", "DistNetworkError", "DistStoreError")
_FULL = (errno.ENOSPC, errno.EDQUOT)
# What processes that work together say when one of them is gone: gloo, NCCL, torch's store.
LOST_PROCESS = re.compile(
    r"(?:closed|reset) by peer|remote process exited|communicator was aborted|gloo/transport|Broken pipe"
)
_LOST = "another process of this run ended, and this one cannot go on without it; its own error says why"
_MEMORY = "the machine may have run out of memory; lower DATALOADER.NUM_WORKERS or SOLVER.IMS_PER_BATCH"
# Messages of torch that say too little, and what they mean.
_EXPLAINED = (
    (
        re.compile(r"bus error encountered in worker|is killed by signal: Bus error"),
        "a data loader worker found too little shared memory; lower DATALOADER.NUM_WORKERS, or start the "
        "container with a larger --shm-size",
    ),
    (
        re.compile(r"DataLoader worker \(pid (\d+)\) is killed by signal: ([^.\n]+)"),
        rf"data loader worker \1 was killed (\2): {_MEMORY}",
    ),
    (
        re.compile(r"DataLoader worker \(pid\(s\) ([\d, ]+)\) exited unexpectedly"),
        rf"data loader worker \1 ended without a word: {_MEMORY}",
    ),
    (LOST_PROCESS, _LOST),
)


def one_line(error: BaseException) -> str | None:
    """The message of an error that the user can fix, on one line; None for any other error."""
    kind, message = type(error).__name__, _message(error)
    nested = None
    for nested in _LAST_ERROR.finditer(_innermost(message)):
        kind, message = nested.group(1), nested.group(2)
    if kind == _OUT_OF_MEMORY:
        sentence = " ".join(message.split()).split(". ")[0].rstrip(".")
        return f"{sentence}; lower SOLVER.IMS_PER_BATCH or INPUT.FEW_SHOT_SIZE"
    if kind in _EXPLAINED_KINDS:
        return next((found.expand(line) for p, line in _EXPLAINED if (found := p.search(message))), None)
    known = kind in _user_error_names() if nested else isinstance(error, _USER_ERRORS)
    if not known:
        return None
    line = " ".join(message.split())
    if kind == "KeyError" and " " not in line:  # a bare key says too little
        line = f"missing key {line} (set {TRACEBACK_VARIABLE}=1 to see where)"
    line = line if len(line) <= _LONGEST_LINE else f"{line[: _LONGEST_LINE - 3]}..."
    return line or f"{kind} (set {TRACEBACK_VARIABLE}=1 to see where)"


def traceback_wanted() -> bool:
    """Whether the user asked for tracebacks."""
    return os.environ.get(TRACEBACK_VARIABLE, "") not in ("", "0")


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno in _FULL and error.filename is None:
        return f"{os.strerror(error.errno)}: free some for the output; a training goes on with --resume"
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        name = error.filename if error.filename2 is None else error.filename2  # a renamed temporary file
        return f"{name}: {error.strerror}"
    if isinstance(error, KeyError) and len(error.args) == 1:  # str() would put it in quotes
        return str(error.args[0])
    return str(error)


def _innermost(message: str) -> str:
    """What follows the last "Traceback" in a message that quotes another process."""
    return message.rpartition("Traceback (most recent call last)")[2] if "Traceback" in message else ""


def _user_error_names() -> set[str]:
    """Names of the user errors and of all that derive from them, as a traceback prints them."""
    names, classes = set(), list(_USER_ERRORS)
    while classes:
        current = classes.pop()
        names.add(current.__name__)
        classes.extend(current.__subclasses__())
    return names


def report_to_torchrun(line: str) -> None:
    """Let torchrun's report, the last thing that it prints, end with this line; nothing without torchrun."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file:
        message = {"message": line, "extraInfo": {"timestamp": str(int(time.time()))}}
        with open(file, "w", encoding="utf-8") as stream:
            json.dump({"message": message}, stream)
