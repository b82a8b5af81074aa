"""DCAMA with its attention maps written out, and with fused attention."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from fss_d2.modeling import DCAMA

from .measure import BACKBONES, Report, Setting, added_peak_mib, alternate, in_fresh_process, start


@dataclass(frozen=True)
class Result:
    """What came out: median seconds of an episode, of its query alone, and of the backbone on all images."""

    shots: int
    attention: str
    seconds: float
    query_seconds: float
    backbone_seconds: float
    peak_mib: float


def measure(setting: Setting, shots: Sequence[int]) -> Report:
    """Measure plain and fused attention with each number of shots, in fresh processes."""
    results = [result for k in shots for result in _measure(setting, k)]
    return Report(table(results), {"results": [asdict(result) for result in results]})


def _measure(setting: Setting, shots: int) -> list[Result]:
    seconds = in_fresh_process(_seconds, setting, shots)
    return [
        Result(
            shots=shots,
            attention=attention,
            seconds=seconds[attention],
            query_seconds=seconds[f"{attention} query"],
            backbone_seconds=seconds["backbone"],
            peak_mib=in_fresh_process(_peak_mib, setting, shots, attention == "fused"),
        )
        for attention in ("plain", "fused")
    ]


@torch.inference_mode()
def _seconds(setting: Setting, shots: int) -> dict[str, float]:
    """Median seconds of "plain", "plain query", "fused", "fused query" and "backbone"."""
    model, images, masks, query = _prepare(setting, shots)
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
    return alternate(runs, repeats=setting.repeats, device=setting.device)


@torch.inference_mode()
def _peak_mib(setting: Setting, shots: int, fused: bool) -> float:
    """MiB that one episode adds at its peak."""
    model, images, masks, query = _prepare(setting, shots, fused)
    return added_peak_mib(lambda: model.segment(query, model.encode_support(images, masks)), setting.device)


def _prepare(setting: Setting, shots: int, fused: bool = True) -> tuple[DCAMA, Tensor, Tensor, Tensor]:
    """A model, support images and masks, and a query, on the device."""
    start(setting)
    model = DCAMA(backbone=BACKBONES[setting.backbone](), head={"fused": fused}).eval()
    model = model.to(setting.device)
    shape = (setting.size, setting.size)
    images = torch.rand(1, shots, 3, *shape, device=setting.device)
    masks = (torch.rand(1, shots, *shape, device=setting.device) > 0.5).to(torch.uint8)
    query = torch.rand(1, 3, *shape, device=setting.device)
    model.extract(query[..., :32, :32])  # loads libraries, which are not the episode's memory
    return model, images, masks, query


def table(results: Sequence[Result]) -> str:
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
