"""What a model costs: parameters, FLOPs and activations by fvcore, latency and peak memory against K."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import torch
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
from torch import Tensor, nn
from torch.export import ExportedProgram

from fss_d2.config import load_config
from fss_d2.inference.export import FrozenQuery, capture
from fss_d2.modeling import FewShotSegmentor
from fss_d2.modeling.meta_arch.contract import stack_supports
from fss_d2.visualization import line_figure

from .cases import INFERENCE, Rows, build, config_of, make_episode, prepare_model
from .measure import Setting, measure, table

_MOST_NAMED = 6  # operators that are not counted


class SupportPass(nn.Module):
    """The encoding of one support by a method, as a function of tensors."""

    def __init__(self, model: FewShotSegmentor) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, mask: Tensor) -> list[Tensor]:
        """Image (1, 3, H, W) and mask (1, 1, H, W) -> what the method keeps of the support."""
        features = self.model._extract_supports(image, None)
        return list(self.model._support_encoding(features, mask).flat().values())


@dataclass(frozen=True)
class Counts:
    """What fvcore counts, and the operators that it does not count."""

    flops: float
    activations: float
    not_counted: tuple[str, ...]


def analyse(setting: Setting, shots: Sequence[int]) -> list[dict[str, Any]]:
    """Counts, latency and peak memory of the model of a config, one row for each K."""
    model = build(config_of(setting, device="cpu"))
    if not isinstance(model, FewShotSegmentor):
        name = type(model).__name__
        raise ValueError(f"{setting.config_file}: {name} takes no supports; choose a few-shot method")
    support, rows = support_counts(model, setting.size), []
    for k in shots:
        query = query_counts(model, setting.size, k)
        measured = measure(prepare_model, replace(setting, shots=k), INFERENCE)
        rows.append(
            {
                **{"shots": k, **parameters(model)},
                **{"support_flops": support.flops, "query_flops": query.flops},
                "flops": k * support.flops + query.flops,
                "activations": k * support.activations + query.activations,
                "not_counted": list(dict.fromkeys(support.not_counted + query.not_counted)),
                **{"seconds": measured.seconds[INFERENCE], "peak_mib": measured.peak_mib},
            }
        )
    return rows


def parameters(model: nn.Module) -> dict[str, int]:
    """Numbers of parameters: "total", "trained", "frozen"; "stored" are those of buffers in a checkpoint."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    stored = sum(t.numel() for t in model.state_dict().values()) - total
    return {"total": total, "trained": trained, "frozen": total - trained, "stored": stored}


@torch.no_grad()
def support_counts(model: FewShotSegmentor, size: int) -> Counts:
    """Of encoding one support."""
    images, masks = stack_supports([make_episode(size, 1)])
    inputs, module = (images[:, 0], masks), SupportPass(model)
    module(*inputs)  # fills the caches of position codes with tensors that hold values
    return _count(torch.export.export(module, inputs, strict=False), inputs)


@torch.no_grad()
def query_counts(model: FewShotSegmentor, size: int, shots: int) -> Counts:
    """Of segmenting a query with K supports that have been encoded."""
    episode = make_episode(size, shots)
    frozen = FrozenQuery(model, model.encode_support(*stack_supports([episode])))
    inputs = (episode["image"][None],)
    return _count(capture(frozen, *inputs), inputs)


def _count(program: ExportedProgram, inputs: tuple[Tensor, ...]) -> Counts:
    """Count a graph. It is captured first: fvcore traces, which makes the sizes in a method tensors."""
    found = []
    for kind in (FlopCountAnalysis, ActivationCountAnalysis):
        analysis = kind(program.module(), inputs).unsupported_ops_warnings(False)
        analysis.uncalled_modules_warnings(False).tracer_warnings("none")
        if kind is FlopCountAnalysis:
            for name, handle in _HANDLES.items():
                analysis.set_op_handle(name, handle)
        found.append(analysis.total())
        if kind is FlopCountAnalysis:
            missing = [name.removeprefix("aten::") for name, _ in analysis.unsupported_ops().most_common()]
    return Counts(*found, tuple(missing))


def _attention_flops(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Of queries (..., N, d), keys (..., M, d) and values (..., M, v): N M (d + v) for each head."""
    query, _, value = (each.type().sizes() for each in inputs[:3])
    return prod(query[:-1]) * value[-2] * (query[-1] + value[-1])


def _matmul_flops(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """As fvcore counts it, also where a matrix meets a vector."""
    return prod(outputs[0].type().sizes()) * inputs[0].type().sizes()[-1]


def _group_norm_flops(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """As fvcore counts it, also for 4D maps: 5 for each element, 4 without weights."""
    return prod(inputs[0].type().sizes()) * (5 if inputs[2].isCompleteTensor() else 4)


_HANDLES = {
    "aten::scaled_dot_product_attention": _attention_flops,
    "aten::matmul": _matmul_flops,
    "aten::group_norm": _group_norm_flops,
}


def variants(setting: Setting, files: Sequence[str], rows: Sequence[str]) -> dict[str, Setting]:
    """The settings to compare, by name: every config, with the "KEY VALUE" pairs of every row."""
    found = {}
    for file in files:
        for row in rows or ("",):
            opts = (*setting.opts, *shlex.split(row))
            load_config(file, opts)  # names what is wrong before anything is measured
            name = " ".join(part for part in (file if len(files) > 1 or not row else "", row) if part)
            found[name] = replace(setting, config_file=file, opts=opts)
    return found


def report_table(rows: Rows) -> str:
    """Markdown; speed is relative to the first row."""
    columns = {
        **{"model": "{model}", "K": "{shots}", "parameters, M": "{total_m:.2f}"},
        **{"trained, M": "{trained_m:.2f}", "GFLOPs": "{gflops:.4g}", "of the query": "{query_gflops:.4g}"},
        **{"activations, M": "{activations_m:.4g}", "episode, s": "{seconds:.3f}"},
        **{"speed": "{speed:.2f}x", "peak MiB": "{peak_mib:.0f}"},
    }
    first = rows[0]["seconds"]
    shown = [
        row
        | {f"{name}_m": row[name] / 1e6 for name in ("total", "trained", "activations")}
        | {
            "gflops": row["flops"] / 1e9,
            "query_gflops": row["query_flops"] / 1e9,
            "speed": first / row["seconds"],
        }
        for row in rows
    ]
    names = list(dict.fromkeys(name for row in rows for name in row["not_counted"]))
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    note = f"fvcore does not count: {', '.join(names[:_MOST_NAMED])}{more}." if names else ""
    return f"{table(columns, shown)}\n\n{note}".strip()


def plot(rows: Rows) -> np.ndarray:
    """Latency and peak memory against K, a line for each model: (H, W, 3) uint8."""
    panels: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for key, title in {"seconds": "seconds per episode", "peak_mib": "peak MiB"}.items():
        for row in rows:
            shots, values = panels.setdefault(title, {}).setdefault(row["model"], ([], []))
            shots.append(row["shots"])
            values.append(row[key])
    return line_figure(panels, x="supports K")


def analyse_all(settings: Mapping[str, Setting], shots: Sequence[int]) -> list[dict[str, Any]]:
    """The rows of `analyse` of all settings, each with its name as "model"."""
    return [{"model": name, **row} for name, each in settings.items() for row in analyse(each, shots)]
