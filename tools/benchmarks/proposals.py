"""The proposal segmenter, its deformable attention sampled by ``grid_sample`` and by gathered rows."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from fss_d2.modeling.proposals.deformable_attention import (
    SAMPLERS,
    MultiScaleDeformableAttention,
    reference_points,
)
from fss_d2.modeling.proposals.head import ProposalHead

from .measure import (
    BACKBONES,
    Report,
    Setting,
    Stopwatch,
    added_peak_mib,
    alternate,
    in_fresh_process,
    start,
)

SAMPLINGS = tuple(SAMPLERS)  # the straightforward one first: ratios are relative to it
DIM = 256
LEVEL_STRIDES = (32, 16, 8)  # of the maps that the deformable attention reads
BACKBONE, CORE, PROJECTIONS = "backbone", "attention core", "its projections"
PIXEL_DECODER, TRANSFORMER_DECODER = "rest of pixel decoder", "transformer decoder"


@dataclass(frozen=True)
class Result:
    """What came out for one way of sampling.

    Attributes:
        sampling: its name, one of `SAMPLINGS`.
        seconds: of the segmenter on one image, median.
        part_seconds: of its parts, medians.
        peak_mib: that the segmenter adds.
        attention_seconds: of one deformable attention, forward without gradient, median.
        training_seconds: of one deformable attention, forward and backward, median.
        training_peak_mib: that forward and backward of one deformable attention add.
    """

    sampling: str
    seconds: float
    part_seconds: dict[str, float]
    peak_mib: float
    attention_seconds: float
    training_seconds: float
    training_peak_mib: float


def measure(setting: Setting) -> Report:
    """Measure both ways of sampling, in fresh processes."""
    seconds, parts, attention, differences = in_fresh_process(_seconds, setting)
    results = [
        Result(
            sampling=sampling,
            seconds=seconds[sampling],
            part_seconds=parts[sampling],
            peak_mib=in_fresh_process(_segmenter_peak, setting, sampling),
            attention_seconds=attention[sampling],
            training_seconds=attention[f"{sampling} training"],
            training_peak_mib=in_fresh_process(_training_peak, setting, sampling),
        )
        for sampling in SAMPLINGS
    ]
    numbers = {"results": [asdict(result) for result in results], "differences": differences}
    return Report(tables(results, differences), numbers)


def _seconds(setting: Setting) -> tuple[dict, ...]:
    return (*_segmenter_seconds(setting), *_attention_seconds(setting))


@torch.inference_mode()
def _segmenter_seconds(setting: Setting) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Median seconds of one image by way of sampling, and of the parts of the model."""
    model, image = _segmenter(setting)
    watch = Stopwatch(_parts(model), setting.device)

    def segment(sampling: str) -> None:
        _sample_by(model, sampling)
        with watch.lap(sampling):
            model(image)

    runs = {sampling: lambda s=sampling: segment(s) for sampling in SAMPLINGS}
    seconds = alternate(runs, repeats=setting.repeats, device=setting.device)
    return seconds, {sampling: watch.medians(sampling) for sampling in SAMPLINGS}


def _attention_seconds(setting: Setting) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds of one deformable attention, and how far the ways of sampling are apart."""
    attention, inputs = _attention(setting)

    def forward(sampling: str) -> None:
        attention.sampling = sampling
        with torch.inference_mode():
            attention(*inputs)

    runs = {sampling: lambda s=sampling: forward(s) for sampling in SAMPLINGS}
    runs |= {f"{s} training": lambda s=s: _training_step(attention, inputs, s) for s in SAMPLINGS}
    seconds = alternate(runs, repeats=setting.repeats, device=setting.device)
    (output, *gradients), others = (_training_step(attention, inputs, s) for s in SAMPLINGS)
    gaps = [_largest(a - b) for a, b in zip((output, *gradients), others, strict=True)]
    # The gradients grow with the sum that they are of: relative to the largest one of their tensor.
    relative = [gap / _largest(gradient) for gap, gradient in zip(gaps[1:], gradients, strict=True)]
    return seconds, {"output": gaps[0], "gradients_relative": max(relative)}


@torch.inference_mode()
def _segmenter_peak(setting: Setting, sampling: str) -> float:
    model, image = _segmenter(setting)
    _sample_by(model, sampling)
    return added_peak_mib(lambda: model(image), setting.device)


def _training_peak(setting: Setting, sampling: str) -> float:
    attention, inputs = _attention(setting)
    return added_peak_mib(lambda: _training_step(attention, inputs, sampling), setting.device)


def _segmenter(setting: Setting) -> tuple[nn.Sequential, Tensor]:
    """Backbone and head of the published sizes, and an image (1, 3, size, size), on the device."""
    start(setting)
    backbone = BACKBONES[setting.backbone]()
    head = ProposalHead(backbone.output_shape(), dim=DIM)
    model = nn.Sequential(backbone, head).eval().to(setting.device)
    image = torch.rand(1, 3, setting.size, setting.size, device=setting.device)
    model(image[..., :32, :32])  # loads libraries, which are not the image's memory
    return model, image


def _attention(setting: Setting) -> tuple[MultiScaleDeformableAttention, tuple]:
    """One deformable attention, and its inputs at the sizes that an image of this side gives."""
    start(setting)
    attention = MultiScaleDeformableAttention(DIM).to(setting.device)
    for layer in (attention.sampling_offsets, attention.attention_weights):  # 0 at the start of a training
        nn.init.normal_(layer.weight, std=DIM**-0.5)
    shapes = [(-(-setting.size // stride),) * 2 for stride in LEVEL_STRIDES]
    reference = reference_points(shapes, torch.device(setting.device))
    tokens = torch.randn(2, 1, len(reference), DIM, device=setting.device).requires_grad_()
    query, value = tokens
    return attention, (query, reference, value, shapes)


def _training_step(attention: MultiScaleDeformableAttention, inputs: tuple, sampling: str) -> list[Tensor]:
    """Forward and backward of the mean square: the output, and the gradients of query, value, weights."""
    attention.sampling = sampling
    query, _, value, _ = inputs
    output = attention(*inputs)
    sources = (query, value, *attention.parameters())
    return [output.detach(), *torch.autograd.grad(output.square().sum(), sources)]


def _parts(model: nn.Sequential) -> dict[str, list[nn.Module]]:
    backbone, head = model
    attentions = _attentions(model)
    return {
        BACKBONE: [backbone],
        CORE: attentions,
        PROJECTIONS: [child for attention in attentions for child in attention.children()],
        PIXEL_DECODER: [head.pixel_decoder],
        TRANSFORMER_DECODER: [head.predictor],
    }


def _attentions(model: nn.Module) -> list[MultiScaleDeformableAttention]:
    return [m for m in model.modules() if isinstance(m, MultiScaleDeformableAttention)]


def _sample_by(model: nn.Module, sampling: str) -> None:
    for attention in _attentions(model):
        attention.sampling = sampling


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max())


def tables(results: Sequence[Result], differences: dict[str, float]) -> str:
    """Markdown: the segmenter and where its time goes, one deformable attention, and the differences."""
    difference = (
        f"Largest difference between the two: {differences['output']:.1e} in the output, "
        f"{differences['gradients_relative']:.1e} of the largest gradient in the gradients."
    )
    return "\n".join([*_segmenter_table(results), "", *_attention_table(results), "", difference])


def _segmenter_table(results: Sequence[Result]) -> list[str]:
    base, parts = results[0], list(results[0].part_seconds)
    lines = [
        f"| sampling | image, s | {' | '.join(parts)} | peak MiB | time ratio | memory ratio |",
        "|" + " --- |" * (len(parts) + 5),
    ]
    for r in results:
        shares = (f"{s:.3f} ({s / r.seconds:.0%})" for s in r.part_seconds.values())
        lines.append(
            f"| {r.sampling} | {r.seconds:.3f} | {' | '.join(shares)} | {r.peak_mib:.0f} "
            f"| {r.seconds / base.seconds:.2f} | {r.peak_mib / max(base.peak_mib, 1e-9):.2f} |"
        )
    return lines


def _attention_table(results: Sequence[Result]) -> list[str]:
    base = results[0]
    lines = [
        "| one deformable attention | forward, ms | ratio | forward and backward, ms | ratio "
        "| peak MiB of both | ratio |",
        "|" + " --- |" * 7,
    ]
    for r in results:
        lines.append(
            f"| {r.sampling} | {1e3 * r.attention_seconds:.1f} "
            f"| {r.attention_seconds / base.attention_seconds:.2f} | {1e3 * r.training_seconds:.1f} "
            f"| {r.training_seconds / base.training_seconds:.2f} | {r.training_peak_mib:.0f} "
            f"| {r.training_peak_mib / max(base.training_peak_mib, 1e-9):.2f} |"
        )
    return lines
