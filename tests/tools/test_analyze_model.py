"""The cost of a model: counts by hand, tables, the plot, arguments that are refused."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from fss_d2.modeling import FEW_SHOT_META_ARCHS
from tests.modeling.episodes import TINY, make_model
from tests.modeling.fake_backbone import register_fake_backbone

ROOT = Path(__file__).parents[2]
Import = Callable[[str], ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Import:
    """Import modules as ``python tools/analyze_model.py`` does."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module


@pytest.fixture
def analysis(load: Import, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`benchmarks.analysis`, which measures in this process."""
    found, measure = load("benchmarks.analysis"), load("benchmarks.measure")
    monkeypatch.setattr(found, "measure", lambda how, case, *names: measure.measure_here(how, case, names))
    return found


def test_parameters_are_counted_apart(analysis: ModuleType) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))  # 16, 8 and 4 + 4 + 1 stored
    model[0].bias.requires_grad_(False)
    expected = {"total": 24, "trained": 20, "frozen": 4, "stored": 9}
    assert analysis.parameters(model) == expected


def test_attention_by_hand(analysis: ModuleType) -> None:
    """Two heads, 5 queries, 7 keys of 3 channels, values of 2: 2 * 5 * 7 * (3 + 2)."""
    sizes = ((1, 2, 5, 3), (1, 2, 7, 3), (1, 2, 7, 2))
    inputs = [SimpleNamespace(type=lambda s=s: SimpleNamespace(sizes=lambda: list(s))) for s in sizes]
    assert analysis._attention_flops(inputs, []) == 350


def test_convolutions_by_hand(analysis: ModuleType) -> None:
    """3 channels to 4 by 3x3 on 8x8: a multiplication with its addition is one FLOP."""
    inputs = (torch.rand(1, 3, 8, 8),)
    module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Sigmoid())
    found = analysis._count(torch.export.export(module, inputs, strict=False), inputs)
    assert found == analysis.Counts(3 * 4 * 9 * 64, 4 * 64, ("sigmoid",))


class _Products(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x @ x[0], x.matmul(x.T), torch.group_norm(x.view(1, 4, 1, 1, 3, 2), 2)


def test_products_and_norms_by_hand(analysis: ModuleType) -> None:
    """4x6 with a vector and with 6x4, and a norm of 24 values in four dimensions."""
    inputs = (torch.rand(4, 6),)
    found = analysis._count(torch.export.export(_Products(), inputs, strict=False), inputs)
    assert found.flops == 4 * 6 + 4 * 6 * 4 + 4 * 24


@pytest.mark.parametrize("method", [m for m in FEW_SHOT_META_ARCHS if m != "INSID3"])
def test_every_method_is_counted(analysis: ModuleType, method: str) -> None:
    model = make_model(method)
    one, two = (analysis.query_counts(model, 64, shots) for shots in (1, 2))
    assert 0 < one.flops <= two.flops
    assert analysis.support_counts(model, 64).flops > 0


def test_a_method_that_no_graph_holds_is_refused(analysis: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"INSID3 cannot be exported .*clusters are found by scipy"):
        analysis.query_counts(make_model("INSID3"), 64, 1)


def test_dcama_attends_to_every_further_support(analysis: ModuleType) -> None:
    """A second support adds its tokens to the attention of every block, and nothing else."""
    model = make_model("DCAMA")
    one, two = (analysis.query_counts(model, 64, shots).flops for shots in (1, 2))
    added = 0
    for level, blocks in model.head.blocks.items():
        for name in blocks:
            spec = model.backbone.available[name]
            tokens = (64 // spec.stride) ** 2
            heads = model.head.attention[level].num_heads
            added += heads * tokens * tokens * 2 * (spec.channels // heads)  # values are padded to the width
    assert two - one == added


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A small DCAMA on the fake backbone."""
    file = tmp_path / "config.yaml"
    keys = [("MODEL.BACKBONE.NAME", register_fake_backbone()), ("MODEL.META_ARCHITECTURE", "DCAMA")]
    keys += list(zip(TINY[::2], TINY[1::2], strict=True))
    nested: dict[str, Any] = {"INPUT": {"FEW_SHOT_SIZE": [64, 64]}}
    for key, value in keys:
        *groups, last = key.split(".")
        place = nested
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = list(value) if isinstance(value, tuple) else value
    file.write_text(json.dumps(nested))
    return file


def test_rows_table_numbers_and_plot(
    analysis: ModuleType, load: Import, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, plot = tmp_path / "numbers.json", tmp_path / "plot.png"
    argv = ["--config-file", str(config), "--shots", "1", "2", "--device", "cpu", "--threads", "1"]
    argv += ["--repeats", "1", "--output", str(output), "--plot", str(plot), "--row", ""]
    assert load("analyze_model").main([*argv, "--row", "TEST.KSHOT average"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "64x64, cpu, 1 threads"
    table = [line.split(" | ") for line in lines if line.startswith("| ")]
    assert [row[1] for row in table[2:]] == ["1", "2", "1", "2"]
    assert table[2][0] == f"| {config}" and table[4][0] == "| TEST.KSHOT average"
    assert table[2][8] == "1.00x" and "fvcore does not count: " in lines[-1]
    rows = json.loads(output.read_text())["results"]
    assert rows[0]["total"] == rows[0]["trained"] + rows[0]["frozen"]
    for row in rows:
        assert row["flops"] == row["shots"] * row["support_flops"] + row["query_flops"]
        assert row["seconds"] > 0
    # One pass for each support mixes twice; one pass with both mixes once.
    assert rows[3]["query_flops"] > rows[1]["query_flops"]
    assert Image.open(plot).size == (2 * 512, 384 + 2 * 20)


def test_refused_arguments(load: Import, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tool = load("analyze_model")
    for words, message in (
        (["--shots", "0"], "--shots, --size, --threads and --repeats must be at least 1"),
        *([] if torch.cuda.is_available() else [(["--device", "cuda"], "torch finds no GPU here")]),
    ):
        with pytest.raises(SystemExit):
            tool.main(["--config-file", str(config), *words])
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"no config key TEST\.KSHOTT; did you mean TEST\.KSHOT"):
        tool.main(["--config-file", str(config), "--row", "TEST.KSHOTT vote"])
    with pytest.raises(ValueError, match="PotentialObjectsSegmenter takes no supports"):
        tool.main(["--config-file", str(config), "MODEL.META_ARCHITECTURE", "PotentialObjectsSegmenter"])
