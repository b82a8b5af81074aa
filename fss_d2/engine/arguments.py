"""Command line and config of the programs that train and evaluate."""

import argparse
import difflib
import itertools
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode

from fss_d2.config import get_cfg

from .launch import LaunchPlan

__all__ = ["add_launch_arguments", "argument_parser", "load_config", "parse_command_line", "plan_from"]

_DOTTED_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)+")  # SOLVER.BASE_LR
# Numbers whose use says nothing clear, or comes late, when they are too small.
_LEAST = {
    "SOLVER.CHECKPOINT_PERIOD": 1,
    "SOLVER.LOG_PERIOD": 1,
    "DATALOADER.NUM_WORKERS": 0,
    "FEW_SHOT.SEED": 0,
    "FEW_SHOT.TEST.SEED": 0,
    "FEW_SHOT.TEST.EPISODES": 0,
    "TEST.PERIODIC_EPISODES": 0,
    "TEST.PICTURES": 0,
    "MODEL.DCAMA.NUM_HEADS": 1,
    "INPUT.QUERY_MIN_PIXELS": 0,
    "INPUT.SUPPORT_MIN_PIXELS": 0,
    "INPUT.REDRAWS": 0,
    "MODEL.DCAMA.REGION_PIXELS": 0,
    "MODEL.PROPOSALS.NUM_QUERIES": 1,
    "MODEL.PROPOSALS.LOSS.NUM_POINTS": 1,
    "MODEL.PROPOSALS.LOSS.FEW_SHOT_RANK": 1,
    "MODEL.MM_FORMER.MEMORY_SIDE": 1,
    "MODEL.MM_FORMER.NUM_HEADS": 1,
}


def argument_parser(description: str) -> argparse.ArgumentParser:
    """The arguments of Detectron2's programs; parse them with `parse_command_line`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="YAML config")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, do not train")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR, if there is one"
    )
    add_launch_arguments(parser)
    return parser


def parse_command_line(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None
) -> argparse.Namespace:
    """Parse flags and ``KEY VALUE`` pairs in any order; the pairs become ``opts``.

    Args:
        parser: knows the flags; gets the positional "opts" added.
        arguments: None takes those of the process.
    """
    parser.add_argument(
        "opts", nargs="*", metavar="KEY VALUE", help="config keys to change, SOLVER.BASE_LR 0.01 for example"
    )
    top_level = get_cfg()
    flags, pairs = [], []
    rest = iter(sys.argv[1:] if arguments is None else arguments)
    for word in rest:
        # Taken out beforehand, as a flag of several values ("--folds 0 1 KEY VALUE") would swallow them.
        if _DOTTED_KEY.fullmatch(word) or word in top_level:
            pairs += [word, *itertools.islice(rest, 1)]
        else:
            flags.append(word)
    args = parser.parse_intermixed_args(flags)
    args.opts += pairs
    return args


def add_launch_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say how many processes run, and where."""
    group = parser.add_argument_group("processes (not needed under torchrun)")
    group.add_argument(
        "--num-gpus", type=int, metavar="N", help="GPUs per machine; default: 1 if there is one"
    )
    group.add_argument(
        "--num-processes", type=int, default=1, metavar="N", help="CPU processes per machine, without GPUs"
    )
    group.add_argument("--num-machines", type=int, default=1, metavar="N")
    group.add_argument("--machine-rank", type=int, default=0, metavar="R", help="0 to N-1")
    group.add_argument(
        "--dist-url", default="auto", metavar="URL", help="tcp://HOST:PORT of machine 0, for several machines"
    )


def plan_from(args: argparse.Namespace) -> LaunchPlan:
    """The plan that the arguments of `add_launch_arguments` describe.

    Raises:
        ValueError: the arguments contradict each other, or ask for GPUs that are not there.
    """
    return LaunchPlan(
        num_gpus=args.num_gpus,
        num_processes=args.num_processes,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
    )


def load_config(config_file: str, opts: Sequence[str] = (), *, num_gpus: int | None = None) -> CfgNode:
    """Read a config file with its bases, apply ``KEY VALUE`` pairs, and freeze.

    Args:
        config_file: a YAML file.
        opts: keys and values in turn.
        num_gpus: 0 puts the model on the CPU, as does a machine without GPU.

    Raises:
        FileNotFoundError: no such file, or no such base.
        ValueError: an unknown key (the message has the closest one), a value of the wrong type, YAML that
            does not parse, a key without value, a number below what its key allows.
    """
    cfg = get_cfg()
    loaded = _read_yaml(config_file)
    for key in _keys(loaded):
        _check_key(cfg, key, config_file)
    try:
        cfg.merge_from_other_cfg(CfgNode(loaded))
    except (ValueError, AssertionError) as error:
        raise ValueError(f"{config_file}: {error}") from error
    if len(opts) % 2:
        raise ValueError(f"{opts[-1]} has no value; give config keys and values in pairs: KEY VALUE")
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        _check_key(cfg, key, "command line")
        try:
            cfg.merge_from_list([key, value])
        except (ValueError, AssertionError) as error:
            raise ValueError(f"command line: {key} {value}: {error}") from error
    if num_gpus == 0 or not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    _check_limits(cfg)
    cfg.freeze()
    return cfg


def _check_limits(cfg: CfgNode) -> None:
    for key, least in _LEAST.items():
        value: Any = cfg
        for part in key.split("."):
            value = value[part]
        if value < least:
            raise ValueError(f"{key} is {value}; it must be at least {least}")


def _read_yaml(config_file: str) -> dict[str, Any]:
    if not os.path.isfile(config_file):
        raise FileNotFoundError(f"config file {config_file} does not exist")
    try:
        loaded = CfgNode.load_yaml_with_base(config_file)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{config_file}: its _BASE_ {error.filename} does not exist") from error
    except (yaml.YAMLError, TypeError, AssertionError, ValueError, RecursionError) as error:
        raise ValueError(f"{config_file}: not a config: {error}") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{config_file}: not a config: it holds no keys")
    return loaded


def _keys(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The full names of all leaves."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _check_key(cfg: CfgNode, key: str, where: str) -> None:
    node: Any = cfg
    for part in key.split("."):
        if not isinstance(node, CfgNode) or part not in node:
            break
        node = node[part]
    else:
        if isinstance(node, CfgNode):
            raise ValueError(
                f"{where}: {key} is a group of keys; give one of them, like {key}.{next(iter(node))}"
            )
        return
    known = {name.upper(): name for name in _keys(cfg)}
    close = difflib.get_close_matches(key.upper(), known, n=1)
    hint = f"did you mean {known[close[0]]}?" if close else "fss_d2/config lists ours"
    raise ValueError(f"{where}: there is no config key {key}; {hint}")
