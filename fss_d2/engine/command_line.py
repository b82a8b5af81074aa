"""What all programs share: arguments, set-up, one-line errors with exit codes. Its import needs no torch."""

import argparse
import difflib
import itertools
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import yaml

from fss_d2.files import expand_user, shortened

from .launch import LaunchPlan

if TYPE_CHECKING:
    from detectron2.config import CfgNode

__all__ = ["TRACEBACK_VARIABLE", "Parser", "add_launch_arguments", "add_mask_values", "argument_parser"]
__all__ += ["closing_log_handlers", "documented_parser", "hide_tracebacks", "one_line", "parse_command_line"]
__all__ += ["path_option", "plan_from", "run_command", "setup", "start_log", "suggestion"]

# Set to anything but "" or "0" to see where an error comes from.
TRACEBACK_VARIABLE = "FSS_D2_TRACEBACK"

# The first parts of all config keys. `get_cfg` has them too, but needs seconds to import.
_TOP_LEVEL = (
    *("CUDNN_BENCHMARK", "DATALOADER", "DATASETS", "FEW_SHOT", "FLOAT32_PRECISION", "GLOBAL", "INPUT"),
    *("MODEL", "OUTPUT_DIR", "SEED", "SOLVER", "TEST", "VERSION", "VIS_PERIOD"),
)
_KEY = re.compile(rf"(?:{'|'.join(_TOP_LEVEL)})(?:\.[A-Z0-9_]+)*")  # SEED, SOLVER.BASE_LR; not IMG_7.JPG

# What bad input raises: values, keys, files, a loss that became NaN, YAML that does not parse.
_USER_ERRORS = (ValueError, KeyError, OSError, FloatingPointError, yaml.YAMLError)
_OUT_OF_MEMORY = "OutOfMemoryError"
# "ValueError: text" as Python ends a traceback, also inside the message of a worker's error.
_LAST_ERROR = re.compile(r"^(?:\w+\.)*(\w+(?:Error|Exception)): (.*)", re.MULTILINE | re.DOTALL)
_LONGEST_LINE = 1000  # characters of an error, in which a file may have put a text of any length
_TRAIN_LOOP = "detectron2.engine.train_loop"  # logs the traceback of any error that ends a training


class Parser(argparse.ArgumentParser):
    """A parser whose errors name the closest option or choice."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """As the base class, but the words are kept for `error`."""
        self._words = [*(sys.argv[1:] if args is None else args), "--"]
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Print the usage and the error, and exit with code 2.

        An option that does not exist is named first: where it is one that is required, argparse only says
        that this is missing.
        """
        words = getattr(self, "_words", ["--"])
        options = list(self._option_string_actions)
        for word in (word.partition("=")[0] for word in words[: words.index("--")]):
            if word.startswith("--") and not any(option.startswith(word) for option in options):
                super().error(f"there is no option {shortened(word)}; {suggestion(word, options, '--help')}")
        if wrong := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)$", message):
            hint = suggestion(wrong[1], re.findall(r"[\w.-]+", wrong[2]), "--help")
            message = f"{message}; {hint}"
        super().error(message)


def suggestion(word: str, known: Iterable[str], everything: str = "") -> str:
    """What to write instead of a word that is not known: the closest name, or where to find all of them."""
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1)
    if close:
        return f"did you mean {by_lower[close[0]]}?"
    return f"see {everything}" if everything else f"choose from {', '.join(by_lower.values())}"


def path_option(text: str) -> Path:
    """The type of an option that names a file or folder: "~" at its start is the home folder."""
    try:
        path = Path(expand_user(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return Path(os.path.abspath(path)) if str(path).startswith("~") else path  # "./~" is a file here


def argument_parser(description: str) -> argparse.ArgumentParser:
    """The arguments of Detectron2's programs; parse them with `parse_command_line`."""
    parser = Parser(description=description)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="YAML config")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, do not train")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint, if any")
    add_launch_arguments(parser)
    return parser


def documented_parser(text: str | None, program: str | None = None) -> argparse.ArgumentParser:
    """A parser whose --help shows the docstring of a program as it is written."""
    show = argparse.RawDescriptionHelpFormatter
    return Parser(prog=program, description=text, formatter_class=show)


def add_launch_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say how many processes run, and where."""
    add = parser.add_argument_group("processes (not needed under torchrun)").add_argument
    add("--num-gpus", type=int, metavar="N", help="GPUs per machine; default: 1 if there is one")
    add("--num-processes", type=int, default=1, metavar="N", help="CPU processes per machine, without GPUs")
    add("--num-machines", type=int, default=1, metavar="N")
    add("--machine-rank", type=int, default=0, metavar="R", help="0 to N-1")
    add("--dist-url", default="auto", metavar="URL", help="tcp://HOST:PORT of machine 0, of several machines")


def add_mask_values(parser: argparse.ArgumentParser) -> None:
    """Add --mask-values, a list of texts for `fss_d2.data.mask_values.parse_mask_values`."""
    note = (
        "what the values of mask files mean, if it is not recognised: '[CLASS=]OBJECT [ignore=VALUES] "
        "[frame=upright|stored]', where OBJECT and VALUES are numbers (1,2,5-9) or colours (#ff0000), and "
        "OBJECT may be nonzero, bright, dark or opaque; may be repeated"
    )
    parser.add_argument("--mask-values", action="append", metavar="VALUES", help=note)


def parse_command_line(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None, *, weights: bool = False
) -> argparse.Namespace:
    """Parse flags and ``KEY VALUE`` pairs in any order; the pairs become ``opts``.

    The parser gets the positional "opts" added, and with ``weights`` the flag --weights, another name of
    MODEL.WEIGHTS; ``arguments`` None takes those of the process.
    """
    if weights:
        parser.add_argument("--weights", metavar="FILE", help="default: MODEL.WEIGHTS")
    note = "config keys to change, SOLVER.BASE_LR 0.01 for example"
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help=note)
    flags, pairs = [], []
    rest = iter(sys.argv[1:] if arguments is None else arguments)
    for word in rest:
        # Taken out first, as a flag of several values ("--folds 0 1 KEY VALUE") would swallow them.
        if _KEY.fullmatch(word):
            pairs += [word, *itertools.islice(rest, 1)]
        else:
            flags.append(word)
    args = parser.parse_intermixed_args(flags)
    args.opts += [*pairs, "MODEL.WEIGHTS", args.weights] if weights and args.weights else pairs
    return args


def plan_from(args: argparse.Namespace) -> LaunchPlan:
    """The plan that the arguments of `add_launch_arguments` describe; raises ValueError as `LaunchPlan`."""
    return LaunchPlan(**{field.name: getattr(args, field.name) for field in fields(LaunchPlan)})


def setup(args: argparse.Namespace) -> "CfgNode":
    """Read the config, register the data sets that it lists, start the logs and seed all generators.

    Args:
        args: what `argument_parser` parses; ``OUTPUT_DIR`` receives ``config.yaml`` and ``log.txt``.

    Raises:
        ValueError: a wrong config, an unknown data set, or an OUTPUT_DIR that cannot be written to.
        FileNotFoundError: a data set has not been prepared; nothing has been written then.
    """
    from detectron2.engine import default_setup

    from fss_d2.config import load_config
    from fss_d2.data.catalog import get_records, register_datasets_from_cfg
    from fss_d2.files import check_writable

    cfg = load_config(args.config_file, args.opts, num_gpus=args.num_gpus)
    if args.eval_only and not cfg.DATASETS.TEST:
        raise ValueError("DATASETS.TEST names no test set; there is nothing to evaluate")
    if cfg.DATASETS.TEST and not cfg.FEW_SHOT.TEST.SHOTS:
        raise ValueError("FEW_SHOT.TEST.SHOTS is empty; give the numbers of supports to evaluate with")
    register_datasets_from_cfg(cfg)
    for name in cfg.DATASETS.TEST if args.eval_only else (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        get_records(name)  # so that a missing test set is an error now, not at the first evaluation
    check_writable(cfg.OUTPUT_DIR)
    default_setup(cfg, args)
    start_log(cfg.OUTPUT_DIR)
    hide_tracebacks()
    return cfg


def start_log(output_dir: str | None = None) -> None:
    """Show the log of fss_d2 on the console (main process), and in ``output_dir/log.txt``."""
    from detectron2.utils import comm
    from detectron2.utils.logger import setup_logger

    setup_logger(output_dir, distributed_rank=comm.get_rank(), name="fss_d2")


def run_command(main: Callable[[], object]) -> int:
    """Run a program's main function and return its exit code: 0, or the number that it returns.

    User errors (`_USER_ERRORS`, GPU memory), also those of a spawned process or a data loader's worker,
    become ``error: <one line>`` on the standard error stream and exit code 1. Other errors are bugs and keep
    their traceback, as all do when FSS_D2_TRACEBACK is set. Log handlers that the command added are closed.
    """
    try:
        with closing_log_handlers():
            code = main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        line = None if _traceback_wanted() else one_line(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 1
    return code if isinstance(code, int) else 0


@contextmanager
def closing_log_handlers() -> Iterator[None]:
    """Remove and close, at the end of the block, all log handlers that were added in it.

    Otherwise a second command in the same process would write to the streams of the first.
    """
    before = {handler for logger in _loggers() for handler in logger.handlers}
    try:
        yield
    finally:
        for logger in _loggers():
            for handler in set(logger.handlers) - before:
                logger.removeHandler(handler)
                handler.close()
        if detectron2_logger := sys.modules.get("detectron2.utils.logger"):
            detectron2_logger.setup_logger.cache_clear()  # otherwise the next call adds no handlers
            detectron2_logger._cached_log_stream.cache_clear()


def _loggers() -> list[logging.Logger]:
    """All loggers of the process."""
    named = [entry for entry in logging.root.manager.loggerDict.values() if isinstance(entry, logging.Logger)]
    return [logging.root, *named]


def one_line(error: BaseException) -> str | None:
    """The message of an error that the user can fix, on one line; None for any other error."""
    kind, message = type(error).__name__, _message(error)
    nested = None
    for nested in _LAST_ERROR.finditer(_innermost(message)):
        kind, message = nested.group(1), nested.group(2)
    if kind == _OUT_OF_MEMORY:
        sentence = " ".join(message.split()).split(". ")[0].rstrip(".")
        return f"{sentence}; lower SOLVER.IMS_PER_BATCH or INPUT.FEW_SHOT_SIZE"
    known = kind in _user_error_names() if nested else isinstance(error, _USER_ERRORS)
    if not known:
        return None
    line = " ".join(message.split())
    if kind == "KeyError" and " " not in line:  # a bare key says too little
        line = f"missing key {line} (set {TRACEBACK_VARIABLE}=1 to see where)"
    line = line if len(line) <= _LONGEST_LINE else f"{line[: _LONGEST_LINE - 3]}..."
    return line or f"{kind} (set {TRACEBACK_VARIABLE}=1 to see where)"


def hide_tracebacks() -> None:
    """Keep Detectron2's training loop from logging the traceback of an error that the user can fix."""
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
