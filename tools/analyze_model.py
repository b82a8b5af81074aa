#!/usr/bin/env python
"""What a method costs: parameters, FLOPs, activations, latency and peak memory, against the supports K.

    python tools/analyze_model.py --config-file configs/dcama/pascal5i_swinb.yaml --shots 1 2 3 4 5
    python tools/analyze_model.py --config-file configs/jc2a/pascal5i_r50.yaml --shots 1 5 \\
        --row "MODEL.JC2A.ATTENTION softmax" --row "MODEL.JC2A.ATTENTION linear"

The models of several configs, and of several rows of KEY VALUE pairs, are in one table and one plot.
The weights are random and the images noise. fvcore counts FLOPs and activations, of K supports that are
encoded and of the query that is segmented with them; a multiplication with its addition is one FLOP. Latency
is the median of whole episodes; peak memory is what the first one adds in a fresh process (CPU: resident set;
GPU: allocated tensors). "speed" is relative to the first row.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fss_d2.engine.command_line import documented_parser, parse_command_line, path_option, run_command
from fss_d2.io.files import json_text, write_atomic

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where this file is not run as a script


def parse_args(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = documented_parser(__doc__)
    add = parser.add_argument
    add("--config-file", nargs="+", required=True, metavar="FILE", help="one or more")
    add("--row", action="append", default=[], metavar="PAIRS", help="KEY VALUE pairs of a row; repeat it")
    add("--shots", type=int, nargs="+", default=[1, 5], metavar="K", help="default: 1 5")
    add("--size", type=int, metavar="PIXELS", help="side of the images; default: INPUT.FEW_SHOT_SIZE")
    add("--device", choices=("cpu", "cuda"), help="default: a GPU, if there is one")
    add("--threads", type=int, help="default: as torch chooses")
    add("--repeats", type=int, default=5)
    add("--output", type=path_option, metavar="FILE", help="JSON file for the numbers")
    add("--plot", type=path_option, metavar="FILE", help="PNG file of latency and memory against K")
    args = parse_command_line(parser, arguments)
    import torch

    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    args.threads = torch.get_num_threads() if args.threads is None else args.threads
    if min(*args.shots, args.threads, args.repeats, args.size or 1) < 1:
        parser.error("--shots, --size, --threads and --repeats must be at least 1")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here")
    return args


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table, write numbers and plot; return the exit code."""
    args = parse_args(arguments)
    from benchmarks import analysis
    from benchmarks.measure import Setting

    from fss_d2.config import load_config
    from fss_d2.visualization import save_picture

    size = args.size or max(load_config(args.config_file[0], args.opts).INPUT.FEW_SHOT_SIZE)
    setting = Setting(
        size, args.device, args.threads, args.repeats, opts=tuple(args.opts), shots=args.shots[0]
    )
    settings = analysis.variants(setting, args.config_file, args.row)
    rows = analysis.analyse_all(settings, args.shots)
    print(f"{size}x{size}, {args.device}, {args.threads} threads\n\n{analysis.report_table(rows)}")
    if args.output:
        content = {"arguments": vars(args) | {"size": size}, "results": rows}
        write_atomic(args.output, (json_text(content, indent=1, default=str) + "\n").encode())
    if args.plot:
        save_picture(args.plot, analysis.plot(rows))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
