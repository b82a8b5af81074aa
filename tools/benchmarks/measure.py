"""What the benchmarks share: fresh processes, alternating runs, the time of a model's parts, peak memory."""

import multiprocessing
import resource
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fss_d2.modeling.backbone import FeatureBackbone, ResNetBackbone, SwinBackbone

BACKBONES: dict[str, Callable[[], FeatureBackbone]] = {
    "resnet50": lambda: ResNetBackbone(depth=50),
    "resnet101": lambda: ResNetBackbone(depth=101),
    "swin_base": lambda: SwinBackbone(size="base"),
}


@dataclass(frozen=True)
class Setting:
    """What is measured, and how often."""

    backbone: str
    size: int
    device: str
    threads: int
    repeats: int


@dataclass(frozen=True)
class Report:
    """What a benchmark prints (Markdown), and its numbers for a JSON file."""

    tables: str
    numbers: dict[str, Any]


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return ``function(*arguments)``, computed in a process that has done nothing before.

    Raises:
        BrokenProcessPool: the process died, of too little memory for example.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def start(setting: Setting) -> None:
    """Set threads and seed, as every measuring process does first."""
    torch.set_num_threads(setting.threads)
    torch.manual_seed(0)


def alternate(
    runs: Mapping[str, Callable[[], object]], *, repeats: int, device: str, warm_up: bool = True
) -> dict[str, float]:
    """Median seconds of each run over ``repeats`` rounds of all runs in turn, after one to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(-warm_up, repeats):
        for name, run in runs.items():
            begin = _now(device)
            run()
            end = _now(device)
            if repeat >= 0:
                seconds[name].append(end - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


class Stopwatch:
    """Seconds that runs spend in parts of a model, taken by hooks on its modules.

    A part inside another counts for itself alone. On a GPU each part is waited for.

    Args:
        parts: the modules of each part; they must be called as modules, not by ``forward``.
        device: "cpu" or "cuda".
    """

    REST = "rest"  # what is in none of the parts

    def __init__(self, parts: Mapping[str, Iterable[nn.Module]], device: str) -> None:
        self._device = device
        self._names = (*parts, self.REST)
        self._laps: dict[str, list[dict[str, float]]] = defaultdict(list)
        self._lap = dict.fromkeys(self._names, 0.0)
        self._open = [self.REST]  # the parts being run, innermost last
        self._last = 0.0
        for name, modules in parts.items():
            for module in modules:
                module.register_forward_pre_hook(lambda *_, name=name: self._enter(name))
                module.register_forward_hook(lambda *_: self._leave())

    @contextmanager
    def lap(self, run: str) -> Iterator[None]:
        """Time the parts of one run; ``run`` names the kind of run that it belongs to."""
        self._lap = dict.fromkeys(self._names, 0.0)
        self._last = _now(self._device)
        yield
        self._charge()
        self._laps[run].append(self._lap)

    def medians(self, run: str) -> dict[str, float]:
        """Median seconds of each part, and of the "rest", over all laps of ``run`` but the first."""
        laps = self._laps[run][1:]
        return {name: statistics.median(lap[name] for lap in laps) for name in self._names}

    def _enter(self, name: str) -> None:
        self._charge()
        self._open.append(name)

    def _leave(self) -> None:
        self._charge()
        self._open.pop()

    def _charge(self) -> None:
        now = _now(self._device)
        self._lap[self._open[-1]] += now - self._last
        self._last = now


def added_peak_mib(run: Callable[[], object], device: str) -> float:
    """MiB by which ``run`` raises this process's peak (CPU: resident set; GPU: allocated tensors)."""
    before = _peak_bytes(device)
    run()
    return (_peak_bytes(device) - before) / 2**20


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _peak_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
