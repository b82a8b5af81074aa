#!/usr/bin/env python
"""Time and memory of a method on this machine, with random weights and images of noise.

    python tools/benchmark.py --shots 1 5 --size 384 --output benchmark.json     # DCAMA's attention
    python tools/benchmark.py --method hsnet                                     # HSNet next to DCAMA
    python tools/benchmark.py --method proposals --size 480                      # the proposal segmenter
    python tools/benchmark.py --method model --config-file configs/danet/pascal5i_r50.yaml --batch 4
    python tools/benchmark.py --method predictor --config-file configs/dcama/pascal5i_r50.yaml

dcama: attention maps written out, and fused attention; a whole episode, and a query whose supports have been
encoded before. hsnet: HSNet in the same terms, next to DCAMA on the same backbone. proposals: the proposal
segmenter (stage 1 of MM-Former, published sizes), with its deformable attention sampled by ``grid_sample``
and by gathered rows; the table shows the time of each part. model: a training step and an inference of the
model of a config, for a batch of episodes. predictor: supports that are encoded once for many images, and
supports that are encoded again for every image.

Times are medians. The runs that are compared alternate in one process, so that other work on the machine
affects all of them. Peak memory is what the first run adds in a fresh process (CPU: resident set; GPU:
allocated tensors).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fss_d2.engine.command_line import documented_parser, path_option, run_command
from fss_d2.io.files import json_text, write_atomic

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where this file is not run as a script

if TYPE_CHECKING:  # imported late, so that --help is quick
    from benchmarks.measure import Report

TITLES = {
    **{"dcama": "DCAMA", "hsnet": "HSNet next to DCAMA", "proposals": "Proposal segmenter"},
    **{"model": "Model", "predictor": "Predictor"},
}
SIZES = {"dcama": 384, "hsnet": 384, "proposals": 480, "model": 473, "predictor": 384}
BACKBONES = ("resnet101", "resnet50", "swin_base")  # of benchmarks.cases
WITH_CONFIG = ("model", "predictor")


def parse_args(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = documented_parser(__doc__)
    parser.add_argument("--method", choices=sorted(TITLES), default="dcama")
    add = parser.add_argument
    add("--backbone", choices=BACKBONES, help="(default: resnet50)")
    add("--shots", type=int, nargs="+", help="of dcama, hsnet, predictor (default: 1 5); one of model (1)")
    add("--config-file", type=path_option, help="of model, predictor")
    add("--batch", type=int, help="episodes at once, of model (default: 1)")
    add("--inference-only", action="store_true", help="of model: no training step")
    add("--size", type=int, help=f"side of the square images, pixels (default: {SIZES})")
    add("--device", choices=("cpu", "cuda"), help="default: a GPU, if there is one")
    add("--threads", type=int, help="default: as torch chooses")
    add("--repeats", type=int, default=5)
    add("--output", type=path_option, help="JSON file for the numbers")
    args = parser.parse_args(arguments)
    _check_method(parser, args)
    import torch

    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    args.threads = torch.get_num_threads() if args.threads is None else args.threads
    args.backbone, args.batch = args.backbone or "resnet50", args.batch if args.batch is not None else 1
    args.shots = args.shots or ([1] if args.method == "model" else [1, 5])
    args.size = SIZES[args.method] if args.size is None else args.size
    if min(*args.shots, args.size, args.threads, args.repeats, args.batch) < 1:
        parser.error("--shots, --size, --threads, --repeats and --batch must be at least 1")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here")
    if args.output and args.output.is_dir():
        parser.error(f"--output {args.output} is a folder; name a file")
    if args.output and not args.output.parent.is_dir():
        parser.error(f"--output: folder {args.output.parent} does not exist; make it first")
    return args


def _check_method(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse arguments that belong to another method."""
    if args.shots and args.method == "proposals":
        parser.error("--shots: proposals need no supports; leave it out, or choose another --method")
    if args.method != "model" and (args.batch is not None or args.inference_only):
        parser.error("--batch and --inference-only: choose --method model")
    if args.method not in WITH_CONFIG:
        if args.config_file:
            parser.error(f"--config-file: choose --method {' or '.join(WITH_CONFIG)}")
        return
    if args.backbone:
        parser.error("--backbone: the config names its own; leave it out")
    if args.config_file is None or not args.config_file.is_file():
        parser.error(f"--config-file is {args.config_file}: name an existing config of configs/")
    if args.method == "model" and args.shots and len(args.shots) > 1:
        parser.error(f"--shots {args.shots}: give one number with --method model")


def measure(args: argparse.Namespace) -> Report:
    """Run the benchmark of a method."""
    from benchmarks import cases
    from benchmarks.measure import Setting

    options = {"backbone": args.backbone, "config_file": str(args.config_file or ""), "batch": args.batch}
    setting = Setting(args.size, args.device, args.threads, args.repeats, shots=args.shots[0], **options)
    if args.method == "model":
        return cases.model(setting, training=not args.inference_only)
    if args.method == "proposals":
        return cases.proposals(setting)
    return getattr(cases, args.method)(setting, args.shots)


def _heading(args: argparse.Namespace) -> str:
    what = str(args.config_file or args.backbone)
    what += f", {args.batch} episodes of {args.shots[0]} supports" if args.method == "model" else ""
    return f"{TITLES[args.method]}, {what}, {args.size}x{args.size}, {args.device}, {args.threads} threads"


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table, write the numbers; return the exit code."""
    args = parse_args(arguments)
    print(f"measuring {args.method} ...", file=sys.stderr, flush=True)
    report = measure(args)
    print(f"{_heading(args)}\n\n{report.tables}")
    if args.output:
        content = {"arguments": vars(args) | {"output": None}, **report.numbers}
        write_atomic(args.output, (json_text(content, indent=1, default=str) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
