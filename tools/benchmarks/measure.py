"""The loop of all benchmarks: runs alternate in a fresh process; their median seconds and peak memory."""

import multiprocessing
import resource
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.benchmark import timer  # waits for the GPU, if there is one

_STATUS = Path("/proc/self/status")  # of Linux


@dataclass(frozen=True)
class Setting:
    """What is measured; each benchmark uses what it needs."""

    size: int  # side of the square images, pixels
    device: str
    threads: int
    repeats: int
    backbone: str = "resnet50"
    config_file: str = ""
    opts: tuple[str, ...] = ()  # config keys and values in turn
    shots: int = 1
    batch: int = 1


@dataclass(frozen=True)
class Prepared:
    """The runs to compare, and a function that returns further numbers after they have been measured."""

    runs: Mapping[str, Callable[[], object]]
    details: Callable[[], Any] = lambda: None


@dataclass(frozen=True)
class Measured:
    """Median seconds of each run, MiB that the first run added at its peak, and the details."""

    seconds: dict[str, float]
    peak_mib: float
    details: Any


@dataclass(frozen=True)
class Report:
    """Tables to print (Markdown), and their numbers for a JSON file."""

    tables: str
    numbers: dict[str, Any]


Prepare = Callable[[Setting], Prepared]


def measure(prepare: Prepare, setting: Setting, *names: str, repeats: int | None = None) -> Measured:
    """Measure runs in a fresh process.

    Args:
        prepare: builds the runs; a module's function, as the process imports it.
        names: of the runs; none means all.
        repeats: rounds after the first one; None takes those of the setting, 0 measures memory only.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure_here, prepare, setting, names, repeats).result()


def measure_here(
    prepare: Prepare, setting: Setting, names: Sequence[str] = (), repeats: int | None = None
) -> Measured:
    """As `measure`, in this process."""
    torch.set_num_threads(setting.threads)
    torch.manual_seed(0)
    prepared = prepare(setting)
    runs = {name: prepared.runs[name] for name in names or prepared.runs}
    first, *others = runs.values()
    peak_mib = added_peak_mib(first, setting.device)
    for run in others:
        run()
    rounds = setting.repeats if repeats is None else repeats
    return Measured(alternate(runs, rounds), peak_mib, prepared.details() if rounds else None)


def alternate(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each run over ``rounds`` rounds of all runs in turn; {} for no round."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            begin = timer()
            run()
            seconds[name].append(timer() - begin)
    return {name: statistics.median(values) for name, values in seconds.items() if values}


def added_peak_mib(run: Callable[[], object], device: str) -> float:
    """MiB by which ``run`` raises the peak of this process (CPU: resident set; GPU: allocated tensors)."""
    before = _peak_bytes(device)
    run()
    return (_peak_bytes(device) - before) / 2**20


def _peak_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if _STATUS.is_file():  # the peak of getrusage is at least that of the process that started this one
        return 1024 * int(_STATUS.read_text().partition("VmHWM:")[2].split()[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Stopwatch:
    """Seconds that runs spend in parts of a model, measured by hooks on its modules.

    A part inside another part counts only for itself. On a GPU every part is waited for. The modules must be
    called: hooks do not see calls of their ``forward``.
    """

    REST = "rest"  # time outside all parts

    def __init__(self, parts: Mapping[str, Iterable[nn.Module]]) -> None:
        self._names = (*parts, self.REST)
        self._laps: dict[str, list[dict[str, float]]] = defaultdict(list)
        self._lap = dict.fromkeys(self._names, 0.0)
        self._open = [self.REST]  # the running parts, innermost last
        self._last = 0.0
        for name, modules in parts.items():
            for module in modules:
                module.register_forward_pre_hook(lambda *_, name=name: self._enter(name))
                module.register_forward_hook(lambda *_: self._leave())

    @contextmanager
    def lap(self, run: str) -> Iterator[None]:
        """Measure the parts of one run; ``run`` names its kind."""
        self._lap = dict.fromkeys(self._names, 0.0)
        self._last = timer()
        yield
        self._charge()
        self._laps[run].append(self._lap)

    def medians(self, run: str) -> dict[str, float]:
        """Median seconds of each part, and of the "rest", over all laps of ``run`` except the first."""
        return {name: statistics.median(lap[name] for lap in self._laps[run][1:]) for name in self._names}

    def seconds(self, run: str) -> float:
        """Median seconds of all parts together, over the same laps as `medians`."""
        return statistics.median(sum(lap.values()) for lap in self._laps[run][1:])

    def _enter(self, name: str) -> None:
        self._charge()
        self._open.append(name)

    def _leave(self) -> None:
        self._charge()
        self._open.pop()

    def _charge(self) -> None:
        now = timer()
        self._lap[self._open[-1]] += now - self._last
        self._last = now


def with_ratios(row: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """The row, and for each number "<key>_ratio", its ratio to the one of ``base``."""
    return {**row, **{f"{k}_ratio": v / max(base[k], 1e-9) for k, v in row.items() if isinstance(v, float)}}


def table(columns: Mapping[str, str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Markdown. ``columns`` has the headers, and how to format a cell from the row's entries."""
    lines = [columns, ["---"] * len(columns), *([c.format(**row) for c in columns.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(cell.strip() for cell in line)} |" for line in lines)
