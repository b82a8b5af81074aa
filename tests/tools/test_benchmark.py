"""The benchmarks: tiny runs, tables by hand, the stopwatch, and arguments that are refused."""

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

ROOT = Path(__file__).parents[2]
Import = Callable[[str], ModuleType]
Run = Callable[..., tuple[list[str], dict]]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Import:
    """Import modules as ``python tools/benchmark.py`` does."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module


def _run(output: Path, *words: str) -> tuple[list[str], dict]:
    """Run the command at 32x32; the lines that it prints and the numbers that it writes."""
    command = [sys.executable, ROOT / "tools" / "benchmark.py", "--size", "32", "--device", "cpu"]
    options = ["--threads", "1", "--repeats", "1", "--output", output]
    done = subprocess.run([*command, *options, *words], capture_output=True, text=True, cwd=ROOT, check=True)
    return done.stdout.splitlines(), json.loads(output.read_text())


@pytest.fixture
def run_here(load: Import, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """As `_run`, in this process instead of a fresh one for each measurement, which takes long to import."""
    cases, measure = load("benchmarks.cases"), load("benchmarks.measure")

    def here(prepare: Callable, setting: object, *names: str, repeats: int | None = None) -> object:
        return measure.measure_here(prepare, setting, names, repeats)

    def run(output: Path, *words: str) -> tuple[list[str], dict]:
        monkeypatch.setattr(cases, "measure", here)
        options = ["--size", "32", "--device", "cpu", "--threads", "1", "--repeats", "1"]
        assert load("benchmark").main([*options, "--output", str(output), *words]) == 0
        return capsys.readouterr().out.splitlines(), json.loads(output.read_text())

    return run


def test_a_tiny_run_prints_ratios_and_writes_numbers(run_here: Run, tmp_path: Path) -> None:
    lines, numbers = run_here(tmp_path / "numbers.json", "--shots", "2")
    assert lines[0] == "DCAMA, resnet50, 32x32, cpu, 1 threads"
    plain, fused = (line.split(" | ") for line in lines[-2:])
    assert (plain[1], plain[6], fused[1]) == ("plain", "1.00", "fused")
    rows = numbers["results"]
    assert [row["attention"] for row in rows] == ["plain", "fused"]
    assert all(0 < row["backbone_seconds"] < 60 and 0 < row["seconds"] < 60 for row in rows)


def test_a_tiny_run_of_hsnet(run_here: Run, tmp_path: Path) -> None:
    lines, numbers = run_here(tmp_path / "numbers.json", "--method", "hsnet", "--shots", "2")
    assert lines[0] == "HSNet next to DCAMA, resnet50, 32x32, cpu, 1 threads"
    assert [row["method"] for row in numbers["results"]] == ["DCAMA", "HSNet"]
    assert all(0 < row["query_seconds"] < 60 for row in numbers["results"])
    first, second = (line.split(" | ") for line in lines[-2:])
    assert (first[1], first[6], second[1]) == ("DCAMA", "1.00", "HSNet")


def test_a_tiny_run_of_the_proposal_segmenter(run_here: Run, tmp_path: Path) -> None:
    lines, numbers = run_here(tmp_path / "numbers.json", "--method", "proposals")
    assert lines[0] == "Proposal segmenter, resnet50, 32x32, cpu, 1 threads"
    assert numbers["arguments"]["method"] == "proposals"
    grid, gather = numbers["results"]
    assert (grid["sampling"], gather["sampling"]) == ("grid", "gather")
    for row in (grid, gather):
        parts = row["part_seconds"]
        assert all(seconds > 0 for seconds in parts.values())
        assert sum(parts.values()) == pytest.approx(row["seconds"])  # of a single run
        assert row["attention_seconds"] > 0 and row["training_seconds"] > 0
    assert 0 <= numbers["differences"]["output"] < 1e-5
    assert 0 <= numbers["differences"]["gradients_relative"] < 1e-5


def test_a_tiny_run_of_the_model_of_a_config(tmp_path: Path) -> None:
    config = "configs/danet/glyphs_efficientnet_lite0.yaml"
    words = ("--method", "model", "--config-file", config, "--batch", "2")
    lines, numbers = _run(tmp_path / "numbers.json", *words)
    assert lines[0] == f"Model, {config}, 2 episodes of 1 supports, 32x32, cpu, 1 threads"
    assert [row["run"] for row in numbers["results"]] == ["training step", "inference"]
    assert all(0 < row["seconds"] < 60 and row["peak_mib"] >= 0 for row in numbers["results"])
    assert lines[3] == "| --- | --- | --- |" and lines[-1] == numbers["note"]


def test_a_tiny_run_of_the_predictor(tmp_path: Path) -> None:
    config = "configs/dcama/glyphs_efficientnet_lite0.yaml"
    words = ("--method", "predictor", "--config-file", config, "--shots", "3")
    lines, numbers = _run(tmp_path / "numbers.json", *words)
    assert lines[0] == f"Predictor, {config}, 32x32, cpu, 1 threads"
    assert [row["shots"] for row in numbers["results"]] == [3]
    assert all(0 < seconds < 60 for row in numbers["results"] for seconds in list(row.values())[1:])
    assert len({line.count("|") for line in lines[2:]}) == 1


def test_the_predictor_encodes_where_it_says(load: Import, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round is set_support, two queries, and both again; the clock here counts the encoded supports."""
    cases, measure = load("benchmarks.cases"), load("benchmarks.measure")
    encoded, build = [], cases.build

    def counted(cfg: object) -> nn.Module:
        model = build(cfg)
        inner = model.encode_support
        monkeypatch.setattr(model, "encode_support", lambda *x: (encoded.extend(x[0][0]), inner(*x))[1])
        return model

    monkeypatch.setattr(cases, "build", counted)
    monkeypatch.setattr(measure, "timer", lambda: float(len(encoded)))
    config = str(ROOT / "configs/prototype/glyphs_efficientnet_lite0.yaml")
    setting = measure.Setting(32, "cpu", 1, 2, shots=2, config_file=config)
    seconds = measure.measure_here(cases.prepare_predictor, setting).seconds
    expected = {"encode_seconds": 2.0, "first_seconds": 0.0, "later_seconds": 0.0, "anew_seconds": 2.0}
    assert seconds == expected
    assert cases.predictor_table([{"shots": 2} | seconds]).splitlines()[-1] == (
        "| 2 | 2.000 | 2.000 | 0.000 | 0.000 | 1.00 | 0.00 | 0.00 |"
    )


def test_the_step_of_a_whole_model_trains_it(load: Import) -> None:
    cases, measure = load("benchmarks.cases"), load("benchmarks.measure")
    config = str(ROOT / "configs/mmformer/stage1_glyphs.yaml")
    cfg = cases.config_of(measure.Setting(64, "cpu", 1, 1, config_file=config, batch=2))
    model = cases.Trainer.build_model(cfg)
    learning = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in learning]
    batch = [cases.make_episode(64, shots=1) for _ in range(2)]
    with cases.EventStorage():
        step = cases.training_step(cfg, model, batch)
        step()
        step()
    assert model.training and model.iteration == cfg.SOLVER.MAX_ITER - 1
    assert not all(torch.equal(*pair) for pair in zip(learning, before, strict=True))


@pytest.mark.parametrize(("method", "training"), [("prototype", True), ("danet", False)])
def test_a_training_free_model_and_one_that_shall_not_train(
    method: str, training: bool, load: Import, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases, measure = load("benchmarks.cases"), load("benchmarks.measure")
    monkeypatch.setattr(cases, "measure", lambda prepare, *x: measure.measure_here(prepare, x[0], x[1:]))
    config = str(ROOT / f"configs/{method}/glyphs_efficientnet_lite0.yaml")
    setting = measure.Setting(32, "cpu", 1, 1, shots=2, config_file=config)
    report = cases.model(setting, training=training)
    assert [row["run"] for row in report.numbers["results"]] == ["inference"]
    assert len(report.tables.splitlines()) == (5 if method == "danet" else 3)  # a note, after a blank line


def test_the_size_of_what_is_not_written_out_by_hand(load: Import) -> None:
    """473 pixels at stride 8: 60 x 60 positions; their pairs take 3600**2 * 4 bytes = 49.4 MiB."""
    cases, measure = load("benchmarks.cases"), load("benchmarks.measure")
    notes = {}
    for method in ("dpcn", "danet", "dcama"):
        config = str(ROOT / f"configs/{method}/pascal5i_r50.yaml")
        setting = measure.Setting(473, "cpu", 1, 1, shots=2, batch=4, config_file=config)
        notes[method] = cases.written_out(cases.Trainer.build_model(cases.config_of(setting)), setting)
    assert "cosines of 3600 x 3600 positions would take 49.4 MiB" in notes["dpcn"]
    assert "1186.5 MiB for 8 pairs of a query and a support, 3 each" in notes["dpcn"]
    assert "395.5 MiB for 8 pairs of a query and a support, 1 each" in notes["danet"]
    assert notes["dcama"] == ""


def test_proposal_tables_by_hand(load: Import) -> None:
    keys = (
        "seconds",
        "part_seconds",
        "peak_mib",
        "attention_seconds",
        "training_seconds",
        "training_peak_mib",
    )
    rows = [
        {"sampling": name} | dict(zip(keys, values, strict=True))
        for name, values in (
            ("grid", (2.0, {"backbone": 0.5, "rest": 1.5}, 100.0, 0.1, 0.4, 80.0)),
            ("gather", (1.0, {"backbone": 0.5, "rest": 0.5}, 50.0, 0.02, 0.1, 20.0)),
        )
    ]
    differences = {"output": 1e-6, "gradients_relative": 2e-6}
    text = load("benchmarks.cases").proposal_tables(rows, differences).splitlines()
    assert text[0].startswith("| sampling | image, s | backbone | rest | peak MiB |")
    assert text[3] == "| gather | 1.000 | 0.500 (50%) | 0.500 (50%) | 50 | 0.50 | 0.50 |"
    assert text[8] == "| gather | 20.0 | 0.20 | 100.0 | 0.25 | 20 | 0.25 |"
    assert len({line.count("|") for line in text[:4]}) == len({line.count("|") for line in text[5:9]}) == 1
    assert "1.0e-06 in the output, 2.0e-06 of the largest gradient" in text[-1]


class _Slow(nn.Module):
    """Takes a while, before and after the module within."""

    def __init__(self, seconds: float, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.seconds, self.inner = seconds, inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds / 2)
        x = x if self.inner is None else self.inner(x)
        time.sleep(self.seconds / 2)
        return x


def test_the_stopwatch_counts_a_part_within_a_part_once(load: Import) -> None:
    inner = _Slow(0.1)
    model = _Slow(0.04, inner)
    watch = load("benchmarks.measure").Stopwatch({"outer": [model], "inner": [inner]})
    for name in ("first", "first", "second", "second"):
        with watch.lap(name):
            model(torch.zeros(1))
            time.sleep(0.02)
    seconds = watch.medians("first")
    assert list(seconds) == ["outer", "inner", "rest"]
    # A busy machine sleeps longer, never shorter.
    assert 0.04 <= seconds["outer"] < 0.1 <= seconds["inner"] and 0.02 <= seconds["rest"] < 0.1


def test_runs_alternate_and_the_first_round_is_left_out(
    load: Import, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock advances by 1, 2, 6 in the later runs of "a": median 2; the first one only adds memory."""
    measure = load("benchmarks.measure")
    calls, clock = [], iter([20, 21, 21, 21, 21, 23, 23, 24, 24, 30, 30, 35])
    peaks = iter([2**20, 5 * 2**20])
    monkeypatch.setattr(measure, "timer", lambda: next(clock))
    monkeypatch.setattr(measure, "_peak_bytes", lambda device: next(peaks))
    runs = {name: lambda name=name: calls.append(name) for name in "ab"}
    prepared = measure.Prepared(runs, lambda: len(calls))
    measured = measure.measure_here(lambda setting: prepared, measure.Setting(32, "cpu", 1, 3))
    assert measured == measure.Measured({"a": 2, "b": 1}, 4.0, 8)
    assert calls == list("abababab")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "none/x.json"], "make it first"),
        (["--method", "proposals", "--shots", "1"], "--shots: proposals need no supports"),
        (["--method", "proposals", "--size", "0"], "must be at least 1"),
        (["--method", "none"], "invalid choice"),
        (["--batch", "2"], "choose --method model"),
        (["--method", "predictor", "--batch", "2"], "choose --method model"),
        (["--config-file", __file__], "--config-file: choose --method model or predictor"),
        (["--method", "predictor"], "--config-file is None: name an existing config"),
        (["--method", "predictor", "--config-file", __file__, "--shots", "0"], "must be at least 1"),
        (["--method", "model"], "--config-file is None: name an existing config"),
        (["--method", "model", "--config-file", "none.yaml"], "none.yaml: name an existing config"),
        (["--method", "model", "--config-file", __file__, "--shots", "1", "5"], "give one number"),
        (["--method", "model", "--config-file", __file__, "--backbone", "resnet50"], "leave it out"),
        (["--method", "model", "--config-file", __file__, "--batch", "0"], "must be at least 1"),
    ],
)
def test_bad_arguments_are_refused_before_the_work(
    words: list[str],
    message: str,
    load: Import,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        load("benchmark").main(words)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_each_method_has_its_own_size_and_help_lists_them(
    load: Import, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark = load("benchmark")
    assert benchmark.parse_args([]).size == 384
    assert benchmark.parse_args([]).shots == [1, 5]
    assert benchmark.parse_args(["--method", "proposals"]).size == 480
    assert tuple(load("benchmarks.cases").BACKBONES) == benchmark.BACKBONES
    with pytest.raises(SystemExit):
        benchmark.main(["--help"])
    assert "384" in capsys.readouterr().out


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="other systems count from getrusage")
def test_the_peak_of_a_large_parent_is_not_that_of_its_child() -> None:
    """Linux hands the peak of getrusage on to started processes; a child of 400 MiB still adds its own."""
    child = "import sys; sys.path.insert(0, 'tools')\nfrom benchmarks.measure import added_peak_mib\n"
    child += "print(added_peak_mib(lambda: bytearray(64 * 2**20), 'cpu'))"
    parent = (
        f"import subprocess, sys; large = bytearray(1200 * 2**20)\nrun = [sys.executable, '-c', {child!r}]\n"
    )
    parent += "print(subprocess.run(run, capture_output=True, text=True, check=True).stdout)"
    done = subprocess.run(
        [sys.executable, "-c", parent], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert float(done.stdout) == pytest.approx(64, abs=8)
