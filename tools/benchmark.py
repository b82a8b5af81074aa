#!/usr/bin/env python
"""Time and memory of DCAMA with its attention maps written out, and with fused attention.

Both run on this machine with random weights, and noise for images:

    python tools/benchmark.py --shots 1 5 --size 384 --output benchmark.json

Times are medians of runs that alternate between the two in one process, so that other work on the machine
weighs on both: a whole episode, and a query whose supports are encoded already. Peak memory is what one
episode adds to a process of its own (CPU: resident set; GPU: allocated tensors).
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
from typing import Any

import torch

from fss_d2.modeling import DCAMA
from fss_d2.modeling.backbone import ResNetBackbone, SwinBackbone

BACKBONES: dict[str, Callable[[], torch.nn.Module]] = {
    "resnet50": lambda: ResNetBackbone(depth=50),
    "resnet101": lambda: ResNetBackbone(depth=101),
    "swin_base": lambda: SwinBackbone(size="base"),
}


@dataclass(frozen=True)
class Setting:
    """What is measured."""

    backbone: str
    shots: int
    size: int
    device: str
    threads: int
    repeats: int


@dataclass(frozen=True)
class Result:
    """What came out: median seconds of an episode, of its query alone, and of the backbone on all images."""

    shots: int
    attention: str
    seconds: float
    query_seconds: float
    backbone_seconds: float
    peak_mib: float


def measure(setting: Setting) -> list[Result]:
    """Measure plain and fused attention, in fresh processes."""
    seconds = _in_fresh_process(_seconds, setting)
    return [
        Result(
            shots=setting.shots,
            attention=attention,
            seconds=seconds[attention],
            query_seconds=seconds[f"{attention} query"],
            backbone_seconds=seconds["backbone"],
            peak_mib=_in_fresh_process(_peak_mib, setting, attention == "fused"),
        )
        for attention in ("plain", "fused")
    ]


def _in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


@torch.inference_mode()
def _seconds(setting: Setting) -> dict[str, float]:
    """Median seconds of "plain", "plain query", "fused", "fused query" and "backbone"."""
    model, images, masks, query = _prepare(setting)
    support = model.encode_support(images, masks)

    def segment(fused: bool, encode: bool) -> None:
        for attention in model.head.attention.values():
            attention.fused = fused
        model.segment(query, model.encode_support(images, masks) if encode else support)

    def backbone() -> None:
        for image in (*images.split(1, dim=1), query[:, None]):
            model.extract(image[:, 0])

    runs = {
        "plain": lambda: segment(False, True),
        "fused": lambda: segment(True, True),
        "plain query": lambda: segment(False, False),
        "fused query": lambda: segment(True, False),
        "backbone": backbone,
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(setting.repeats + 1):  # the first round warms up
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if setting.device == "cuda":
                torch.cuda.synchronize()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


@torch.inference_mode()
def _peak_mib(setting: Setting, fused: bool) -> float:
    """MiB that one episode adds at its peak."""
    model, images, masks, query = _prepare(setting, fused)
    before = _peak_bytes(setting.device)
    model.segment(query, model.encode_support(images, masks))
    return (_peak_bytes(setting.device) - before) / 2**20


def _prepare(setting: Setting, fused: bool = True) -> tuple[DCAMA, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A model, support images and masks, and a query, on the device."""
    torch.set_num_threads(setting.threads)
    torch.manual_seed(0)
    model = DCAMA(backbone=BACKBONES[setting.backbone](), head={"fused": fused}).eval()
    model = model.to(setting.device)
    shape = (setting.size, setting.size)
    images = torch.rand(1, setting.shots, 3, *shape, device=setting.device)
    masks = (torch.rand(1, setting.shots, *shape, device=setting.device) > 0.5).to(torch.uint8)
    query = torch.rand(1, 3, *shape, device=setting.device)
    model.extract(query[..., :32, :32])  # loads libraries, which are not the episode's memory
    return model, images, masks, query


def _peak_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def table(results: list[Result]) -> str:
    """Markdown: plain and fused of each number of shots, and their ratios."""
    lines = [
        "| shots | attention | episode, s | of which backbone | query alone, s | peak MiB "
        "| episode ratio | query ratio | memory ratio |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    plain = {result.shots: result for result in results if result.attention == "plain"}
    for r in results:
        base = plain[r.shots]
        lines.append(
            f"| {r.shots} | {r.attention} | {r.seconds:.2f} "
            f"| {r.backbone_seconds:.2f} ({r.backbone_seconds / r.seconds:.0%}) "
            f"| {r.query_seconds:.2f} | {r.peak_mib:.0f} "
            f"| {r.seconds / base.seconds:.2f} | {r.query_seconds / base.query_seconds:.2f} "
            f"| {r.peak_mib / max(base.peak_mib, 1e-9):.2f} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table, write the numbers; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", choices=sorted(BACKBONES), default="resnet50")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--size", type=int, default=384, help="side of the square images, pixels")
    devices = ("cpu", "cuda")
    parser.add_argument("--device", choices=devices, default=devices[torch.cuda.is_available()])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="JSON file for the numbers")
    args = parser.parse_args(arguments)
    if min(*args.shots, args.size, args.threads, args.repeats) < 1:
        parser.error("--shots, --size, --threads and --repeats must be at least 1")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here")
    if args.output and args.output.is_dir():
        parser.error(f"--output {args.output} is a folder: name a file")
    if args.output and not args.output.parent.is_dir():
        parser.error(f"--output: folder {args.output.parent} does not exist: make it first")
    results = []
    for shots in args.shots:
        print(f"measuring {shots} shot ...", file=sys.stderr, flush=True)
        setting = Setting(args.backbone, shots, args.size, args.device, args.threads, args.repeats)
        results += measure(setting)
    print(f"DCAMA, {args.backbone}, {args.size}x{args.size}, {args.device}, {args.threads} threads\n")
    print(table(results))
    if args.output:
        content = {"arguments": vars(args) | {"output": None}, "results": [asdict(r) for r in results]}
        args.output.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
