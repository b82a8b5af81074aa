#!/usr/bin/env python
"""Time and memory of a method on this machine, with random weights, and noise for images.

    python tools/benchmark.py --shots 1 5 --size 384 --output benchmark.json     # DCAMA's attention
    python tools/benchmark.py --method proposals --size 480                      # the proposal segmenter

DCAMA runs with its attention maps written out, and with fused attention: a whole episode, and a query whose
supports are encoded already. The proposal segmenter (MM-Former's stage 1, published sizes) runs with its
deformable attention sampled by ``grid_sample``, and by gathered rows; the table says where the time goes.

Times are medians of runs that alternate between the two in one process, so that other work on the machine
weighs on both. Peak memory is what one run adds to a process of its own (CPU: resident set; GPU: allocated
tensors).
"""

import argparse
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where this file is not run as a script
from benchmarks import dcama, proposals
from benchmarks.measure import BACKBONES, Report, Setting

TITLES = {"dcama": "DCAMA", "proposals": "Proposal segmenter"}
SIZES = {"dcama": 384, "proposals": 480}


def parse_args(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--method", choices=sorted(TITLES), default="dcama")
    parser.add_argument("--backbone", choices=sorted(BACKBONES), default="resnet50")
    parser.add_argument("--shots", type=int, nargs="+", help="of dcama (default: 1 5)")
    parser.add_argument("--size", type=int, help=f"side of the square images, pixels (default: {SIZES})")
    devices = ("cpu", "cuda")
    parser.add_argument("--device", choices=devices, default=devices[torch.cuda.is_available()])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="JSON file for the numbers")
    args = parser.parse_args(arguments)
    if args.shots and args.method == "proposals":
        parser.error("--shots: proposals need no supports; leave it out, or choose --method dcama")
    args.shots = args.shots or [1, 5]
    args.size = SIZES[args.method] if args.size is None else args.size
    if min(*args.shots, args.size, args.threads, args.repeats) < 1:
        parser.error("--shots, --size, --threads and --repeats must be at least 1")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here")
    if args.output and args.output.is_dir():
        parser.error(f"--output {args.output} is a folder: name a file")
    if args.output and not args.output.parent.is_dir():
        parser.error(f"--output: folder {args.output.parent} does not exist: make it first")
    return args


def measure(args: argparse.Namespace) -> Report:
    """Run the benchmark of a method."""
    setting = Setting(args.backbone, args.size, args.device, args.threads, args.repeats)
    return proposals.measure(setting) if args.method == "proposals" else dcama.measure(setting, args.shots)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table, write the numbers; return the exit code."""
    args = parse_args(arguments)
    print(f"measuring {args.method} ...", file=sys.stderr, flush=True)
    report = measure(args)
    title, size = TITLES[args.method], f"{args.size}x{args.size}"
    print(f"{title}, {args.backbone}, {size}, {args.device}, {args.threads} threads\n")
    print(report.tables)
    if args.output:
        content = {"arguments": vars(args) | {"output": None}, **report.numbers}
        args.output.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
