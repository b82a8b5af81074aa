"""What all programs share: arguments, set-up, one-line errors with exit codes. Its import needs no torch."""

import argparse
import difflib
import itertools
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fss_d2.io.files import expand_user, shortened

from .errors import LOST_PROCESS, TRACEBACK_VARIABLE, one_line, report_to_torchrun, traceback_wanted
from .launch import LaunchPlan
from .run_log import closing_log_handlers, describe_run, hide_tracebacks, quiet_console, start_log
from .signals import Interrupted, raising

if TYPE_CHECKING:
    from detectron2.config import CfgNode

__all__ = ["TRACEBACK_VARIABLE", "Parser", "add_launch_arguments", "add_mask_values", "add_presence"]
__all__ += ["argument_parser"]
__all__ += ["closing_log_handlers", "documented_parser", "hide_tracebacks", "one_line", "parse_command_line"]
__all__ += ["path_option", "plan_from", "remove_half_written", "run_command", "setup", "start_log"]
__all__ += ["suggestion"]

logger = logging.getLogger(__name__)

# The first parts of all config keys. `get_cfg` has them too, but needs seconds to import.
_TOP_LEVEL = (
    *("CUDNN_BENCHMARK", "DATALOADER", "DATASETS", "FEW_SHOT", "FLOAT32_PRECISION", "GLOBAL", "INPUT"),
    *("MODEL", "OUTPUT_DIR", "SEED", "SOLVER", "TEST", "VERSION", "VIS_PERIOD"),
)
_KEY = re.compile(rf"(?:{'|'.join(_TOP_LEVEL)})(?:\.[A-Z0-9_]+)*")  # SEED, SOLVER.BASE_LR; not IMG_7.JPG

# Keys that a resumed training may change without a word, and those that its optimizer does not read again.
_NO_MATTER = ("OUTPUT_DIR ", "MODEL.DEVICE ", "DATALOADER.NUM_WORKERS ", "MODEL.WEIGHTS ")
_OF_OPTIMIZER = (
    *("SOLVER.BASE_LR ", "SOLVER.LR_FACTOR ", "SOLVER.WEIGHT_DECAY", "SOLVER.BIAS_LR_FACTOR "),
    *("SOLVER.MOMENTUM ", "SOLVER.NESTEROV "),
)


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
    note = "do an iteration again whose loss was infinite or NaN: OUTPUT_DIR/failed_episode.json"
    parser.add_argument("--replay", type=path_option, metavar="FILE", help=note)
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


def add_presence(parser: argparse.ArgumentParser) -> None:
    """Add --negative, a list of texts for `fss_d2.label.negatives.read_negatives`, and --present-above."""
    note = (
        "a picture that does not show the object, or a folder of such; a mask <name>_mask.png next to one "
        "marks the region that is meant; without CLASS, of all classes; may be repeated"
    )
    parser.add_argument("--negative", action="append", default=[], metavar="[CLASS=]PATH", help=note)
    note = (
        "probability from which on an object counts as present; 0 finds it in every picture; default: that "
        "of the model"
    )
    parser.add_argument("--present-above", type=float, metavar="P", help=note)


def parse_command_line(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None, *, weights: bool = False
) -> argparse.Namespace:
    """Parse flags and ``KEY VALUE`` pairs (or ``KEY=VALUE``) in any order; the pairs become ``opts``.

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
        key, equals, value = word.partition("=")
        if _KEY.fullmatch(key):
            pairs += [key, value] if equals else [key, *itertools.islice(rest, 1)]
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

    The console gets ten lines about the run, ``log.txt`` also the environment and the whole config. What an
    earlier run in this folder left half-written is removed.

    Args:
        args: what `argument_parser` parses; ``OUTPUT_DIR`` receives ``config.yaml`` and ``log.txt``.

    Raises:
        ValueError: a wrong config, an unknown data set, or an OUTPUT_DIR that cannot be written to.
        FileNotFoundError: a data set has not been prepared; nothing has been written then.
    """
    from detectron2.engine import default_setup
    from detectron2.utils import comm

    from fss_d2.config import load_config
    from fss_d2.data.catalog import get_records, register_datasets_from_cfg
    from fss_d2.io.files import check_writable

    cfg = load_config(args.config_file, args.opts, num_gpus=args.num_gpus)
    if args.eval_only and not cfg.DATASETS.TEST:
        raise ValueError("DATASETS.TEST names no test set; there is nothing to evaluate")
    tested = cfg.DATASETS.TEST if args.eval_only else (*cfg.DATASETS.VALIDATION, *cfg.DATASETS.TEST)
    if tested and not cfg.FEW_SHOT.TEST.SHOTS:
        raise ValueError("FEW_SHOT.TEST.SHOTS is empty; give the numbers of supports to evaluate with")
    register_datasets_from_cfg(cfg)
    for name in tested if args.eval_only else (*cfg.DATASETS.TRAIN, *tested):
        get_records(name)  # so that a missing test set is an error now, not at the first evaluation
    check_writable(cfg.OUTPUT_DIR)
    changed = _changed_since(cfg) if args.resume and not args.eval_only else []
    with quiet_console(cfg.OUTPUT_DIR):
        default_setup(cfg, args)
    start_log(cfg.OUTPUT_DIR)
    hide_tracebacks()
    logger.info("%s", describe_run(cfg, training=not args.eval_only))
    if changed:
        logger.warning("Other keys than in the training that is resumed: %s", "; ".join(changed))
    if any(key.startswith(_OF_OPTIMIZER) for key in changed):
        logger.warning("The optimizer goes on with its own rates: SOLVER.BASE_LR and the like have no effect")
    if comm.is_main_process():
        remove_half_written(Path(cfg.OUTPUT_DIR))
    return cfg


def _changed_since(cfg: "CfgNode") -> list[str]:
    """The keys that differ from those of the training in OUTPUT_DIR, which is resumed."""
    from fss_d2.config import changed_keys

    recorded = Path(cfg.OUTPUT_DIR) / "config.yaml"
    if not (Path(cfg.OUTPUT_DIR) / "last_checkpoint").exists() or not recorded.is_file():
        return []
    try:
        changed = changed_keys(cfg, str(recorded))
    except ValueError as error:  # of another version, or damaged
        return [f"unknown, as {recorded} cannot be read ({error})"]
    return [line for line in changed if not line.startswith(_NO_MATTER)]


def remove_half_written(folder: Path) -> None:
    """Remove the half-written files of killed processes from a folder, not from those below it."""
    from fss_d2.io.files import is_half_written

    for path in filter(is_half_written, folder.glob(".*.tmp")):
        writer = int(path.name.split(".")[-2])
        if writer == os.getpid() or not _is_alive(writer):  # this process has written nothing yet
            path.unlink(missing_ok=True)
            logger.info("Removed %s, half-written by a run that was killed", path)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        return True
    return True


def run_command(main: Callable[[], object]) -> int:
    """Run a program's main function and return its exit code: 0, or the number that it returns.

    User errors (`_USER_ERRORS`, GPU memory), also those of a spawned process or a data loader's worker,
    become ``error: <one line>`` on the standard error stream and exit code 1. Other errors are bugs and keep
    their traceback, as all do when FSS_D2_TRACEBACK is set. SIGTERM, SIGHUP and Ctrl-C end the program with
    one line and exit code 143, 129 or 130. Log handlers that the command added are closed.
    """
    try:
        with raising(), closing_log_handlers():
            code = main()
    except KeyboardInterrupt as error:
        stop = error if isinstance(error, Interrupted) else Interrupted(signal.SIGINT)
        if stop.line and int(os.environ.get("RANK", "0")) == 0:
            print(stop.line, file=sys.stderr)
        return stop.exit_code
    except Exception as error:
        line = None if traceback_wanted() else one_line(error)
        if line is None:
            report_to_torchrun(traceback.format_exc())
            raise
        print(f"error: {line}", file=sys.stderr)
        if not LOST_PROCESS.search(str(error)):  # the process that was lost has the cause
            report_to_torchrun(f"error: {line}")
        return 1
    return code if isinstance(code, int) else 0
