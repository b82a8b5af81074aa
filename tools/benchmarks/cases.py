"""What is measured: DCAMA's attention, HSNet, the proposal segmenter, a config's model, the predictor."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import count
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from fss_d2.config import load_config
from fss_d2.data.augmentations import build_resize
from fss_d2.engine.solver import build_gradient_clipper
from fss_d2.engine.train_loop import AutocastTrainer
from fss_d2.engine.trainer import Trainer
from fss_d2.inference.predictor import FewShotPredictor
from fss_d2.modeling import DCAMA, DPCN, DANet, FewShotSegmentor, HSNet
from fss_d2.modeling.backbone import FeatureBackbone, ResNetBackbone, SwinBackbone
from fss_d2.modeling.proposals.deformable_attention import (
    SAMPLERS,
    MultiScaleDeformableAttention,
    reference_points,
)
from fss_d2.modeling.proposals.head import ProposalHead

from .measure import Prepare, Prepared, Report, Setting, Stopwatch, measure, table, with_ratios

BACKBONES: dict[str, Callable[[], FeatureBackbone]] = {
    "resnet101": lambda: ResNetBackbone(depth=101),
    "resnet50": lambda: ResNetBackbone(depth=50),
    "swin_base": lambda: SwinBackbone(size="base"),
}
NO_WEIGHTS = ("MODEL.BACKBONE.WEIGHTS", "", "MODEL.BACKBONE.PIXEL_DECODER_WEIGHTS", "")
TRAINING, INFERENCE = "training step", "inference"

Rows = Sequence[dict[str, Any]]


def dcama(setting: Setting, shots: Sequence[int]) -> Report:
    """Plain and fused attention: a whole episode, its query alone, and the backbone on all images."""
    return _episodes(prepare_dcama, setting, shots, "attention", ("plain", "fused"))


def hsnet(setting: Setting, shots: Sequence[int]) -> Report:
    """HSNet next to DCAMA, in the same terms."""
    return _episodes(prepare_hsnet, setting, shots, "method", ("DCAMA", "HSNet"))


def _episodes(
    prepare: Prepare, setting: Setting, shots: Sequence[int], kind: str, names: Sequence[str]
) -> Report:
    """Rows of each number of supports and each of the names, which are those of runs of `_segmenting`."""
    rows = []
    for k in shots:
        case = replace(setting, shots=k)
        seconds = measure(prepare, case).seconds
        for name in names:
            row: dict[str, Any] = {"shots": k, kind: name, "seconds": seconds[name]}
            row |= {"query_seconds": seconds[f"{name} query"], "backbone_seconds": seconds["backbone"]}
            rows.append(row | {"peak_mib": measure(prepare, case, name, repeats=0).peak_mib})
    return Report(episode_table(rows, kind), {"results": rows})


def prepare_dcama(setting: Setting) -> Prepared:
    """A model with the one attention or the other, and an episode of noise."""
    model = DCAMA(backbone=BACKBONES[setting.backbone]()).eval().to(setting.device)

    def attending(fused: bool) -> FewShotSegmentor:
        for attention in model.head.attention.values():
            attention.fused = fused
        return model

    return _segmenting(setting, {"plain": partial(attending, False), "fused": partial(attending, True)})


def prepare_hsnet(setting: Setting) -> Prepared:
    """Both models, and an episode of noise."""
    methods, build = (DCAMA, HSNet), BACKBONES[setting.backbone]
    models = {method.__name__: method(backbone=build()).eval().to(setting.device) for method in methods}
    return _segmenting(setting, {name: lambda model=model: model for name, model in models.items()})


def _segmenting(setting: Setting, models: Mapping[str, Callable[[], FewShotSegmentor]]) -> Prepared:
    """Runs of models: an episode by name, its query alone by name and " query", and "backbone"."""
    device, shape = setting.device, (setting.size, setting.size)
    images = torch.rand(1, setting.shots, 3, *shape, device=device)
    masks = (torch.rand(1, setting.shots, *shape, device=device) > 0.5).to(torch.uint8)
    query = torch.rand(1, 3, *shape, device=device)
    first = next(iter(models.values()))()
    with torch.inference_mode():
        first.extract(query[..., :32, :32])  # loads libraries, which are not memory of the episode
    support = cache(torch.inference_mode()(lambda name: models[name]().encode_support(images, masks)))

    @torch.inference_mode()
    def segment(name: str, encode: bool) -> None:
        model = models[name]()
        model.segment(query, model.encode_support(images, masks) if encode else support(name))

    @torch.inference_mode()
    def backbone() -> None:
        for image in (*images.split(1, dim=1), query[:, None]):
            first.extract(image[:, 0])

    runs = {name: partial(segment, name, True) for name in models}
    runs |= {f"{name} query": partial(segment, name, False) for name in models}
    return Prepared(runs | {"backbone": backbone})


def episode_table(rows: Rows, kind: str) -> str:
    """Markdown; the ratios are to the first of the ``kind`` with the same number of shots."""
    first = {row["shots"]: row for row in reversed(rows)}
    ratio_keys = {"episode": "seconds", "query": "query_seconds", "memory": "peak_mib"}
    columns = {
        **{"shots": "{shots}", kind: f"{{{kind}}}", "episode, s": "{seconds:.2f}"},
        "of which backbone": "{backbone_seconds:.2f} ({share:.0%})",
        **{"query alone, s": "{query_seconds:.2f}", "peak MiB": "{peak_mib:.0f}"},
        **{f"{n} ratio": f"{{{key}_ratio:.2f}}" for n, key in ratio_keys.items()},
    }
    shares = ({"share": row["backbone_seconds"] / row["seconds"]} for row in rows)
    return table(columns, [with_ratios(r, first[r["shots"]]) | s for r, s in zip(rows, shares, strict=True)])


def proposals(setting: Setting) -> Report:
    """The proposal segmenter and one deformable attention, with ``grid_sample`` and with gathered rows."""
    segmenter, attention = measure(prepare_segmenter, setting), measure(prepare_attention, setting)
    rows = []
    for name in SAMPLERS:
        training = f"{name} training"
        row = {"sampling": name, **segmenter.details[name]}
        row["peak_mib"] = measure(prepare_segmenter, setting, name, repeats=0).peak_mib
        row["attention_seconds"], row["training_seconds"] = (attention.seconds[n] for n in (name, training))
        row["training_peak_mib"] = measure(prepare_attention, setting, training, repeats=0).peak_mib
        rows.append(row)
    numbers = {"results": rows, "differences": attention.details}
    return Report(proposal_tables(rows, numbers["differences"]), numbers)


def prepare_segmenter(setting: Setting) -> Prepared:
    """Backbone and head of the published sizes, and one image; the details are seconds, also of the parts."""
    backbone = BACKBONES[setting.backbone]()
    head = ProposalHead(backbone.output_shape(), dim=256)
    model = nn.Sequential(backbone, head).eval().to(setting.device)
    attentions = [m for m in model.modules() if isinstance(m, MultiScaleDeformableAttention)]
    image = torch.rand(1, 3, setting.size, setting.size, device=setting.device)
    with torch.inference_mode():
        model(image[..., :32, :32])  # loads libraries, which are not memory of the image
    projections = [child for attention in attentions for child in attention.children()]
    parts = {"backbone": [backbone], "attention core": attentions, "its projections": projections}
    parts |= {"rest of pixel decoder": [head.pixel_decoder], "transformer decoder": [head.predictor]}
    watch = Stopwatch(parts)

    @torch.inference_mode()
    def segment(sampling: str) -> None:
        for attention in attentions:
            attention.sampling = sampling
        with watch.lap(sampling):
            model(image)

    def details() -> dict[str, Any]:
        return {s: {"seconds": watch.seconds(s), "part_seconds": watch.medians(s)} for s in SAMPLERS}

    return Prepared({sampling: partial(segment, sampling) for sampling in SAMPLERS}, details)


def prepare_attention(setting: Setting) -> Prepared:
    """One deformable attention with inputs of the sizes for the image; the details are `_differences`."""
    dim, device = 256, setting.device
    attention = MultiScaleDeformableAttention(dim).to(device)
    for layer in (attention.sampling_offsets, attention.attention_weights):  # 0 before training
        nn.init.normal_(layer.weight, std=dim**-0.5)
    shapes = [(-(-setting.size // stride),) * 2 for stride in (32, 16, 8)]
    reference = reference_points(shapes, torch.device(device))
    query, value = torch.randn(2, 1, len(reference), dim, device=device).requires_grad_()

    def forward(sampling: str) -> None:
        attention.sampling = sampling
        with torch.inference_mode():
            attention(query, reference, value, shapes)

    def train(sampling: str) -> list[Tensor]:
        """Forward and backward of the sum of squares: output, gradients of query, value and weights."""
        attention.sampling = sampling
        output = attention(query, reference, value, shapes)
        sources = (query, value, *attention.parameters())
        return [output.detach(), *torch.autograd.grad(output.square().sum(), sources)]

    runs: dict[str, Callable[[], object]] = {s: partial(forward, s) for s in SAMPLERS}
    runs |= {f"{s} training": partial(train, s) for s in SAMPLERS}
    return Prepared(runs, lambda: _differences(*(train(s) for s in SAMPLERS)))


def _differences(first: list[Tensor], second: list[Tensor]) -> dict[str, float]:
    """The largest difference in the output, and in the gradients relative to the largest of the tensor."""
    gaps = [float((a - b).abs().max()) for a, b in zip(first, second, strict=True)]
    relative = [gap / float(a.abs().max()) for gap, a in zip(gaps[1:], first[1:], strict=True)]
    return {"output": gaps[0], "gradients_relative": max(relative)}


def proposal_tables(rows: Rows, differences: dict[str, float]) -> str:
    """Markdown: the segmenter and the times of its parts, one deformable attention, and the differences."""
    parts = list(rows[0]["part_seconds"])
    segmenter = {
        **{"sampling": "{sampling}", "image, s": "{seconds:.3f}"},
        **{part: f"{{parts[{part}]}}" for part in parts},
        **{"peak MiB": "{peak_mib:.0f}", "time ratio": "{seconds_ratio:.2f}"},
        "memory ratio": "{peak_mib_ratio:.2f}",
    }
    attention = {
        "one deformable attention": "{sampling}",
        **{"forward, ms": "{attention_ms:.1f}", "ratio": "{attention_seconds_ratio:.2f}"},
        **{"forward and backward, ms": "{training_ms:.1f}", "ratio ": "{training_seconds_ratio:.2f}"},
        **{"peak MiB of both": "{training_peak_mib:.0f}", "ratio  ": "{training_peak_mib_ratio:.2f}"},
    }
    shown = []
    for row in rows:
        shares = {n: f"{s:.3f} ({s / row['seconds']:.0%})" for n, s in row["part_seconds"].items()}
        thousand = {f"{name}_ms": 1e3 * row[f"{name}_seconds"] for name in ("attention", "training")}
        shown.append(with_ratios(row, rows[0]) | thousand | {"parts": shares})
    gaps = "{output:.1e} in the output, {gradients_relative:.1e} of the largest gradient in the gradients"
    difference = f"Largest difference between the two: {gaps.format(**differences)}."
    return "\n\n".join([table(segmenter, shown), table(attention, shown), difference])


def model(setting: Setting, *, training: bool = True) -> Report:
    """A training step (unless switched off) and an inference of a batch, each in its own process.

    The step is that of the trainer, with the config's optimizer, in the last iteration, when everything is
    trained that starts late. A model without trained weights has none.
    """
    built = Trainer.build_model(config_of(setting, device="cpu"))
    trains = training and getattr(built, "trainable", True)
    rows = []
    for run in (TRAINING, INFERENCE) if trains else (INFERENCE,):
        measured = measure(prepare_model, setting, run)
        rows.append({"run": run, "seconds": measured.seconds[run], "peak_mib": measured.peak_mib})
    text = table({"run": "{run}", "seconds": "{seconds:.2f}", "peak MiB": "{peak_mib:.0f}"}, rows)
    note = written_out(built, setting)
    return Report(f"{text}\n\n{note}" if note else text, {"results": rows, "note": note})


def prepare_model(setting: Setting) -> Prepared:
    """The model of the config with random weights, and a batch of episodes of noise."""
    cfg = config_of(setting)
    built = build(cfg)
    batch = [make_episode(setting.size, setting.shots) for _ in range(setting.batch)]
    with torch.no_grad():  # loads libraries, which are not memory of the run
        built.extract(torch.rand(1, 3, 64, 64, device=setting.device))
    step = cache(lambda: training_step(cfg, built, batch))  # its optimizer is not memory of an inference

    def train() -> None:
        with EventStorage():
            step()()

    return Prepared({TRAINING: train, INFERENCE: torch.inference_mode()(partial(built, batch))})


def config_of(setting: Setting, *opts: str, device: str = "") -> CfgNode:
    """The config, without weights, on the device."""
    given = [*NO_WEIGHTS, "MODEL.DEVICE", device or setting.device, *setting.opts, *opts]
    return load_config(setting.config_file, given)


def build(cfg: CfgNode) -> nn.Module:
    """The model with random weights, in evaluation mode."""
    built = Trainer.build_model(cfg).eval()
    if (knowledge := getattr(built, "knowledge", None)) is not None:
        knowledge.fill(torch.rand_like(knowledge.prototypes))
    return built


def make_episode(size: int, shots: int) -> dict[str, Any]:
    """An episode of noise; the object is a square, which is also the only segment."""
    mask = torch.zeros(size, size, dtype=torch.uint8)
    mask[size // 4 : -(size // 4), size // 4 : -(size // 4)] = 1
    images = torch.randint(0, 256, (shots + 1, 3, size, size), dtype=torch.uint8)
    segments = {"segments": mask[None] == 1, "segment_labels": torch.zeros(1, dtype=torch.int64)}
    support = [{"image": image, "mask": mask} for image in images[1:]]
    return {"image": images[0], "sem_seg": mask, "support": support, **segments}


def training_step(cfg: CfgNode, built: nn.Module, batch: list[dict[str, Any]]) -> Callable[[], None]:
    """The trainer's step on one batch; sets the model to training, in its last iteration."""
    built.train()
    built.iteration = max(cfg.SOLVER.MAX_ITER, 1) - 1
    amp_dtype = cfg.SOLVER.AMP.DTYPE if cfg.SOLVER.AMP.ENABLED else None
    optimizer, clip = Trainer.build_optimizer(cfg, built), build_gradient_clipper(cfg)
    loader = (batch for _ in count())
    return AutocastTrainer(built, loader, optimizer, clip=clip, amp_dtype=amp_dtype).run_step


def written_out(built: nn.Module, setting: Setting) -> str:
    """The size of the maps that a model computes in chunks or by a fused kernel; empty if unknown."""
    if isinstance(built, DPCN):
        feature, maps, name = built.sam_feature, len(built.windows), "cosines"
    elif isinstance(built, DANet) and built.dense is not None:
        feature, maps, name = built.in_features[0], 1, "dense attention"
    else:
        return ""
    positions = (-(-setting.size // built.backbone.available[feature].stride)) ** 2
    pairs = setting.batch * setting.shots
    mib = positions**2 * 4 / 2**20
    one = f"a map of {name} of {positions} x {positions} positions would take {mib:.1f} MiB (float32)"
    every = f"{pairs * maps * mib:.1f} MiB for {pairs} pairs of a query and a support, {maps} each"
    return f"Written out, {one}: {every}."


def predictor(setting: Setting, shots: Sequence[int]) -> Report:
    """Supports that are encoded once, compared with supports that are encoded again for every query."""
    rows = [{"shots": k} | measure(prepare_predictor, replace(setting, shots=k)).seconds for k in shots]
    return Report(predictor_table(rows), {"results": rows})


def prepare_predictor(setting: Setting) -> Prepared:
    """A predictor without refinement, with random weights, and noise; the order of the runs matters."""
    size = (setting.size, setting.size)
    cfg = config_of(setting, "TEST.REFINEMENT", "", "INPUT.FEW_SHOT_SIZE", size)
    views = cfg.FEW_SHOT.TEST.SUPPORT_VIEWS
    predict = FewShotPredictor(build(cfg), [build_resize(cfg)], support_views=views)
    *images, query = np.random.default_rng(0).integers(0, 256, (setting.shots + 1, *size, 3), np.uint8)
    masks = [np.pad(np.ones((setting.size // 2,) * 2, bool), setting.size // 4)] * setting.shots

    encode, segment = partial(predict.set_support, images, masks), partial(predict.predict, query)
    runs = {"encode_seconds": encode, "first_seconds": segment, "later_seconds": segment}
    return Prepared({**runs, "anew_seconds": lambda: (encode(), segment())})


def predictor_table(rows: Rows) -> str:
    """Markdown; the ratios are to a query whose supports are encoded again."""
    columns = {"shots": "{shots}", "encoded anew for each query, s": "{anew_seconds:.3f}"}
    parts = {"set_support": "encode", "first query": "first", "later query": "later"}
    columns |= {f"{title}, s": f"{{{key}_seconds:.3f}}" for title, key in parts.items()}
    for title, key in parts.items():
        columns[f"{title.removesuffix(' query')} ratio"] = f"{{{key}_seconds_ratio:.2f}}"
    return table(columns, [with_ratios(row, dict.fromkeys(row, row["anew_seconds"])) for row in rows])
