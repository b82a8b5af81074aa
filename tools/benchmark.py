#!/usr/bin/env python
"""Time and memory of DCAMA with its attention maps written out, and with fused attention.

Both run on this machine, each case in a process of its own, with random weights and noise for images:

    python tools/benchmark.py --shots 1 5 --size 384 --output benchmark.json

Peak memory is what the forward pass adds to the process (CPU: resident set; GPU: allocated tensors).
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from fss_d2.modeling import DCAMA
from fss_d2.modeling.backbone import ResNetBackbone, SwinBackbone

BACKBONES: dict[str, Callable[[], torch.nn.Module]] = {
    "resnet50": lambda: ResNetBackbone(depth=50),
    "resnet101": lambda: ResNetBackbone(depth=101),
    "swin_base": lambda: SwinBackbone(size="base"),
}


@dataclass(frozen=True)
class Case:
    """What is measured."""

    backbone: str
    shots: int
    size: int
    fused: bool
    device: str
    threads: int
    repeats: int


@dataclass(frozen=True)
class Measurement:
    """What came out: seconds (median) of a whole episode and of its backbone, MiB added at the peak."""

    seconds: float
    backbone_seconds: float
    peak_mib: float


def measure(case: Case) -> Measurement:
    """Run a case in a fresh process, so that no other case's memory is counted."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_measure_here, (case,))


@torch.inference_mode()
def _measure_here(case: Case) -> Measurement:
    torch.set_num_threads(case.threads)
    torch.manual_seed(0)
    device = torch.device(case.device)
    model = DCAMA(backbone=BACKBONES[case.backbone](), head={"fused": case.fused}).eval().to(device)
    side, shots = case.size, case.shots
    images = torch.rand(1, shots, 3, side, side, device=device)
    masks = (torch.rand(1, shots, side, side, device=device) > 0.5).to(torch.uint8)
    query = torch.rand(1, 3, side, side, device=device)

    def episode() -> None:
        model.segment(query, model.encode_support(images, masks))

    def backbone() -> None:
        model.extract(images.flatten(0, 1))
        model.extract(query)

    model.extract(query[..., :32, :32])  # loads libraries, which are not the forward pass's memory
    before = _peak_bytes(device)
    episode()
    peak = _peak_bytes(device) - before
    seconds = _median_seconds(episode, case.repeats, device)
    return Measurement(seconds, _median_seconds(backbone, case.repeats, device), peak / 2**20)


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _median_seconds(run: Callable[[], None], repeats: int, device: torch.device) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def table(results: list[tuple[Case, Measurement]]) -> str:
    """Markdown: plain and fused of each number of shots, and fused over plain."""
    lines = [
        "| shots | attention | seconds | of which backbone | peak MiB | time ratio | memory ratio |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    plain = {case.shots: result for case, result in results if not case.fused}
    for case, result in results:
        reference = plain[case.shots]
        lines.append(
            f"| {case.shots} | {'fused' if case.fused else 'plain'} | {result.seconds:.2f} "
            f"| {result.backbone_seconds:.2f} ({result.backbone_seconds / result.seconds:.0%}) "
            f"| {result.peak_mib:.0f} | {result.seconds / reference.seconds:.2f} "
            f"| {result.peak_mib / max(reference.peak_mib, 1e-9):.2f} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table, write the numbers; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", choices=sorted(BACKBONES), default="resnet50")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--size", type=int, default=384, help="side of the square images, pixels")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="JSON file for the numbers")
    args = parser.parse_args(arguments)
    if args.output and not args.output.parent.is_dir():
        parser.error(f"folder {args.output.parent} does not exist: make it first")
    results = []
    for shots in args.shots:
        for fused in (False, True):
            case = Case(args.backbone, shots, args.size, fused, args.device, args.threads, args.repeats)
            results.append((case, measure(case)))
    print(f"DCAMA, {args.backbone}, {args.size}x{args.size}, {args.device}, {args.threads} threads\n")
    print(table(results))
    if args.output:
        rows = [asdict(case) | asdict(result) for case, result in results]
        args.output.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
